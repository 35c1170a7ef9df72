"""Tests of metrics.jsonl where a run goes on: rows that are no rows are refused and named, lost ones stay lost."""
import pytest
from hostile import copied, digests, refused_command

from pyro_advbnn.system import json_files
from pyro_advbnn.train import train

MALFORMED = "malformed files refused or read right"
WAY_ON = "; mend or remove the line, or move the file away to go on without its rows"


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


NO_ROWS = {                                              # the third line, what is said of it
    "no JSON": (b"garbage", "expected a row in JSON, found 'garbage'"),
    "cut short": (b'{"epoch": 3, "nl', """found '{"epoch": 3, "nl'"""),
    "empty": (b"", "expected a row in JSON, found ''"),
    "binary": (b"\xff\xfe\0\x1b[2J", "expected a row in JSON, found "),
    "a text": (b'"epoch 3"', "found '\"epoch 3\"'"),
    "a list": (b"[3]", "found '[3]'"),
    "no epoch": (b'{"nll": 1.5}', "expected a row with an epoch, found {'nll': 1.5}"),
    "epoch true": (b'{"epoch": true}', "expected a row with an epoch, found {'epoch': True}"),
}


@pytest.mark.parametrize("kind", NO_ROWS)
def test_what_is_no_row_is_refused_before_any_work_with_file_line_and_the_way_on(run, capsys, kind, tally):
    line, says = NO_ROWS[kind]
    first, second, _, last = lines(run)
    write(run, first, second, line, last)
    before = digests(run)
    told = refused_command(capsys, train, "--resume", run, "--epochs", "5")
    assert told.startswith(f"error: {run / 'metrics.jsonl'}, line 3: ") and says in told and told.endswith(WAY_ON + "\n")
    assert digests(run) == before
    tally(MALFORMED)


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
