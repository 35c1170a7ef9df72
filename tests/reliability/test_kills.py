"""Tests of what SIGKILL leaves: always a checkpoint to go on from, and in the end what a run in one piece would have left."""
import random
import shutil
import time

import pytest
import torch
from tiny_runs import TINY, assert_same_run, metrics, words
from victims import Victim

from pyro_advbnn import evaluate
from pyro_advbnn.cli import commands
from pyro_advbnn.train import train
from pyro_advbnn.training import checkpoints, run_folders

FLAGS = {**TINY, "augmentation": "crop_flip", "epochs": 3}
PLACES = ("os.fsync", "os.replace", "torch.save")
EVALUATE = ["--epsilons", "0,0.1,0.2", "--num_steps", 2, "--num_samples", 2, "--num_test", 60, "--device", "cpu"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in one piece, and the seconds of it; on one thread, as those that are killed."""
    folder, threads = tmp_path_factory.mktemp("whole") / "run", torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.monotonic()
    train(**FLAGS, out=folder)
    torch.set_num_threads(threads)
    return folder, time.monotonic() - began


def a_fault(chance, most):
    """A place to be killed at: a call of a function, before, after or inside it."""
    place = chance.choice(PLACES)
    when = chance.choice(["before", "after", *(["inside"] * 2 if place == "torch.save" else [])])
    return place, chance.randint(1, most), when


def killed(verbs, line, out, fault, seconds):
    """Whether the command was killed, by its fault or after a time; it must not end otherwise than well."""
    victim = Victim(verbs, line, out, fault, every_step=verbs.endswith(":train"))
    if fault is None:
        time.sleep(seconds)
        victim.process.kill()                            # unless it has ended
    code = victim.end()
    assert code in (0, -9), victim.said()
    return code == -9


def check_folder(folder):
    """A run folder, if there is one, has a config, and a checkpoint that loads or is still to come; whether there is one."""
    if not (folder / "config.json").exists():
        assert not any(folder.glob("*.pt"))
        return False
    config = run_folders.read_config(folder)
    if not run_folders.has_checkpoint(folder):
        return True
    content = checkpoints.read(folder)
    done, lines = content["training"]["epochs_done"], [row["epoch"] for row in metrics(folder)]
    assert content["config"]["seed"] == config["seed"]
    assert lines in (list(range(1, done + 1)), list(range(1, done + 2)))     # the row comes before the checkpoint
    return True


def trainings(folder, whole, kills, seed):
    """Kill trainings until `kills` have been; each ends as the whole run."""
    whole, seconds = whole
    chance, count, number = random.Random(seed), 0, 0
    while count < kills:
        run, number, mine = folder / f"run{number}", number + 1, 0
        while mine < 12 and count < kills:
            line = ["--resume", run] if check_folder(run) else [*words(FLAGS), "--out", run]
            fault = a_fault(chance, 16) if chance.random() < 0.7 else None
            if not killed("pyro_advbnn.train:train", line, folder / "out", fault, chance.uniform(0, 1.2 * seconds)):
                break
            mine, count = mine + 1, count + 1
            if check_folder(run) and run_folders.is_finished(run):
                break                                    # killed at the very end: there is nothing to go on with
        if not check_folder(run):
            train(**FLAGS, out=run)
        elif not run_folders.is_finished(run):
            train(resume=run)
        assert_same_run(whole, run)
        left = {path.name for path in run.iterdir()} - {".lock-owner"}   # that of one that was killed at its very end
        assert left == {".lock", "config.json", "metrics.jsonl", "checkpoint.pt", "best.pt"}
        assert [row["epoch"] for row in metrics(run)] == [1, 2, 3]


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.torture)])
def test_a_training_that_is_killed_again_and_again_ends_as_the_run_in_one_piece(tmp_path, whole, kills, one_thread):
    trainings(tmp_path, whole, kills, seed=kills)


@pytest.mark.parametrize("when", ["before", "inside", "after"])
def test_killed_while_it_writes_its_first_file_a_run_can_still_be_trained(tmp_path, when, one_thread):
    run = tmp_path / "run"
    assert killed("pyro_advbnn.train:train", [*words(FLAGS), "--out", run], tmp_path / "out", ("torch.save", 1, when), 0)
    assert check_folder(run) and not run_folders.has_checkpoint(run)
    train(resume=run)
    assert check_folder(run) and run_folders.is_finished(run)


def evaluations(folder, run, kills, seed):
    """Kill evaluations until `kills` have been; each ends with the same rows as one in one piece."""
    commands.run(evaluate.VERBS, ["accuracy", "--run", str(run), "--out", str(folder / "whole"), *map(str, EVALUATE)])
    expected = (folder / "whole" / "evaluation" / "accuracy.csv").read_bytes()
    chance, count, number = random.Random(seed), 0, 0
    while count < kills:
        out, number = folder / f"out{number}", number + 1
        line = ["accuracy", "--run", run, "--out", out, *EVALUATE]
        while count < kills:
            fault = a_fault(chance, 3) if chance.random() < 0.7 else None
            fault = fault if fault and fault[0] in ("os.fsync", "os.replace") else None
            if not killed("pyro_advbnn.evaluate:VERBS", line, folder / "said", fault, chance.uniform(0, 1)):
                break
            count += 1
            table = out / "evaluation" / "accuracy.csv"
            assert not table.exists() or expected.startswith(table.read_bytes())
        commands.run(evaluate.VERBS, list(map(str, line)))
        assert (out / "evaluation" / "accuracy.csv").read_bytes() == expected
        shutil.rmtree(out)


@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.torture)])
def test_an_evaluation_that_is_killed_loses_and_doubles_no_row(tmp_path, whole, kills, one_thread):
    evaluations(tmp_path, whole[0], kills, seed=kills)
