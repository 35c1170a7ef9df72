"""Tests of runs of released versions: each loads, evaluates and goes on as it did then; newer ones are refused in one line."""
import shutil
from pathlib import Path

import pytest
import torch

import pyro_advbnn as ab
from pyro_advbnn import evaluate
from pyro_advbnn.cli import commands
from pyro_advbnn.reporting import csv_tables
from pyro_advbnn.system import json_files
from pyro_advbnn.train import train
from pyro_advbnn.training import checkpoints, run_folders

# Left by the command train of that version in the middle of epoch 5 of 12; the figures below are that version's own.
FIXTURE = Path(__file__).parents[1] / "fixtures" / "run-0.1.0"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def old(tmp_path):
    return shutil.copytree(FIXTURE, tmp_path / "run-0.1.0")


def test_its_checkpoint_gives_the_logits_that_it_gave_then():
    logits = ab.load(FIXTURE / "best.pt").mean_network()(torch.linspace(0, 1, 64).reshape(1, 1, 8, 8))
    assert logits.tolist()[0] == pytest.approx([
        0.5549386, 0.1919290, -0.2757743, -0.4692143, -0.3368522, -1.2597954, 1.7471718, -1.9824337, -0.0433241, -1.8218303],
        abs=1e-4)


def test_it_is_evaluated_with_the_rows_of_then(old):
    commands.run(evaluate.VERBS, ["accuracy", "--run", str(old), "--epsilons", "0,0.1", "--num_steps", "3", "--num_samples",
                             "5",
                             "--num_test", "200", "--device", "cpu"])
    rows = csv_tables.read(old, "accuracy")
    assert [row["weights"] for row in rows] == ["4f71c006d632"] * 2
    assert [row["accuracy"] for row in rows] == pytest.approx([0.57, 0.375], abs=0.02)


def test_it_goes_on_in_the_middle_of_its_epoch_and_ends_as_it_would_have(old):
    train(resume=old)
    assert run_folders.is_finished(old)
    rows = json_files.read_jsonl(old / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert rows[:4] == json_files.read_jsonl(FIXTURE / "metrics.jsonl")
    assert rows[4]["nll"] == pytest.approx(1.5406949, rel=1e-3)


def test_one_that_was_left_before_its_first_checkpoint_starts_again(old, capsys):
    for name in ("checkpoint.pt", "best.pt", "metrics.jsonl"):
        (old / name).unlink()                            # 0.1.0 wrote its config long before its first checkpoint
    with pytest.raises(SystemExit):
        commands.run(evaluate.VERBS, ["accuracy", "--run", str(old)])
    assert capsys.readouterr().err == f"error: {old} has no checkpoint yet\n"
    train(resume=old, max_minutes=1e-9)
    assert f"{old} has trained nothing yet and starts from the beginning" in capsys.readouterr().out
    assert run_folders.has_begun(old)


def test_a_run_at_its_start_is_not_evaluated(tmp_path, capsys, old):
    content = checkpoints.read(old)
    content["training"] |= {"epochs_done": 0, "steps_done": 0}
    (old / "best.pt").unlink()
    torch.save(content, old / "checkpoint.pt")
    with pytest.raises(SystemExit) as end:
        commands.run(evaluate.VERBS, ["accuracy", "--run", str(old)])
    assert end.value.code == 2 and not (old / "evaluation").exists()
    assert capsys.readouterr().err == f"error: {old} has trained nothing yet: its checkpoint is that of its start\n"


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_a_newer_format_gets_one_line(old, capsys, command):
    for name in ("checkpoint.pt", "best.pt"):
        torch.save(checkpoints.read(old / name) | {"format": checkpoints.FORMAT + 1}, old / name)
    with pytest.raises(SystemExit) as end:
        if command == "train":
            commands.run(train, ["--resume", str(old)])
        else:
            commands.run(evaluate.VERBS, ["accuracy", "--run", str(old)])
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    assert f"has format {checkpoints.FORMAT + 1}; this version reads up to {checkpoints.FORMAT}" in err
