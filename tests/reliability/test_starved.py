"""Tests of disks that are full, read-only or gone: one line, exit code 2, the last checkpoint as it was, and a way on."""
import contextlib
import os
import shutil
import subprocess

import pytest
from tiny_runs import TINY, assert_same_run, content, run, snapshot, words

from pyro_advbnn import evaluate
from pyro_advbnn.cli import commands
from pyro_advbnn.reporting import csv_tables
from pyro_advbnn.train import train
from pyro_advbnn.training import loop, run_folders

FLAGS = TINY | {"defense": "advbnn"}
FILES = {".lock", "config.json", "metrics.jsonl", "checkpoint.pt", "best.pt"}
EVALUATE = ["--epsilons", "0,0.1", "--num_steps", "2", "--num_samples", "2", "--num_test", "40", "--device", "cpu"]


class Disk:
    """A real file system in memory of 1 MiB, mounted at `path`."""

    def __init__(self, path):
        self.path = path

    def fill(self, leave):
        """Leave so many bytes free, in whole pages."""
        self.free()
        with (self.path / "filler").open("wb") as file, contextlib.suppress(OSError):
            file.write(bytes(shutil.disk_usage(self.path).free))
            file.flush()
        os.truncate(self.path / "filler", (self.path / "filler").stat().st_size - leave)

    def free(self):
        (self.path / "filler").unlink(missing_ok=True)

    def writable(self, yes):
        subprocess.run(["mount", "-o", f"remount,{'rw' if yes else 'ro'}", self.path], check=True)


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    if shutil.which("mount") is None or subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True
    ).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield Disk(path)
    subprocess.run(["umount", "-l", path], check=True)


def outcome(capsys, verbs, *line):
    """The exit code of a command, and its one line where it is refused."""
    capsys.readouterr()
    code = 0
    try:
        commands.run(verbs, [str(word) for word in line])
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code in (0, 2) and err.count("\n") == bool(code) and err.startswith("error: " if code else "")
    return code, err


def test_a_training_on_a_full_disk_keeps_its_checkpoint_and_goes_on_when_there_is_room(tmp_path, disk, capsys):
    whole, folder = run(tmp_path / "whole", **FLAGS), disk.path / "run"
    run(folder, **FLAGS, max_minutes=1e-9)
    size, failed = (folder / "checkpoint.pt").stat().st_size, 0
    for leave in (0, 4096, 8192, size // 2, size, size + 4096, size + 8192, size + 12288):
        disk.fill(leave)
        before = content(folder)["training"]
        code, err = outcome(capsys, train, "--resume", folder, "--max_minutes", 1e-9)
        assert content(folder)["training"]["steps_done"] >= before["steps_done"] or not code
        if code:
            assert "No space left on device" in err and str(folder) in err
            assert {path.name for path in folder.iterdir()} <= FILES
            failed += 1
    assert failed >= 4
    disk.free()
    if not run_folders.is_finished(folder):
        train(resume=folder)
    assert_same_run(whole, folder)


def test_a_disk_that_fills_during_a_training_names_the_way_on(tmp_path, disk, capsys, monkeypatch):
    real, folder = loop.accuracies, disk.path / "run"

    def fill(*arguments, **more):                        # at the end of the first epoch
        disk.fill(0)
        return real(*arguments, **more)

    monkeypatch.setattr(loop, "accuracies", fill)
    code, err = outcome(capsys, train, *words(FLAGS), "--out", folder)
    assert code == 2 and "best.pt: No space left on device; when that is mended, go on with --resume" in err
    monkeypatch.undo()
    disk.free()
    train(resume=folder)
    assert_same_run(run(tmp_path / "whole", **FLAGS), folder)


def test_a_new_run_on_a_full_disk_leaves_nothing_or_a_run_that_can_begin(disk, capsys):
    for leave in (0, 4096, 16384):
        disk.fill(leave)
        code, err = outcome(capsys, train, *words(FLAGS), "--out", disk.path / "run")
        assert code == 2 and "No space left on device" in err
        assert os.listdir(disk.path) == ["filler"] or (disk.path / "run" / "config.json").exists()
        shutil.rmtree(disk.path / "run", ignore_errors=True)


def test_an_evaluation_on_a_full_disk_keeps_its_rows_and_goes_on(tmp_path, disk, capsys):
    folder, out, failed = run(tmp_path / "run", defense="none", epochs=1), disk.path / "out", 0
    line = ["accuracy", "--run", folder, *EVALUATE, "--out"]
    commands.run(evaluate.VERBS, list(map(str, [*line, tmp_path / "whole"])))
    for leave in (0, 4096, 12288, 16384, 20480, 65536):
        known = csv_tables.read(out, "accuracy")
        disk.fill(leave)
        code, err = outcome(capsys, evaluate.VERBS, *line, out)
        assert csv_tables.read(out, "accuracy")[: len(known)] == known
        assert {path.name for path in out.rglob(".*")} <= {".lock"}
        if code:
            assert "No space left on device" in err and str(out) in err
            failed += 1
    assert failed >= 3
    disk.free()
    commands.run(evaluate.VERBS, list(map(str, [*line, out])))
    assert (out / "evaluation" / "accuracy.csv").read_bytes() == (tmp_path / "whole/evaluation/accuracy.csv").read_bytes()
    assert {path.name for path in (out / "figures").iterdir()} == {path.name for path in (tmp_path / "whole/figures").iterdir()}


def test_a_read_only_disk_is_refused_before_any_work_and_stays_as_it_is(disk, capsys, monkeypatch):
    folder = run(disk.path / "run", **FLAGS, max_minutes=1e-9)
    before = snapshot(disk.path)
    disk.writable(False)
    monkeypatch.setattr(loop, "run", lambda *_: pytest.fail("trained"))
    for line in [*words(FLAGS), "--out", disk.path / "new"], ["--resume", folder]:
        code, err = outcome(capsys, train, *line)
        assert code == 2 and ("cannot be written" in err or "Read-only" in err) and str(disk.path) in err
    code, err = outcome(capsys, evaluate.VERBS, "accuracy", "--run", folder, *EVALUATE)
    assert code == 2 and "cannot be written" in err
    assert snapshot(disk.path) == before
    monkeypatch.undo()
    disk.writable(True)
    train(resume=folder, max_minutes=1e-9)
    assert content(folder)["training"]["steps_done"] == 2


def test_a_folder_that_vanishes_during_a_training_ends_it_in_one_line(tmp_path, capsys, monkeypatch):
    real, folder = loop.accuracies, tmp_path / "run"

    def vanish(*arguments, **more):
        shutil.rmtree(folder, ignore_errors=True)
        return real(*arguments, **more)

    monkeypatch.setattr(loop, "accuracies", vanish)
    code, err = outcome(capsys, train, *words(FLAGS), "--out", folder)
    assert code == 2 and f"No such file or directory; {folder} holds no run any more" in err
    assert os.listdir(tmp_path) == []
