"""Tests of evaluate and evaluation: averaged predictions, rows of accuracy, and what the command prints and refuses."""
import csv
import os
import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn import checkpoints, cli, datasets, evaluate, evaluation, records
from pyro_advbnn.attacks import PGD
from pyro_advbnn.errors import InputError
from pyro_advbnn.train import train

ROOT = Path(__file__).parents[1]
TINY = {"width": 8, "num_train": 520, "validation": 20, "epsilon": 0.05, "num_steps": 1, "epochs": 8, "num_samples": 2,
        "alpha": 0.02, "prior_std": "fan_in", "init_std": "fan_in/4", "learning_rate": 0.01, "batch_size": 25,
        "attack_samples": 1, "device": "cpu"}
QUICK = ["--num_steps", "2", "--num_samples", "2", "--num_test", "50"]


@pytest.fixture(autouse=True)
def validation_as_before():
    yield
    pyro.enable_validation(True)                         # commands turn it off for their process


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(**TINY, out=folder)
    return folder


@pytest.fixture
def run(trained):
    """The trained run, without an evaluation."""
    table = trained / "evaluation" / "accuracy.csv"
    table.unlink(missing_ok=True)
    if table.parent.exists():
        table.parent.rmdir()
    return trained


def accuracy(folder, *words):
    """The rows that the command adds."""
    before = len(rows(folder))
    cli.run({"accuracy": evaluate.accuracy}, ["accuracy", "--run", str(folder), *map(str, words)])
    return rows(folder)[before:]


def rows(folder):
    path = folder / "evaluation" / "accuracy.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without(row, *names):
    return {name: value for name, value in row.items() if name not in names}


def refusal(capsys, *words):
    with pytest.raises(SystemExit) as end:
        cli.run({"accuracy": evaluate.accuracy}, [str(word) for word in words])
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


# The library


class Fixed(nn.Module):
    """Answers each call with the next of some logits."""

    def __init__(self, *logits):
        super().__init__()
        self.logits, self.calls = logits, 0

    def forward(self, x):
        self.calls += 1
        return self.logits[(self.calls - 1) % len(self.logits)]


