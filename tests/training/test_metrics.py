"""Tests of metrics.jsonl where a run goes on: a row that was cut short is dropped, lost ones stay lost."""
import pytest
from hostile import copied

from pyro_advbnn.system import json_files
from pyro_advbnn.train import train


@pytest.fixture(scope="module")
def longer(finished, tmp_path_factory):
    """A run of four epochs."""
    folder = copied(finished, tmp_path_factory.mktemp("longer") / "run")
    train(resume=folder, epochs=4)
    return folder


@pytest.fixture
def run(longer, tmp_path):
    return copied(longer, tmp_path / "run")


def lines(run):
    return (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1]


def write(run, *rows, end=b"\n"):
    (run / "metrics.jsonl").write_bytes(b"\n".join(rows) + end)


def epochs(run):
    return [row["epoch"] for row in json_files.read_jsonl(run / "metrics.jsonl")]


@pytest.mark.parametrize("cut", [b'{"epoch": 5, "nll": 2.', b'{"epoch": 5, "nll"\0\xff\xff', b"5"])
def test_a_last_line_that_a_crash_cut_short_is_dropped_where_its_epoch_is_done_again(run, cut):
    write(run, *lines(run), cut, end=b"")
    train(resume=run, epochs=5)
    assert epochs(run) == [1, 2, 3, 4, 5]


def test_a_last_line_that_only_lacks_its_end_is_kept(run):
    write(run, *lines(run), end=b"")
    train(resume=run, epochs=5)
    assert epochs(run) == [1, 2, 3, 4, 5]
    write(run, *lines(run), end=b"")
    json_files.append_jsonl(run / "metrics.jsonl", {"epoch": 6})
    assert epochs(run) == [1, 2, 3, 4, 5, 6]
