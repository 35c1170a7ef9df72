"""Tests of locks: one process in a folder, who has it, and what becomes of the lock of one that died."""
import os
import shutil
import socket

import pytest
from hostile import refused_command
from tiny_runs import TINY, run, snapshot, words
from victims import Victim

from pyro_advbnn import evaluate, reproduce
from pyro_advbnn.cli import commands
from pyro_advbnn.experiments import accuracy_verbs
from pyro_advbnn.system import locks
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.train import train

SMOKE = ["fig4", "--epochs", "1", "--num_train", "100", "--num_test", "20", "--width", "4"]
ACCURACY = ["--epsilons", "0", "--num_samples", "2", "--num_test", "20", "--device", "cpu"]


def test_a_second_taker_is_refused_with_the_owners_process_host_and_command_until_it_is_released(tmp_path):
    with locks.locked(tmp_path):
        with pytest.raises(InputError) as refused, locks.locked(tmp_path):
            pass
        for text in (f"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}", "pytest", "wait for its end"):
            assert text in str(refused.value)
        (tmp_path / locks.OWNER).unlink()                # as for an instant while a lock is taken
        with pytest.raises(InputError, match="is in use by another process"), locks.locked(tmp_path):
            pass
    with locks.locked(tmp_path):
        assert (tmp_path / locks.OWNER).exists()
    assert os.listdir(tmp_path) == [locks.NAME]


def test_a_folder_is_made_for_a_lock_and_goes_again_where_it_stays_empty(tmp_path):
    folder = tmp_path / "a" / "b"
    with locks.locked(folder):
        assert folder.exists()
    assert os.listdir(tmp_path) == []
    with locks.locked(folder):
        (folder / "kept").touch()
    assert (folder / "kept").exists()


def test_a_folder_that_cannot_be_written_is_refused_and_one_that_vanishes_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written: Not a directory"), locks.locked(tmp_path / "file" / "run"):
        pass
    with locks.locked(tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")


def test_a_run_that_is_being_trained_is_not_resumed_and_after_its_death_is(tmp_path, capsys):
    folder = tmp_path / "run"
    victim = Victim("pyro_advbnn.train:train", [*words(TINY), "--out", folder], tmp_path / "out", ("torch.save", 3, "hang"))
    victim.wait_for(victim.hangs.exists)
    before = snapshot(folder)
    assert f"is in use by process {victim.process.pid} on" in refused_command(capsys, train, "--resume", folder)
    assert "is not overwritten" in refused_command(capsys, train, *words(TINY), "--out", folder)
    assert snapshot(folder) == before
    train(resume=folder, dry_run=True)                   # writes nothing and may look
    assert snapshot(folder) == before
    victim.process.kill()
    assert victim.end() == -9
    train(resume=folder)
    assert {path.name for path in folder.iterdir()} == {".lock", "config.json", "metrics.jsonl", "checkpoint.pt", "best.pt"}


def test_results_take_one_evaluation_at_a_time_and_no_way_out_leaves_a_lock(tmp_path, capsys, monkeypatch):
    folder = run(tmp_path / "run", defense="none", epochs=1)
    before = snapshot(folder)
    line = ["accuracy", "--run", folder, *ACCURACY]
    with locks.locked(folder / "evaluation"):
        assert f"{folder / 'evaluation'} is in use by process" in refused_command(capsys, evaluate.VERBS, *line)
    assert snapshot(folder) == before and not (folder / "evaluation").exists()
    assert "--network vgg16 is not the run's" in refused_command(capsys, evaluate.VERBS, *line, "--network", "vgg16")
    assert not (folder / "evaluation").exists()
    monkeypatch.setattr(accuracy_verbs, "white_box", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit):
        commands.run(evaluate.VERBS, list(map(str, line)))
    assert not (folder / "evaluation").exists()
    monkeypatch.undo()
    commands.run(evaluate.VERBS, list(map(str, line)))
    assert {path.name for path in (folder / "evaluation").iterdir()} == {"accuracy.csv", "log.jsonl", locks.NAME}


@pytest.mark.parametrize("verb", evaluate.VERBS)
def test_every_verb_of_evaluate_asks_for_the_results_folder(capsys, verb, a_run):
    with locks.locked(a_run / "evaluation"):
        assert "is in use by process" in refused_command(capsys, evaluate.VERBS, verb, "--run", a_run)


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    return run(tmp_path_factory.mktemp("a") / "run", defense="bnn", epochs=1)


def test_a_reproduction_is_alone_in_its_folder_and_a_dry_one_locks_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    with locks.locked(out):
        assert f"{out} is in use by process" in refused_command(capsys, reproduce.VERBS, *SMOKE, "--out", out)
        commands.run(reproduce.VERBS, [*SMOKE, "--out", str(out), "--dry_run"])
        assert set(os.listdir(out)) == {locks.NAME, locks.OWNER}
    commands.run(reproduce.VERBS, [*SMOKE, "--out", str(out), "--dry_run"])
    assert not out.exists()
    commands.run(reproduce.VERBS, [*SMOKE, "--out", str(out), "--max_minutes", "1e-9"])
    assert set(os.listdir(out)) == {"reproduce.jsonl", locks.NAME}
