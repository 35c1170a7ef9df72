"""Tests of metrics.jsonl where a run goes on: rows that are no rows are refused and named, lost ones are noted."""
import json

import pytest
from hostile import copied, digests, refused, refused_command

from pyro_advbnn.reporting import report
from pyro_advbnn.system import json_files
from pyro_advbnn.train import train
from pyro_advbnn.training import metrics

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


def said_when_it_goes_on(run, capsys, number=5):
    capsys.readouterr()
    train(resume=run, epochs=number)
    return capsys.readouterr().out


NO_ROWS = {                                              # the third line, what is said of it
    "no JSON": (b"garbage", "expected a row in JSON, found 'garbage'"),
    "cut short": (b'{"epoch": 3, "nl', """found '{"epoch": 3, "nl'"""),
    "empty": (b"", "expected a row in JSON, found ''"),
    "binary": (b"\xff\xfe\0\x1b[2J", "expected a row in JSON, found "),
    "a text": (b'"epoch 3"', "found '\"epoch 3\"'"),
    "a list": (b"[3]", "found '[3]'"),
    "no epoch": (b'{"nll": 1.5}', "expected a row with an epoch, found {'nll': 1.5}"),
    "epoch 0": (b'{"epoch": 0}', "expected a row with an epoch, found {'epoch': 0}"),
    "epoch true": (b'{"epoch": true}', "expected a row with an epoch, found {'epoch': True}"),
    "epoch 3.0": (b'{"epoch": 3.0}', "expected a row with an epoch, found {'epoch': 3.0}"),
    "an epoch twice": (b'{"epoch": 2}', "epoch 2 stands twice"),
    "out of order": (b'{"epoch": 1}', "epoch 1 stands behind epoch 2"),
    "NaN": (b'{"epoch": 3, "nll": NaN}', "nll must be a number, got nan"),
    "too large": (b'{"epoch": 3, "nll": 1e999}', "nll must be a number, got inf"),
    "digits": (b'{"epoch": 3, "nll": ' + b"1" * 400 + b"}", f"nll must be a number, got {'1' * 60}"),
    "no number": (b'{"epoch": 3, "kl": "1.5"}', "kl must be a number, got '1.5'"),
    "a truth": (b'{"epoch": 3, "": true}', " must be a number, got True"),
}


@pytest.mark.parametrize("kind", NO_ROWS)
def test_what_is_no_row_is_refused_before_any_work_with_file_line_and_the_way_on(run, capsys, kind, tally):
    line, says = NO_ROWS[kind]
    first, second, _, last = lines(run)
    write(run, first, second, line, last)
    before = digests(run)
    for words in (["--epochs", "5"], ["--epochs", "5", "--dry_run"]):
        told = refused_command(capsys, train, "--resume", run, *words)
        assert told.startswith(f"error: {run / 'metrics.jsonl'}, line 3: ") and says in told and told.endswith(WAY_ON + "\n")
        assert digests(run) == before
        tally(MALFORMED)


@pytest.mark.parametrize("way", ["move the file away", "remove the line", "mend the line"])
def test_every_way_on_that_is_named_leads_on(run, capsys, way):
    first, second, third, last = lines(run)
    write(run, first, second, b"garbage", last)
    refused_command(capsys, train, "--resume", run, "--epochs", "5")
    if way == "move the file away":
        (run / "metrics.jsonl").rename(run / "moved")
    else:
        write(run, first, second, *([third] if way == "mend the line" else []), last)
    lost = {"move the file away": "1 to 4", "remove the line": "3"}.get(way)
    said = said_when_it_goes_on(run, capsys)
    assert (f"note: {run / 'metrics.jsonl'} lacks the rows of epochs {lost}, which are done" in said) == (lost is not None)
    assert ("lacks the rows" in said) == (lost is not None)
    assert epochs(run) == {"move the file away": [5], "remove the line": [1, 2, 4, 5]}.get(way, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("cut", [b'{"epoch": 5, "nll": 2.', b'{"epoch": 5, "nll"\0\xff\xff', b"5"])
def test_a_last_line_that_a_crash_cut_short_is_dropped_where_its_epoch_is_done_again(run, capsys, cut):
    write(run, *lines(run), cut, end=b"")
    assert "lacks the rows" not in said_when_it_goes_on(run, capsys)
    assert epochs(run) == [1, 2, 3, 4, 5]


def test_a_last_line_that_was_cut_short_is_noted_where_its_epoch_is_not_done_again(run, capsys):
    *others, last = lines(run)
    write(run, *others, last[:50], end=b"")
    assert "lacks the rows of epochs 4, which are done" in said_when_it_goes_on(run, capsys)
    assert epochs(run) == [1, 2, 3, 5]


def test_a_last_line_that_only_lacks_its_end_is_kept(run, capsys):
    write(run, *lines(run), end=b"")
    assert "lacks the rows" not in said_when_it_goes_on(run, capsys)
    assert epochs(run) == [1, 2, 3, 4, 5]
    write(run, *lines(run), end=b"")
    json_files.append_jsonl(run / "metrics.jsonl", {"epoch": 6})
    assert epochs(run) == [1, 2, 3, 4, 5, 6]


def test_rows_that_are_gone_are_named_and_the_training_goes_on(run, capsys):
    rows = lines(run)
    for there, lost in {(): "1 to 4", (0,): "2 to 4", (3,): "1 to 3", (1, 2): "1, 4", (0, 2): "2, 4", (0, 1, 2, 3): ""}.items():
        write(run, *(rows[i] for i in there), end=b"\n" if there else b"")
        assert metrics.missing(run, 4) == lost
    assert metrics.missing(run, 0) == ""
    (run / "metrics.jsonl").unlink()
    assert "lacks the rows of epochs 1 to 4, which are done; they stay missing" in said_when_it_goes_on(run, capsys)
    assert "lacks the rows of epochs 1 to 4, which are done; they stay missing" in said_when_it_goes_on(run, capsys, 6)
    assert epochs(run) == [5, 6]


def test_a_new_run_and_one_that_goes_on_whole_are_told_of_no_loss(run, capsys, tmp_path):
    assert "note: " not in said_when_it_goes_on(run, capsys)


def test_rows_of_a_newer_version_may_hold_more_numbers(run, capsys):
    rows = [json.loads(line) | {"a_new_one": None, "another": 2} for line in lines(run)]
    json_files.write_jsonl(run / "metrics.jsonl", rows)
    assert "lacks" not in said_when_it_goes_on(run, capsys)
    assert json_files.read_jsonl(run / "metrics.jsonl")[:4] == rows


def test_tensorboard_keeps_showing_the_epochs_whose_rows_are_gone(run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(resume=run, epochs=5, tensorboard=True)
    (run / "metrics.jsonl").unlink()
    train(resume=run, epochs=6)
    events = accumulator.EventAccumulator(str(run))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/nll")] == [1, 2, 3, 4, 5, 6] and epochs(run) == [6]


@pytest.mark.parametrize("line", [b"garbage", b"\xff", b"[1]", b""])
def test_a_report_names_the_line_that_is_no_row_and_one_of_a_run_that_lost_its_rows_is_written(run, line, tally):
    write(run, lines(run)[0], line)
    assert refused(report.write, run).startswith(f"{run / 'metrics.jsonl'}, line 2: expected a row in JSON, found ")
    (run / "metrics.jsonl").unlink()
    assert "last epoch" in report.write(run).read_text()
    tally(MALFORMED)
