"""Tests of the evaluate command: the rows and figures of each verb, what it prints and refuses."""
import csv
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import refused_command
from PIL import Image
from tiny_runs import EVALUATED, stop_at, tiny

import pyro_advbnn as ab
from pyro_advbnn import datasets, evaluate
from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.cli import commands
from pyro_advbnn.evaluation import weight_statistics
from pyro_advbnn.experiments import accuracy_verbs, evaluated_runs, verbs
from pyro_advbnn.experiments.images import digest, evaluated_images, image_digest
from pyro_advbnn.reporting import csv_tables, curves, summaries
from pyro_advbnn.system import json_files
from pyro_advbnn.system.random_streams import separate_randomness
from pyro_advbnn.train import train
from pyro_advbnn.training import checkpoints

QUICK = ["--num_steps", "2", "--num_samples", "2", "--num_test", "50"]


def accuracy(folder, *words):
    """The rows that the command adds; its figure is another test's."""
    before = len(rows(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verbs, "draw_figures", lambda *_: None)
        commands.run(evaluate.VERBS, ["accuracy", "--run", str(folder), *map(str, words)])
    return rows(folder)[before:]


def rows(folder):
    path = folder / "evaluation" / "accuracy.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def refusal(capsys, *words):
    return refused_command(capsys, evaluate.VERBS, *words)


def test_a_row_has_every_field_and_agrees_with_the_library(run):
    row, = accuracy(run, "--epsilons", "0.1", *QUICK, "--attack_samples", 3)
    classifier = checkpoints.load(run / "best.pt")
    images = datasets.balanced_subset(datasets.load("digits", "test"), 50, 0)
    with separate_randomness(0):
        known = ab.robust_accuracy(classifier, datasets.batches(images, 500), PGD(0.1, None, 2, 3), num_samples=2)
    assert tuple(row) == csv_tables.ROW_FIELDS and "" not in row.values()
    assert float(row["accuracy"]) == known["accuracy"]
    assert float(row["accuracy_low"]) == pytest.approx(known["accuracy_low"])
    for found in (row.pop("weights"), row.pop("images")):
        assert len(found) == 12 and int(found, 16)
    assert {name: value for name, value in row.items() if not name.startswith("accuracy")} == {
        "run": "run", "dataset": "digits", "network": "convnet", "defense": "advbnn", "alpha": "0.02", "prior_std": "fan_in",
        "source": "target", "attack": "pgd", "epsilon": "0.1", "num_steps": "2", "step_size": "0.125", "attack_samples": "3",
        "num_samples": "2", "seed": "0", "num_examples": "50", "batch_size": "500",
        "reaches_ball": "true", "checkpoint": "run/best.pt"}


@pytest.mark.parametrize(("epsilons", "expected"), [
    ("0:0.07:0.005", [0.005 * i for i in range(15)]), ("0,8/255", [0, 8 / 255]), ("1/10", [0.1]),
    (None, [0, 0.1, 0.2, 0.3]),
])
def test_radii_are_lists_ranges_and_fractions(run, epsilons, expected):
    words = ["--epsilons", epsilons] if epsilons else []
    got = accuracy(run, *words, "--num_steps", 1, "--num_samples", 1, "--num_test", 10)
    assert [float(row["epsilon"]) for row in got] == pytest.approx(expected, rel=1e-8)


@pytest.mark.usefixtures("undrawn")
def test_equal_seeds_give_equal_files_and_other_seeds_other_rows(run, tmp_path):
    accuracy(run, "--epsilons", "0,0.1", *QUICK)
    first = (run / "evaluation" / "accuracy.csv").read_bytes()
    torch.rand(5)                                        # whatever another process draws before
    commands.run(evaluate.VERBS, ["accuracy", "--run", str(run), "--epsilons", "0,0.1", *QUICK, "--out", str(tmp_path)])
    assert (tmp_path / "evaluation" / "accuracy.csv").read_bytes() == first
    third = accuracy(run, "--epsilons", "0,0.1", *QUICK, "--seed", 1)
    assert (run / "evaluation" / "accuracy.csv").read_bytes().startswith(first)
    assert [row["seed"] for row in third] == ["1", "1"]
    assert third[0]["images"] != rows(tmp_path)[0]["images"]               # it also tells which images are taken


def test_rows_that_are_there_are_not_computed_again(run, monkeypatch, capsys):
    accuracy(run, "--epsilons", "0,0.1", *QUICK)
    before = (run / "evaluation" / "accuracy.csv").read_bytes()
    capsys.readouterr()
    monkeypatch.setattr(accuracy_verbs, "robust_accuracy", lambda *_, **__: pytest.fail("work was done"))
    assert accuracy(run, "--epsilons", "0.1,0", *QUICK) == []
    assert (run / "evaluation" / "accuracy.csv").read_bytes() == before
    assert "added 0 rows" in (out := capsys.readouterr().out) and "2 were there already" in out
    assert len(json_files.read_jsonl(run / "evaluation" / "log.jsonl")) == 1
    monkeypatch.undo()
    assert [row["epsilon"] for row in accuracy(run, "--epsilons", "0,0.05", *QUICK)] == ["0.05"]


def test_each_row_is_written_as_soon_as_it_is_known(run, monkeypatch):
    stop_at(monkeypatch, accuracy_verbs, "robust_accuracy", 3)
    with pytest.raises(SystemExit):
        accuracy(run, "--epsilons", "0,0.05,0.1", *QUICK)
    assert [row["epsilon"] for row in rows(run)] == ["0", "0.05"]


def test_what_was_run_is_logged_with_its_command_and_environment(run):
    accuracy(run, "--epsilons", "0.1", *QUICK)
    line, = json_files.read_jsonl(run / "evaluation" / "log.jsonl")
    assert line["command"].startswith(f"python -m pyro_advbnn.evaluate accuracy --run {run} --num_test 50 --epsilons 0.1")
    assert (line["rows"], line["environment"]["device"][:3]) == (1, "cpu") and line["seconds"] >= 0


def test_radius_0_is_the_clean_accuracy(run):
    row, = accuracy(run, "--epsilons", 0, "--num_samples", 3)
    classifier, batches = checkpoints.load(run / "best.pt"), datasets.batches(datasets.load("digits", "test"), 500)
    with separate_randomness(0):
        clean = ab.robust_accuracy(classifier, batches, num_samples=3)
    assert (float(row["accuracy"]), int(row["num_examples"])) == (float(f"{clean['accuracy']:.9g}"), 360)


def test_a_radius_of_a_list_gets_the_row_that_it_gets_alone(run, tmp_path):
    commands.run(evaluate.VERBS, ["accuracy", "--run", str(run), "--epsilons", "0.1", *QUICK, "--out", str(tmp_path)])
    assert rows(tmp_path) == accuracy(run, "--epsilons", "0,0.05,0.1", *QUICK)[2:]


@pytest.mark.usefixtures("undrawn")
def test_a_step_that_cannot_reach_the_ball_is_told_once_and_marked_in_the_row(run, capsys):
    got = accuracy(run, "--epsilons", "0.01,0.1,0.2", *QUICK, "--step_size", 0.007)
    assert [row["reaches_ball"] for row in got] == ["true", "false", "false"]
    out = capsys.readouterr().out
    assert out.count("cannot reach the border") == 1 and "radius 0.1, 0.2" in out
    row, = accuracy(run, "--epsilons", "0.2", *QUICK, "--step_size", "auto")
    assert row["reaches_ball"] == "true"
    assert "cannot reach" not in capsys.readouterr().out


def test_last_and_best_are_different_checkpoints(run, tmp_path):
    run = Path(shutil.copytree(run, tmp_path / "run"))
    best = checkpoints.load(run / "best.pt")
    with torch.no_grad():
        best.mean.mul_(2)                                # in so short a run the last is the best
    checkpoints.save(run / "best.pt", best, checkpoints.read(run / "best.pt")["config"])
    rows = [*accuracy(run, "--epsilons", "0", *QUICK, "--checkpoint", "last"), *accuracy(run, "--epsilons", "0", *QUICK)]
    assert [(row["checkpoint"], row["weights"]) for row in rows] == [
        (f"run/{name}", digest(checkpoints.load(run / name).state_dict())) for name in ("checkpoint.pt", "best.pt")]
    assert rows[0]["weights"] != rows[1]["weights"]


def test_the_table_is_that_of_the_report_by_radius(run, capsys):
    accuracy(run, "--epsilons", "0,0.1", *QUICK)
    out = capsys.readouterr().out
    _, by_radius = summaries.summaries(run)
    assert out.startswith(f"{by_radius.as_text()}\nadded 2 rows to {run / 'evaluation' / 'accuracy.csv'}\n")
    assert [row[:2] + ["[" in row[2]] for row in by_radius.rows] == [["Adv-BNN", "0", True], ["Adv-BNN", "0.1", True]]


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
    train(**tiny("none", EVALUATED) | own)
    sys.modules.pop("own_evaluated")
    capsys.readouterr()
    assert "give --network again" in refusal(capsys, "accuracy", "--run", tmp_path / "run")
    assert "own_evaluated" not in sys.modules and not (tmp_path / "run" / "evaluation").exists()
    assert len(accuracy(tmp_path / "run", "--epsilons", 0, *QUICK, "--network", "own_evaluated:small")) == 1
    capsys.readouterr()
    assert "is not the run's" in refusal(capsys, "accuracy", "--run", tmp_path / "run", "--network", "os:getcwd")


def test_a_network_that_is_random_by_itself_is_attacked_and_predicted_with_many_draws(tmp_path, monkeypatch):
    (tmp_path / "own_random.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Dropping(nn.Module):\n    def forward(self, x):\n        return nn.functional.dropout(x, 0.3, True)\n"
        "def small(num_classes):\n    return nn.Sequential(nn.Flatten(), Dropping(), nn.Linear(64, num_classes))\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = {"width": None, "epochs": 1, "network": "own_random:small", "defense": "none", "out": tmp_path / "run"}
    train(**tiny("none", EVALUATED) | own)
    rows = accuracy(tmp_path / "run", "--epsilons", 0.1, "--attack_samples", "1,4", "--num_test", 10, "--num_steps", 2,
                    "--num_samples", 3, "--network", "own_random:small")
    assert [(row["attack_samples"], row["num_samples"]) for row in rows] == [("1", "3"), ("4", "3")]
    texts = [curves.settings(csv_row) for csv_row in csv_tables.read(tmp_path / "run", "accuracy")]
    assert [text["attack_samples"] for text in texts] == ["1 draw per gradient", "4 draws per gradient"]


@pytest.mark.parametrize(("given", "message"), [
    ("accuracy", "give --run DIR, or --runs A,B,..."),
    ("accuracy --run {run} --runs {run}", "give --run DIR, or --runs A,B,..."),
    ("accuracy --runs {run},{run}", "two runs are called run"),
    ("accuracy --mixture {run},{run} --run {run}", "give --run DIR, or --runs A,B,..."),
    ("accuracy --mixture {run}", "--mixture needs two runs or more"),
    ("accuracy --mixture {run},{run}", "--mixture: two runs are called run"),
    ("transfer --runs {run},nowhere", "nowhere is no run folder"),
    ("accuracy --run {run} --epsilon 0.1", "did you mean --epsilons"),
    ("accuracy --run {run} --epsilons 0,two", "--epsilons must be"),
    ("accuracy --run {run} --epsilons 2", "--epsilons must be a list of numbers in [0, 1]"),
    ("accuracy --run {run} --num_steps 0", "--num_steps must be an integer in [1, 100000]"),
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
    ("accuracy --run \x08", r"\x08 is no run folder"),
    ("accuracy --run {run} --network \x1b", r"--network \x1b is not the run's"),
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
    assert "has no checkpoint" in refusal(capsys, "accuracy", "--run", tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:1000])
    assert "damaged or no checkpoint" in refusal(capsys, "accuracy", "--run", tmp_path)
    (tmp_path / "config.json").write_bytes(config[:100])
    assert "config.json cannot be read" in refusal(capsys, "accuracy", "--run", tmp_path)


def test_a_foreign_table_is_refused_before_any_work(run, monkeypatch, capsys):
    (run / "evaluation").mkdir()
    (run / "evaluation" / "accuracy.csv").write_text("a,b\n")
    monkeypatch.setattr(accuracy_verbs, "robust_accuracy", lambda *_, **__: pytest.fail("work was done"))
    assert "its columns are not those" in refusal(capsys, "accuracy", "--run", run)
    assert (run / "evaluation" / "accuracy.csv").read_text() == "a,b\n"


def test_a_part_of_the_test_images_has_the_shares_of_their_classes(tmp_path):
    images, labels = np.zeros((100, 8, 8, 1), np.uint8), np.repeat([0, 1], [80, 20])
    np.savez(tmp_path / "images.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    config = {"dataset": "npz", "data_dir": tmp_path / "images.npz", "image_size": None, "loading": "memory",
              "image_shape": [1, 8, 8], "class_names": ["0", "1"]}
    taken = evaluated_images(config, ab.Selection(run=tmp_path, num_test=10, device="cpu"))
    assert torch.bincount(taken.labels).tolist() == [8, 2]
    with pytest.raises(ab.InputError, match=r"2 classes, not \(1, 8, 8\) and 2; a class is '1' in place of 'cat'"):
        evaluated_images(config | {"class_names": ["0", "cat"], "num_classes": 2}, ab.Selection(run=tmp_path, device="cpu"))


@pytest.mark.usefixtures("undrawn")
def test_held_out_images_are_those_that_the_run_split_off(tmp_path):
    folder = tmp_path / "run"
    commands.run(train, ["--width=8", "--num_train=300", "--validation=30", "--num_steps=1", "--epochs=6",
                    "--defense=none", "--batch_size=20",
                    "--seed=3", f"--out={folder}"])
    evaluation = ["accuracy", "--run", str(folder), "--epsilons=0", "--checkpoint=last"]
    commands.run(evaluate.VERBS, [*evaluation, "--split=held_out"])
    with (folder / "evaluation" / "accuracy.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[-1]
    metrics = json_files.read_jsonl(folder / "metrics.jsonl")[-1]
    assert (row["dataset"], row["num_examples"]) == ("digits:held_out", "30")
    assert float(row["accuracy"]) == pytest.approx(metrics["held_out_accuracy"])
    assert metrics["held_out_accuracy"] > 0.3            # neither chance nor the test split's figure by accident


def test_another_precision_is_what_networks_compute_in_and_stands_in_their_rows(run, capsys, monkeypatch):
    computed_in = []

    def spied(*given, **settings):
        computed_in.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return ab.robust_accuracy(*given, **settings)

    monkeypatch.setattr(accuracy_verbs, "robust_accuracy", spied)
    networks = [accuracy(run, "--epsilons", "0.13", *QUICK, "--precision", precision)[0]["network"]
                for precision in ("fp32", "bf16")]
    assert networks == ["convnet", "convnet:bf16"] and computed_in == [torch.float32, torch.bfloat16]
    capsys.readouterr()
    assert "needs a GPU" in refusal(capsys, "accuracy", "--run", run, "--precision=tf32", "--device=cpu")


def test_held_out_images_of_a_run_without_any_are_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    commands.run(train, ["--width=4", "--num_train=60", "--validation=0", "--num_steps=1", "--epochs=1", "--defense=none",
                    f"--out={folder}"])
    with pytest.raises(SystemExit) as end:
        commands.run(evaluate.VERBS, ["accuracy", "--run", str(folder), "--split=held_out"])
    assert end.value.code == 2 and "held no images out" in capsys.readouterr().err


def test_other_images_or_batches_are_other_rows(run):
    first, = accuracy(run, "--epsilons", "0.1", *QUICK)
    second, = accuracy(run, "--epsilons", "0.1", *QUICK, "--batch_size", 20)
    third, = accuracy(run, "--epsilons", "0.1", *QUICK[:-1], "60")
    assert (first["batch_size"], second["batch_size"]) == ("500", "20")
    assert first["images"] == second["images"] != third["images"]


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory):
    """Two runs of one data set: an Adv-BNN and an undefended network, as --runs takes them."""
    other = tmp_path_factory.mktemp("other") / "plain"
    train(**tiny("none", EVALUATED) | {"epochs": 4}, defense="none", out=other)
    return f"{other},{trained}"


def evaluated(verb, runs, out, *words):
    """What the verb prints, and its table's rows."""
    commands.run(evaluate.VERBS, [verb, "--runs", runs, "--out", str(out), *map(str, words)])
    return {name: csv_tables.read(out, name) for name in csv_tables.TABLES if csv_tables.read(out, name)}


def test_several_runs_stand_in_one_table_and_one_figure(runs, tmp_path):
    found = evaluated("accuracy", runs, tmp_path, "--epsilons", "0,0.1", *QUICK, "--attack_samples", "1,2")["accuracy"]
    assert [(row["run"], row["attack_samples"], row["num_samples"], row["epsilon"]) for row in found] == [
        ("plain", 1, 1, 0), ("plain", 1, 1, 0.1), ("run", 1, 2, 0), ("run", 1, 2, 0.1), ("run", 2, 2, 0), ("run", 2, 2, 0.1)]
    assert (tmp_path / "figures" / "accuracy.svg").exists()


def test_runs_that_differ_in_alpha_have_a_table_of_their_own(runs, tmp_path):
    found = evaluated("accuracy", runs.split(",")[1], tmp_path, "--epsilons", 0, *QUICK, "--against", "alpha")
    assert list(found) == ["alpha"] and found["alpha"][0]["alpha"] == 0.02
    assert (tmp_path / "figures" / "alpha.svg").exists()


def test_transfer_gives_all_ordered_pairs_and_a_diagonal_of_one(runs, tmp_path, capsys):
    found = evaluated("transfer", runs, tmp_path, "--epsilon", 0.2, "--num_steps", 5, "--num_samples", 5)["transfer"]
    pairs = {(row["source"], row["run"]): row for row in found}
    assert list(pairs) == [(a, b) for a in ("plain", "run") for b in ("plain", "run")]
    for (source, target), row in pairs.items():
        white_box = pairs[target, target]["accuracy"]
        assert row["accuracy_white_box"] == white_box and row["source_checkpoint"] == f"{source}/best.pt"
        assert row["rho"] == pytest.approx((row["accuracy_clean"] - row["accuracy"]) / (row["accuracy_clean"] - white_box))
    assert pairs["plain", "plain"]["rho"] == 1 == pairs["run", "run"]["rho"]
    assert pairs["plain", "run"]["rho"] != pairs["run", "plain"]["rho"]
    weights = {row["run"]: row["weights"] for row in found}
    assert all(row["source_weights"] == weights[row["source"]] for row in found)
    clean = evaluated("accuracy", runs, tmp_path, "--epsilons", 0, "--num_samples", 5)["accuracy"]
    assert {row["run"]: row["accuracy"] for row in clean} == {row["run"]: row["accuracy_clean"] for row in found}
    assert (tmp_path / "figures" / "transfer.svg").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_transfer_that_was_written_stays_where_the_target_meets_its_own_attack_with_other_draws(runs, tmp_path):
    names = tmp_path, "--epsilon", 0.2, "--num_steps", 5, "--num_samples", 5, "--attack_samples"
    first, again = (evaluated("transfer", runs, *names, draws)["transfer"] for draws in (1, 3))
    assert first == [row for row in again if row in first]
    assert [row["attack_samples"] for row in again if (row["source"], row["run"]) == ("run", "run")] == [1, 3]


@pytest.mark.usefixtures("undrawn")
def test_transfer_of_one_run_is_its_attack_on_itself(trained, tmp_path):
    row, = evaluated("transfer", str(trained), tmp_path, "--epsilon", 0.2, "--num_steps", 5, "--num_samples", 5)["transfer"]
    assert row["source"] == row["run"] and row["accuracy"] == row["accuracy_white_box"] and row["rho"] == 1


@pytest.mark.usefixtures("undrawn")
def test_transfer_says_where_the_drop_is_too_small_for_rho(runs, tmp_path, capsys):
    found = evaluated("transfer", runs, tmp_path, "--epsilon", 0, *QUICK)["transfer"]
    assert [row["rho"] for row in found] == [None] * 4 and all(row["note"].startswith("drop ") for row in found)
    assert capsys.readouterr().out.count("  drop ") == 4


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_transfer_goes_on_with_the_next_source_to_the_same_file(runs, tmp_path, monkeypatch):
    words = ["--epsilon", 0.2, *QUICK]
    evaluated("transfer", runs, tmp_path / "whole", *words)
    calls = stop_at(monkeypatch, accuracy_verbs, "transfer_accuracies", 2)
    with pytest.raises(SystemExit):
        evaluated("transfer", runs, tmp_path / "parts", *words)
    assert [row["source"] for row in csv_tables.read(tmp_path / "parts", "transfer")] == ["plain", "plain"]
    evaluated("transfer", runs, tmp_path / "parts", *words)
    assert len(calls) == 3
    files = [tmp_path / name / "evaluation" / "transfer.csv" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("verb", "few", "many"), [
    ("ensemble", ["--num_steps", "2", "--num_samples", "1,3"], ["--num_steps", "2", "--num_samples", "1,3,7"]),
    ("steps", ["--num_steps", "2,4"], ["--num_steps", "2,4,9"]),
])
def test_a_longer_list_leaves_the_rows_of_a_shorter_one_byte_for_byte(runs, tmp_path, verb, few, many):
    words = ["--num_test", "20", "--batch_size", "10"]
    evaluated(verb, runs, tmp_path / "parts", *words, *few)
    before = (tmp_path / "parts" / "evaluation" / f"{verb}.csv").read_bytes()
    together = evaluated(verb, runs, tmp_path / "parts", *words, *many)[verb]
    assert (tmp_path / "parts" / "evaluation" / f"{verb}.csv").read_bytes().startswith(before)
    alone = evaluated(verb, runs, tmp_path / "whole", *words, *many)[verb]
    assert sorted(map(str, together)) == sorted(map(str, alone))


@pytest.mark.parametrize("first", [".", "../plain", "x/.."])
def test_results_of_runs_of_one_folder_go_there_however_they_are_named(tmp_path, monkeypatch, first):
    (tmp_path / "plain" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "plain")
    assert evaluated_runs._default_out([Path(first), Path("../other")]).resolve() == tmp_path
    (tmp_path / "elsewhere" / "run" / "x").mkdir(parents=True)
    Path("link").symlink_to(tmp_path / "elsewhere" / "run" / "x")
    assert evaluated_runs._default_out([Path("link/.."), tmp_path / "elsewhere" / "b"]) == tmp_path / "elsewhere"


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path, capsys):
    assert "give --out DIR" in refusal(capsys, "accuracy", "--runs", runs)
    assert "plain has no posterior" in refusal(capsys, "posterior", "--runs", runs, "--out", tmp_path)
    plain, _ = runs.split(",")
    train(**tiny("none", EVALUATED) | {"epochs": 1, "validation": 30}, defense="none", out=tmp_path / "other")
    capsys.readouterr()
    message = refusal(capsys, "transfer", "--runs", f"{plain},{tmp_path / 'other'}", "--out", tmp_path / "out",
                      "--split", "held_out")
    assert "have other held_out images" in message and not (tmp_path / "out").exists()
    assert "have other images to be measured on" in refusal(
        capsys, "accuracy", "--mixture", f"{plain},{tmp_path / 'other'}", "--out", tmp_path / "out", "--split", "held_out")
    for verb in ("posterior", "gradients"):
        assert "plain+run" in (told := refusal(capsys, verb, "--mixture", runs, "--out", tmp_path)) and "a mixture" in told


def test_a_mixture_is_one_subject_whose_columns_join_those_of_its_runs(runs, tmp_path):
    words = ["--mixture", runs, "--out", str(tmp_path)]
    commands.run(evaluate.VERBS, ["accuracy", *words, "--epsilons", "0.1", *QUICK, "--attack_samples", "2"])
    row, = csv_tables.read(tmp_path, "accuracy")
    assert (row["run"], row["defense"], row["network"]) == ("plain+run", "none+advbnn", "convnet")
    assert row["checkpoint"] == "plain/best.pt+run/best.pt" and len(row["weights"]) == 25 and row["alpha"] is None
    images = datasets.balanced_subset(datasets.load("digits", "test"), 50, 0)
    mixture = ab.Mixture(checkpoints.load(f"{folder}/best.pt") for folder in runs.split(","))
    with separate_randomness(0):
        known = ab.robust_accuracy(mixture, datasets.batches(images, 500), PGD(0.1, None, 2, 2), num_samples=2)
    assert row["accuracy"] == known["accuracy"] and (row["attack_samples"], row["num_samples"]) == (2, 2)


@pytest.mark.parametrize(("verb", "words", "tables"), [
    ("transfer", QUICK, ["transfer"]), ("steps", ["--num_steps", "1,2", *QUICK[2:]], ["steps"]),
    ("ensemble", ["--num_steps", "2", "--num_samples", "1,2", "--num_test", "50"], ["ensemble"]),
    ("robust", [*QUICK, "--attacks", "noise,apgd-ce@mean"], ["robust"]),
    ("checks", [*QUICK[:4], "--num_test", "10", "--attack_samples", "2", "--num_queries", "5"], ["checks"]),
    ("uncertainty", QUICK, ["uncertainty", "detection"]), ("report", [*QUICK, "--num_images", "1"], ["examples"])])
def test_a_mixture_is_taken_by_every_verb_that_needs_no_one_posterior(runs, tmp_path, verb, words, tables, monkeypatch):
    monkeypatch.setattr("pyro_advbnn.evaluation.checks.COUNTS", (1, 2))
    commands.run(evaluate.VERBS, [verb, "--mixture", runs, "--out", str(tmp_path), *words])
    for table in tables:
        assert {row["run"] for row in csv_tables.read(tmp_path, table)} == {"plain+run"}
    page = tmp_path / "report.html"
    assert verb != "report" or "plain+run" in page.read_text() and "none+advbnn" in page.read_text()


@pytest.mark.usefixtures("undrawn")
def test_a_network_of_the_users_own_stands_beside_a_built_in_one(runs, tmp_path, monkeypatch):
    (tmp_path / "own_compared.py").write_text(
        "from torch import nn\n"
        "def small(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = {"width": None, "epochs": 1, "network": "own_compared:small", "defense": "none", "out": tmp_path / "own"}
    train(**tiny("none", EVALUATED) | own)
    found = evaluated("accuracy", f"{tmp_path / 'own'},{runs}", tmp_path / "out", "--epsilons", 0, *QUICK, "--network",
                      "own_compared:small")["accuracy"]
    assert [row["run"] for row in found] == ["own", "plain", "run"]


def test_ensemble_has_a_row_for_each_radius_and_number_of_draws(runs, tmp_path):
    found = evaluated("ensemble", runs, tmp_path, "--epsilons", "0,0.1", "--num_samples", "1,4", "--num_steps", 2,
                      "--num_test", 50)["ensemble"]
    assert [(row["run"], row["epsilon"], row["num_samples"]) for row in found] == [
        ("plain", 0, 1), ("plain", 0.1, 1), ("run", 0, 1), ("run", 0, 4), ("run", 0.1, 1), ("run", 0.1, 4)]
    assert (tmp_path / "figures" / "ensemble.svg").exists()


@pytest.mark.usefixtures("undrawn")
def test_posterior_takes_the_attack_of_its_flags_and_saves_by_each_criterion(runs, tmp_path):
    run = runs.split(",")[1]
    found = evaluated("posterior", run, tmp_path, "--fractions", "0.5", "--epsilon", "0.1", *QUICK, "--save_fractions", "0.5",
                      "--step_size", "0.03", "--attack_samples", "3")
    assert {(row["prediction"], row["attack_samples"], row["num_samples"], row["step_size"]) for row in found["pruning"]} == {
        ("posterior", 3, 2, 0.03), ("mean", 1, 1, 0.03)}
    classifier = checkpoints.load(run + "/best.pt")
    for by in weight_statistics.PRUNE_BY:
        saved = torch.load(tmp_path / "pruned" / f"run-{by}-0.5.pt", weights_only=True)
        expected = weight_statistics.prune(classifier, 0.5, by).mean_network().state_dict()
        assert all(torch.equal(saved[name], value) for name, value in expected.items())


@pytest.mark.usefixtures("undrawn")
def test_ensemble_averages_as_many_draws_in_a_gradient_as_the_flag_says(runs, tmp_path):
    found = evaluated("ensemble", runs, tmp_path, "--epsilons", "0.1", *QUICK[:2], "--num_samples", "1,4", "--num_test", 20,
                      "--attack_samples", 3)["ensemble"]
    assert [(row["run"], row["attack_samples"]) for row in found] == [("plain", 1), ("run", 3), ("run", 3)]


def test_steps_has_a_row_for_each_number_of_steps_with_one_step_size(runs, tmp_path):
    found = evaluated("steps", runs, tmp_path, "--epsilon", 0.2, "--num_steps", "1,4,16", "--num_samples", 2,
                      "--num_test", 50, "--attack_samples", "1,2")["steps"]
    assert [(row["run"], row["attack_samples"], row["num_steps"], row["step_size"]) for row in found] == [
        (run, draws, count, 0.025) for run, draws in (("plain", 1), ("run", 1), ("run", 2)) for count in (1, 4, 16)]
    assert found[0]["accuracy"] > found[2]["accuracy"]
    assert (tmp_path / "figures" / "steps.svg").exists()


def test_posterior_describes_every_layer_and_prunes(runs, tmp_path, capsys):
    words = ["--fractions", "0,0.9,1", "--epsilon", "0.1", *QUICK, "--save_fractions", "0.5"]
    found = evaluated("posterior", runs.split(",")[1], tmp_path, *words)
    classifier = checkpoints.load(runs.split(",")[1] + "/best.pt")
    assert [row["layer"] for row in found["layers"]] == ["all", *classifier.posterior()]
    pruned = {tuple(row[name] for name in ("prune_by", "fraction", "prediction", "epsilon")): row["accuracy"]
              for row in found["pruning"]}
    assert len(pruned) == 2 * 3 * 2 * 2 == len(found["pruning"])
    whole = evaluated("accuracy", runs.split(",")[1], tmp_path, "--epsilons", "0,0.1", *QUICK)["accuracy"]
    for by in ("signal_to_noise", "std"):
        for row in whole:
            assert pruned[by, 0, "posterior", row["epsilon"]] == row["accuracy"]     # nothing is pruned
        assert pruned[by, 1, "mean", 0] == 0.1          # everything is: one class for all images
    saved = torch.load(tmp_path / "pruned" / "run-signal_to_noise-0.5.pt", weights_only=True)
    ab.networks.convnet(width=8).load_state_dict(saved)
    assert {path.stem for path in (tmp_path / "figures").glob("*.svg")} >= {"log_std", "log_std_by_layer", "signal_to_noise",
                                                                          "pruning"}


NORMALISED = """
from torch import nn

class Cosine(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True))

def cosine(num_classes):
    return nn.Sequential(nn.Flatten(), Cosine(64, num_classes, bias=False))

def weight_norm(num_classes):
    return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, num_classes)))
"""


@pytest.mark.parametrize("name", ["cosine", "weight_norm"])
def test_pruning_that_leaves_no_logits_is_named_and_the_rest_is_kept_and_drawn(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "normalised.py").write_text(NORMALISED)
    monkeypatch.syspath_prepend(tmp_path)
    network = ["--network", f"normalised:{name}"]
    train(**EVALUATED | {"network": network[1], "width": None, "epochs": 1}, out=tmp_path / "run")
    found = evaluated("posterior", str(tmp_path / "run"), tmp_path, "--fractions", "0,1", "--prune_by", "std", *QUICK, *network)
    assert [(row["fraction"], row["prediction"]) for row in found["pruning"]] == [
        (0, "posterior"), (0, "posterior"), (0, "mean"), (0, "mean"), (1, "posterior"), (1, "posterior")]
    assert "note: run without 1 by std, mean: left out, as the classifier's logits must be finite" in capsys.readouterr().out
    assert (tmp_path / "figures" / "pruning.svg").exists()


def test_gradients_are_measured_on_training_and_on_test_images(runs, tmp_path):
    found = evaluated("gradients", runs, tmp_path, "--num_test", 50, "--num_samples", "1,3")["gradients"]
    assert [(row["run"], row["split"], row["num_samples"], row["num_examples"]) for row in found] == [
        ("plain", "train", 1, 50), ("plain", "test", 1, 50), ("run", "train", 1, 50), ("run", "train", 3, 50),
        ("run", "test", 1, 50), ("run", "test", 3, 50)]
    assert all(0 < row["l1_norm_low"] < row["l1_norm"] < row["l1_norm_high"] for row in found)


def test_gradients_are_of_training_images_in_the_shares_of_their_classes(tmp_path):
    images, labels = np.zeros((100, 8, 8, 1), np.uint8), np.repeat([0, 1], [80, 20])
    images[:, 0, 0, 0] = np.arange(100)
    np.savez(tmp_path / "images.npz", x_train=images, y_train=labels, x_test=images[::10], y_test=labels[::10])
    of_two_classes = {"dataset": "npz", "data_dir": tmp_path / "images.npz", "num_train": None, "validation": 0}
    train(**EVALUATED | of_two_classes | {"epochs": 1}, out=tmp_path / "run")
    found = evaluated("gradients", str(tmp_path / "run"), tmp_path, "--num_samples", 1)["gradients"]
    trained = datasets.load("npz", "train", tmp_path / "images.npz")
    assert [row["images"] for row in found if row["split"] == "train"] == [
        image_digest(datasets.stratified_subset(trained, 10, seed=0))]


def test_the_report_shows_examples_that_agree_with_the_classifier(runs, tmp_path, capsys):
    found = evaluated("report", runs, tmp_path, "--num_images", 3, "--epsilon", 0.3, "--num_steps", 5, "--num_samples", 4)
    assert [(row["run"], row["index"]) for row in found["examples"]] == [(run, i) for run in ("plain", "run") for i in range(3)]
    for row in found["examples"]:
        assert 0 <= row["adversarial_probability"] <= 1 and 0 < row["clean_agreement"] <= 1
        if row["clean_prediction"] == row["label"]:
            assert row["clean_probability"] > row["adversarial_probability"]
        if row["run"] == "plain":
            assert row["clean_probability_std"] == 0 == row["adversarial_probability_std"]
        clean, perturbation, adversarial = (pixels(tmp_path / "evaluation" / row[f"{name}_image"])
                                            for name in ("clean", "perturbation", "adversarial"))
        assert clean.shape == perturbation.shape == adversarial.shape == (8, 8)
        assert np.abs(clean - adversarial).max() == pytest.approx(0.3 * 255, abs=1.1)
    text = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in text and "plain" in text
    words = ["--num_images", 3, "--epsilon", 0.3, "--num_steps", 5, "--num_samples", 4]
    assert evaluated("report", runs, tmp_path, *words)["examples"] == found["examples"]
    before = {path: path.read_bytes() for path in (tmp_path / "evaluation" / "examples").iterdir()}
    next(iter(before)).unlink()
    again = evaluated("report", runs, tmp_path, *words, "--seed", 1)["examples"]
    assert len({row["clean_image"] for row in again}) == 12 == len(again)     # other examples, under other names
    evaluated("report", runs, tmp_path, *words)
    assert all(path.read_bytes() == content for path, content in before.items())


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image, float)


@pytest.mark.parametrize("verb", evaluate.VERBS)
def test_every_verb_refuses_a_wrong_flag_and_a_wrong_value(verb, run, capsys):
    assert "unknown flag --epsilom" in refusal(capsys, verb, "--run", run, "--epsilom", 1)
    assert "--seed must be" in refusal(capsys, verb, "--run", run, "--seed", "x")
    (run / "a file").write_text("mine")
    assert "a file/evaluation cannot be written: Not a directory" in refusal(
        capsys, verb, "--run", run, "--out", run / "a file")
