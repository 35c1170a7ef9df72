"""Tests of locks: one process in a folder, who has it, and what becomes of the lock of one that died."""
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from tiny_runs import TINY, run, snapshot, words
from victims import Victim

from pyro_advbnn import evaluate, reproduce
from pyro_advbnn.cli import commands
from pyro_advbnn.system import locks
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.train import train
from pyro_advbnn.training import run_folders

ROOT = Path(__file__).parents[2]
SMOKE = ["fig4", "--epochs", "1", "--num_train", "100", "--num_test", "20", "--width", "4"]
ACCURACY = ["--epsilons", "0", "--num_samples", "2", "--num_test", "20", "--device", "cpu"]


def refusal(capsys, verbs, *line):
    """The one line with which the command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        commands.run(verbs, [str(word) for word in line])
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    return err


def left_by(folder, host=None, pid=12345):
    """The lock of a process that nothing holds any more."""
    path = Path(folder) / locks.NAME
    path.write_text(json.dumps({"pid": pid, "host": host or socket.gethostname(), "since": "yesterday", "command": "train"}))
    return path


def test_a_second_taker_is_refused_with_the_owners_process_host_and_command_until_it_is_released(tmp_path):
    with locks.take(tmp_path) as lock:
        assert lock.notice is None and lock.path.exists()
        with pytest.raises(InputError) as refused:
            locks.take(tmp_path)
        for text in (f"process {os.getpid()} on {socket.gethostname()}", "pytest", "wait for its end"):
            assert text in str(refused.value)
        assert os.listdir(tmp_path) == [locks.NAME]
    assert os.listdir(tmp_path) == []
    locks.take(tmp_path).release()


def test_the_lock_of_a_dead_process_is_taken_over_with_a_notice_also_where_its_number_is_in_use_again(tmp_path):
    left_by(tmp_path, pid=os.getpid())
    with locks.take(tmp_path) as lock:
        assert f"process {os.getpid()} on {socket.gethostname()} (train, since yesterday) has ended" in lock.notice
        with pytest.raises(InputError, match="in use"):
            locks.take(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["other host", "", "{", "[1]", '{"pid": 1}', 9_999 * "["])
def test_a_lock_of_which_nothing_can_be_known_is_refused_with_the_file_to_delete(tmp_path, content):
    path = left_by(tmp_path, "elsewhere.example") if content == "other host" else tmp_path / locks.NAME
    if content != "other host":
        path.write_text(content)
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"delete {path}") as refused:
        locks.take(tmp_path)
    assert ("on elsewhere.example" in str(refused.value)) == (content == "other host")
    if content != "other host":
        assert str(refused.value) == (
            f"{path} cannot be read (its content is not what a lock says): it is the lock of {tmp_path} and should name the "
            f"process that works there; if no process works there, delete {path}")
    assert path.read_bytes() == before and not locks.is_left_behind(tmp_path)


def test_a_lock_that_says_nothing_and_is_held_is_waited_for_and_a_folder_in_its_place_is_named(tmp_path):
    with locks.take(tmp_path) as lock:
        lock.path.write_text("garbage")
        with pytest.raises(InputError, match="a process has it open: wait for its end$"):
            locks.take(tmp_path)
    lock.path.mkdir()
    with pytest.raises(InputError, match=rf"{lock.path} cannot be read \(Is a directory\).*delete {lock.path}$"):
        locks.take(tmp_path)


def test_of_many_that_take_over_at_once_one_alone_gets_in(tmp_path, tally):
    def take(barrier, taken):
        barrier.wait()
        with suppress(InputError):
            taken.append(locks.take(tmp_path))

    for round_ in range(60):
        if round_ % 2:
            left_by(tmp_path)
        barrier, taken = threading.Barrier(8), []
        takers = [threading.Thread(target=take, args=(barrier, taken)) for _ in range(8)]
        for taker in takers:
            taker.start()
        for taker in takers:
            taker.join()
        assert len(taken) == 1
        taken[0].release()
        assert os.listdir(tmp_path) == []
        tally("races for a lock with one winner")


def test_a_forked_child_that_outlives_its_parent_does_not_keep_the_lock(tmp_path):
    code = ("import os, signal, sys, time\n"
            "from pyro_advbnn.system import locks\nlock = locks.take(sys.argv[1])\npid = os.fork()\n"
            "if pid == 0:\n    os.write(1, b'ready')\n    time.sleep(600)\nos.write(1, f'{pid} '.encode())\ntime.sleep(600)\n")
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}) as parent:
        said = b""
        while b"ready" not in said or b" " not in said:
            said += os.read(parent.stdout.fileno(), 100)
        child = int(said.replace(b"ready", b""))
        try:
            with pytest.raises(InputError, match=f"process {parent.pid} on"):
                locks.take(tmp_path)
            parent.kill()
            parent.wait()
            with locks.take(tmp_path) as lock:
                assert f"process {parent.pid}" in lock.notice
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_lock_that_another_has_put_in_its_place_is_not_taken_away(tmp_path):
    lock = locks.take(tmp_path)
    lock.path.unlink()
    path = left_by(tmp_path, "elsewhere.example")
    lock.release()
    assert path.exists()


def test_a_run_that_is_being_trained_is_not_resumed_and_after_its_death_is_with_a_notice(tmp_path, capsys):
    folder = tmp_path / "run"
    victim = Victim("pyro_advbnn.train:train", [*words(TINY), "--out", folder], tmp_path / "out", ("torch.save", 3, "hang"))
    victim.wait_for(victim.hangs.exists)
    before = snapshot(folder)
    assert f"is in use by process {victim.process.pid} on" in refusal(capsys, train, "--resume", folder)
    assert "is not overwritten" in refusal(capsys, train, *words(TINY), "--out", folder)
    assert snapshot(folder) == before
    train(resume=folder, dry_run=True)                   # writes nothing and may look
    assert snapshot(folder) == before
    victim.process.kill()
    assert victim.end() == -9
    train(resume=folder)
    assert f"process {victim.process.pid} on" in (out := capsys.readouterr().out) and "has ended" in out
    assert {path.name for path in folder.iterdir()} == {"config.json", "metrics.jsonl", "checkpoint.pt", "best.pt"}


def test_a_run_of_another_host_is_not_resumed(tmp_path, capsys):
    folder = run(tmp_path / "run", defense="none", epochs=1)
    path = left_by(folder, "elsewhere.example")
    before = snapshot(folder)
    err = refusal(capsys, train, "--resume", folder, "--epochs", 2)
    assert "elsewhere.example" in err and f"delete {path}" in err
    assert snapshot(folder) == before
    path.unlink()
    train(resume=folder, epochs=2)
    assert run_folders.is_finished(folder) and not path.exists()


def test_a_new_folder_in_which_another_process_is_making_a_run_is_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    with locks.take(folder):
        assert "is in use by process" in refusal(capsys, train, *words(TINY), "--out", folder)
        assert os.listdir(folder) == [locks.NAME]


def test_results_take_one_evaluation_at_a_time_and_no_way_out_leaves_a_lock(tmp_path, capsys, monkeypatch):
    folder = run(tmp_path / "run", defense="none", epochs=1)
    before = snapshot(folder)
    line = ["accuracy", "--run", folder, *ACCURACY]
    with locks.held(folder / "evaluation"):
        assert f"{folder / 'evaluation'} is in use by process" in refusal(capsys, evaluate.VERBS, *line)
    assert snapshot(folder) == before and not (folder / "evaluation").exists()
    assert "--network vgg16 is not the run's" in refusal(capsys, evaluate.VERBS, *line, "--network", "vgg16")
    assert not (folder / "evaluation").exists()
    monkeypatch.setattr(evaluate.evidence, "white_box", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit):
        commands.run(evaluate.VERBS, list(map(str, line)))
    assert not (folder / "evaluation").exists()
    monkeypatch.undo()
    commands.run(evaluate.VERBS, list(map(str, line)))
    assert {path.name for path in (folder / "evaluation").iterdir()} == {"accuracy.csv", "log.jsonl"}


def test_every_command_that_takes_over_the_lock_of_a_dead_process_says_so_once(tmp_path, capsys, a_run):
    results, out = tmp_path / "results" / "evaluation", tmp_path / "out"
    for folder, verbs, line in ((a_run, train, ["--resume", a_run, "--epochs", 2]),
                                (results, evaluate.VERBS, ["accuracy", "--run", a_run, "--out", results.parent, *ACCURACY]),
                                (out, reproduce.VERBS, [*SMOKE, "--out", out, "--max_minutes", "1e-9"])):
        folder.mkdir(parents=True, exist_ok=True)
        path = left_by(folder)
        commands.run(verbs, list(map(str, line)))
        assert capsys.readouterr().out.count(f"note: {path} is taken over: process 12345 on") == 1 and not path.exists()


@pytest.mark.parametrize("verb", evaluate.VERBS)
def test_every_verb_of_evaluate_asks_for_the_results_folder(capsys, verb, a_run):
    with locks.held(a_run / "evaluation"):
        assert "is in use by process" in refusal(capsys, evaluate.VERBS, verb, "--run", a_run)


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    return run(tmp_path_factory.mktemp("a") / "run", defense="bnn", epochs=1)


def test_a_reproduction_is_alone_in_its_folder_and_a_dry_one_locks_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    with locks.held(out):
        assert f"{out} is in use by process" in refusal(capsys, reproduce.VERBS, *SMOKE, "--out", out)
        commands.run(reproduce.VERBS, [*SMOKE, "--out", str(out), "--dry_run"])
        assert os.listdir(out) == [locks.NAME]
    commands.run(reproduce.VERBS, [*SMOKE, "--out", str(out), "--dry_run"])
    assert not out.exists()
    commands.run(reproduce.VERBS, [*SMOKE, "--out", str(out), "--max_minutes", "1e-9"])
    assert os.listdir(out) == ["reproduce.jsonl"]


def test_the_lock_of_a_training_and_that_of_an_evaluation_do_not_exclude_each_other(tmp_path):
    folder = run(tmp_path / "run", defense="none", epochs=1)
    with locks.take(folder):
        commands.run(evaluate.VERBS, ["accuracy", "--run", str(folder), *ACCURACY])
    assert (folder / "evaluation/accuracy.csv").exists()
    with locks.held(folder / "evaluation"):
        train(resume=folder, epochs=2)
    assert run_folders.is_finished(folder)