def test_predictions_average_probabilities_and_not_logits():
    a, b = torch.tensor([[10.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    network = Fixed(a, b)
    expected = (a.softmax(-1) + b.softmax(-1)) / 2
    assert torch.allclose(ab.predict(network, torch.zeros(1, 1), num_samples=2), expected)
    assert network.calls == 2
    assert not torch.allclose(((a + b) / 2).softmax(-1), expected, atol=0.1)


def test_predictions_run_in_eval_mode_and_leave_the_mode_as_it_was():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).train()
    network[2].eval()
    before = network[1].running_mean.clone()
    ab.predict(network, torch.rand(8, 1, 2, 2))
    assert torch.equal(network[1].running_mean, before)
    assert [module.training for module in network] == [True, True, False, True]


def test_no_draws_and_no_images_are_refused():
    with pytest.raises(InputError, match="num_samples must be at least 1, got 0"):
        ab.predict(Fixed(torch.zeros(1, 2)), torch.zeros(1, 1), num_samples=0)
    with pytest.raises(InputError, match="no images"):
        ab.robust_accuracy(Fixed(torch.zeros(1, 2)), [])


def test_the_accuracy_counts_right_answers_over_batches_of_unequal_size():
    logits = torch.tensor([[1.0, 0.0]])
    batches = [(torch.zeros(3, 1), torch.tensor([0, 0, 1])), (torch.zeros(1, 1), torch.tensor([0]))]
    seen = []
    row = ab.robust_accuracy(Fixed(logits), batches, num_samples=1, progress=lambda *done: seen.append(done))
    assert (row["accuracy"], row["num_examples"], row["attack"], row["epsilon"]) == (0.75, 4, "none", 0.0)
    assert (row["accuracy_low"], row["accuracy_high"]) == records.wilson_interval(3, 4)
    assert seen == [(3, 2), (4, 3)]


def test_a_transfer_attack_is_made_on_its_source():
    target, source = Fixed(torch.tensor([[1.0, 0.0]])), nn.Linear(1, 2)
    attacked = []

    def attack(classifier, x, y):
        attacked.append(classifier)
        return x

    row = ab.robust_accuracy(target, [(torch.zeros(1, 1), torch.tensor([0]))], attack, source=source, num_samples=1)
    assert attacked == [source] and row["attack"] == "attack"


def test_the_attack_makes_a_classifier_worse():
    images = datasets.balanced_subset(datasets.load("digits", "train"), 200, 0)
    torch.manual_seed(0)
    classifier = ab.Classifier(ab.networks.convnet(width=8))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
    batches = datasets.batches(images, 50)
    for _ in range(15):
        for x, y in batches:
            ab.train_step(classifier, optimizer, x, y)
    clean = ab.robust_accuracy(classifier, batches, num_samples=1)["accuracy"]
    assert clean > 0.9 and ab.robust_accuracy(classifier, batches, PGD(0.2), num_samples=1)["accuracy"] < clean - 0.3


def test_separate_randomness_is_seeded_inside_and_leaves_the_outside_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with evaluation.separate_randomness(7):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    with evaluation.separate_randomness(7):
        assert torch.equal(torch.rand(3), first)


# The command


def test_a_row_has_every_field_and_agrees_with_the_library(run):
    row, = accuracy(run, "--epsilons", "0.1", *QUICK, "--attack_samples", 3)
    classifier = checkpoints.load(run / "best.pt")
    images = datasets.balanced_subset(datasets.load("digits", "test"), 50, 0)
    with evaluation.separate_randomness(0):
        known = ab.robust_accuracy(classifier, datasets.batches(images, 500), PGD(0.1, None, 2, 3), num_samples=2)
    assert tuple(row) == records.ROW_FIELDS and "" not in row.values()
    assert float(row["accuracy"]) == known["accuracy"]
    assert float(row["accuracy_low"]) == pytest.approx(known["accuracy_low"])
    assert without(row, "accuracy", "accuracy_low", "accuracy_high", "seconds") == {
        "dataset": "digits", "network": "convnet", "defense": "advbnn", "source": "target", "attack": "pgd",
        "epsilon": "0.1", "num_steps": "2", "step_size": "0.125", "attack_samples": "3", "num_samples": "2",
        "seed": "0", "num_examples": "50", "reaches_ball": "true", "checkpoint": str(run / "best.pt")}


@pytest.mark.parametrize(("epsilons", "expected"), [
    ("0:0.07:0.005", [0.005 * i for i in range(15)]), ("0,8/255", [0, 8 / 255]), ("1/10", [0.1]),
    (None, [0, 0.1, 0.2, 0.3]),
])
def test_radii_are_lists_ranges_and_fractions(run, epsilons, expected):
    words = ["--epsilons", epsilons] if epsilons else []
    got = accuracy(run, *words, "--num_steps", 1, "--num_samples", 1, "--num_test", 10)
    assert [float(row["epsilon"]) for row in got] == pytest.approx(expected, rel=1e-8)


def test_rows_are_added_and_equal_seeds_give_equal_rows_but_for_the_seconds(run):
    first = accuracy(run, "--epsilons", "0,0.1", *QUICK)
    before = (run / "evaluation" / "accuracy.csv").read_bytes()
    torch.rand(5)                                        # whatever another process draws before
    second = accuracy(run, "--epsilons", "0,0.1", *QUICK)
    assert (run / "evaluation" / "accuracy.csv").read_bytes().startswith(before)
    assert [without(row, "seconds") for row in first] == [without(row, "seconds") for row in second]
    third = accuracy(run, "--epsilons", "0,0.1", *QUICK, "--seed", 1)
    assert [row["seed"] for row in third] == ["1", "1"]
    assert [row["accuracy"] for row in third] != [row["accuracy"] for row in first]


def test_radius_0_is_the_clean_accuracy(run):
    row, = accuracy(run, "--epsilons", 0, "--num_samples", 3)
    classifier, batches = checkpoints.load(run / "best.pt"), datasets.batches(datasets.load("digits", "test"), 500)
    with evaluation.separate_randomness(0):
        clean = ab.robust_accuracy(classifier, batches, num_samples=3)
    assert (float(row["accuracy"]), int(row["num_examples"])) == (float(f"{clean['accuracy']:.9g}"), 360)


def test_a_radius_of_a_list_gets_the_row_that_it_gets_alone(run):
    together = accuracy(run, "--epsilons", "0,0.05,0.1", *QUICK)
    alone, = accuracy(run, "--epsilons", "0.1", *QUICK)
    assert without(together[2], "seconds") == without(alone, "seconds")


def test_a_step_that_cannot_reach_the_ball_is_told_once_and_marked_in_the_row(run, capsys):
    got = accuracy(run, "--epsilons", "0.01,0.1,0.2", *QUICK, "--step_size", 0.007)
    assert [row["reaches_ball"] for row in got] == ["true", "false", "false"]
    out = capsys.readouterr().out
    assert out.count("cannot reach the border") == 1 and "radius 0.1, 0.2" in out
    row, = accuracy(run, "--epsilons", "0.2", *QUICK, "--step_size", "auto")
    assert row["reaches_ball"] == "true"
    assert "cannot reach" not in capsys.readouterr().out


def test_last_and_best_are_different_checkpoints(run):
    last, = accuracy(run, "--epsilons", "0", *QUICK, "--checkpoint", "last")
    best, = accuracy(run, "--epsilons", "0", *QUICK)
    assert (last["checkpoint"], best["checkpoint"]) == (str(run / "checkpoint.pt"), str(run / "best.pt"))


def test_the_table_shows_the_interval_and_the_draws(run, capsys):
    accuracy(run, "--epsilons", "0,0.1", *QUICK)
    header, *lines = capsys.readouterr().out.splitlines()
    for title in ("epsilon", "accuracy %", "steps x size", "reaches ball", "attack draws", "draws", "images"):
        assert title in header
    assert len(lines) == 3 and "[" in lines[0] and lines[2] == f"added to {run / 'evaluation' / 'accuracy.csv'}"


def test_only_the_test_split_is_opened(run, monkeypatch):
    real, opened = datasets.load, []
    monkeypatch.setattr(datasets, "load", lambda *a, **k: (opened.append(a[1]), real(*a, **k))[1])
    accuracy(run, "--epsilons", "0", *QUICK)
    assert opened == ["test"]


def test_a_network_of_the_users_own_is_imported_only_where_the_flag_is_given_again(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_evaluated.py").write_text(
        "from torch import nn\n"
        "def small(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = {"width": None, "epochs": 1, "network": "own_evaluated:small", "defense": "none", "out": tmp_path / "run"}
    train(**TINY | own)
    sys.modules.pop("own_evaluated")
    capsys.readouterr()
    assert "give --network again" in refusal(capsys, "accuracy", "--run", tmp_path / "run")
    assert "own_evaluated" not in sys.modules and not (tmp_path / "run" / "evaluation").exists()
    assert len(accuracy(tmp_path / "run", "--epsilons", 0, *QUICK, "--network", "own_evaluated:small")) == 1
    capsys.readouterr()
    assert "is not the run's" in refusal(capsys, "accuracy", "--run", tmp_path / "run", "--network", "os:getcwd")


@pytest.mark.parametrize(("given", "message"), [
    ("accuracy", "missing --run"),
    ("accuracy --run {run} --epsilon 0.1", "did you mean --epsilons"),
    ("accuracy --run {run} --epsilons 0,two", "--epsilons must be"),
    ("accuracy --run {run} --epsilons 2", "--epsilons must be numbers in [0, 1]"),
    ("accuracy --run {run} --num_steps 0", "--num_steps must be an integer >= 1"),
    ("accuracy --run {run} --num_samples 1.5", "--num_samples must be an integer"),
    ("accuracy --run {run} --step_size 0", "--step_size must be"),
    ("accuracy --run {run} --checkpoint first", "--checkpoint must be one of best, last"),
    ("accuracy --run {run} --num_test 361", "--num_test 361 is more than the 360 test images of digits"),
    ("accuracy --run {run} --device gpu", "--device must be auto, cpu, cuda or cuda:N"),
    ("accuracy --run {run} --network vgg16", "--network vgg16 is not the run's, which is convnet"),
    ("accuracy {run}", "only flags are taken"),
    ("accurracy --run {run}", "unknown verb 'accurracy'; choose one of: accuracy"),
    ("--run {run}", "a verb must come first"),
    ("accuracy --run nowhere", "nowhere is no run folder: it has no config.json"),
    ("accuracy --run .", ". is no run folder: its config.json is not that of a training"),
])
def test_what_cannot_be_done_is_refused_in_one_line_before_anything_is_made(
    given, message, run, tmp_path, monkeypatch, capsys
):
    (tmp_path / "config.json").write_text('{"name": "something else"}')
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, *given.format(run=run).split())
    assert os.listdir(tmp_path) == ["config.json"] and not (run / "evaluation").exists()


def test_damaged_runs_are_refused_in_one_line(run, tmp_path, capsys):
    config = (run / "config.json").read_bytes()
    (tmp_path / "config.json").write_bytes(config)
    assert "has no checkpoint yet" in refusal(capsys, "accuracy", "--run", tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:1000])
    assert "damaged or no checkpoint" in refusal(capsys, "accuracy", "--run", tmp_path)
    (tmp_path / "config.json").write_bytes(config[:100])
    assert "config.json cannot be read" in refusal(capsys, "accuracy", "--run", tmp_path)


def test_a_foreign_table_is_refused_before_any_work(run, monkeypatch, capsys):
    (run / "evaluation").mkdir()
    (run / "evaluation" / "accuracy.csv").write_text("a,b\n")
    monkeypatch.setattr(evaluate, "robust_accuracy", None)
    assert "its columns differ" in refusal(capsys, "accuracy", "--run", run)
    assert (run / "evaluation" / "accuracy.csv").read_text() == "a,b\n"


def test_the_process_itself_refuses_in_one_line_with_exit_code_2(tmp_path):
    end = subprocess.run([sys.executable, "-m", "pyro_advbnn.evaluate", "accuracy", "--rum", "x"], cwd=tmp_path,
                         capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (end.returncode, end.stdout) == (2, "") and end.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_held_out_images_are_those_that_the_run_split_off(tmp_path):
    folder = tmp_path / "run"
    cli.run(train, ["--width=8", "--num_train=300", "--validation=30", "--num_steps=1", "--epochs=6",
                    "--defense=none", "--batch_size=20",
                    "--seed=3", f"--out={folder}"])
    evaluation = ["accuracy", "--run", str(folder), "--epsilons=0", "--checkpoint=last"]
    cli.run({"accuracy": evaluate.accuracy}, [*evaluation, "--split=held_out"])
    with (folder / "evaluation" / "accuracy.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[-1]
    metrics = records.read_jsonl(folder / "metrics.jsonl")[-1]
    assert (row["dataset"], row["num_examples"]) == ("digits:held_out", "30")
    assert float(row["accuracy"]) == pytest.approx(metrics["held_out_accuracy"])
    assert metrics["held_out_accuracy"] > 0.3            # neither chance nor the test split's figure by accident


def test_held_out_images_of_a_run_without_any_are_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    cli.run(train, ["--width=4", "--num_train=60", "--validation=0", "--num_steps=1", "--epochs=1", "--defense=none",
                    f"--out={folder}"])
    with pytest.raises(SystemExit) as end:
        cli.run({"accuracy": evaluate.accuracy}, ["accuracy", "--run", str(folder), "--split=held_out"])
    assert end.value.code == 2 and "held no images out" in capsys.readouterr().err
