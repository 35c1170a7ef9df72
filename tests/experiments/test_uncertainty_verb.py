"""Tests of evaluate uncertainty: its four tables agree with the library, and are resumed."""
import shutil

import numpy as np
import pytest
import torch
from hostile import refused_command
from tiny_runs import stop_at, tiny

from pyro_advbnn import datasets, evaluate
from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.cli import commands
from pyro_advbnn.evaluation import uncertainty
from pyro_advbnn.evaluation.uncertainty import ConfidentError
from pyro_advbnn.experiments import uncertainty_verb
from pyro_advbnn.reporting import csv_tables, summaries
from pyro_advbnn.system import json_files
from pyro_advbnn.system.random_streams import separate_randomness
from pyro_advbnn.train import train
from pyro_advbnn.training import checkpoints

TINY = {"width": 8, "num_train": 520, "validation": 20, "epsilon": 0.05, "num_steps": 1, "epochs": 6, "num_samples": 2,
        "alpha": 0.02, "prior_std": "fan_in", "init_std": "fan_in/4", "learning_rate": 0.01, "batch_size": 25,
        "attack_samples": 1, "device": "cpu"}
QUICK = ["--num_steps", "3", "--attack_samples", "2", "--num_samples", "4", "--num_test", "60"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(**TINY, out=folder)
    return folder


def evaluated(run, out, *words):
    """The rows of the four tables."""
    epsilon = [] if "--epsilon" in words else ["--epsilon", "0.2"]
    commands.run(evaluate.VERBS, ["uncertainty", "--run", str(run), "--out", str(out), *QUICK, *epsilon, *map(str, words)])
    return {name: csv_tables.read(out, name) for name in uncertainty_verb.TABLES}


def refusal(capsys, *words):
    return refused_command(capsys, evaluate.VERBS, "uncertainty", *words)


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, evaluated(run, out, "--rejected", "0,0.5")


def test_rows_agree_with_the_library_whichever_others_are_asked_for(run, whole):
    classifier = checkpoints.load(run / "best.pt")
    images = datasets.balanced_subset(datasets.load("digits", "test"), 60, 0)
    hiding = {"loss": ConfidentError(3.0), "average": "probability"}
    found = {}
    for name, pgd in {"none": None, "pgd": PGD(0.2, None, 3, 2), "pgd-confident": PGD(0.2, None, 3, 2, **hiding)}.items():
        with separate_randomness(0):
            found[name] = uncertainty.scores(classifier, datasets.batches(images, 500), pgd, num_samples=4)
    _, rows = whole
    assert [row["attack"] for row in rows["uncertainty"]] == list(found)
    for row in rows["uncertainty"]:
        known = uncertainty.summary(found[row["attack"]])
        assert {name: row[name] for name in known} == pytest.approx(known)
        assert row["confidence_weight"] == (3 if row["attack"] == "pgd-confident" else None)
    for row in rows["detection"]:
        if not row["ood"]:
            score, correct = found[row["attack"]][row["score"]], found[row["attack"]]["correct"]
            score = score if row["positives"] == "all" else score[correct == 0]
            known = uncertainty.detection(found["none"][row["score"]], score)
            assert {name: row[name] for name in known} == pytest.approx(known)
    assert len(rows["detection"]) == 2 * 2 * 2 + 2 * 2 and {row["ood"] for row in rows["detection"]} == {
        None, "noise", "permuted"}
    kept = {(row["attack"], row["score"], row["rejected"]): row["num_kept"] for row in rows["rejection"]}
    assert len(kept) == len(rows["rejection"]) == 3 * 2 * 2 and set(kept.values()) == {60, 30}
    for row in rows["rejection"]:
        known, = uncertainty.rejection(found[row["attack"]][row["score"]], found[row["attack"]]["correct"], [row["rejected"]])
        assert {name: row[name] for name in known} == pytest.approx(known)
    for attack in found:
        bins = [row for row in rows["calibration"] if row["attack"] == attack]
        assert sum(row["num_in_bin"] for row in bins) == 60 == bins[0]["num_examples"]


@pytest.mark.usefixtures("undrawn")
def test_one_draw_of_a_random_network_tells_no_mutual_information_and_a_line_says_so(run, tmp_path, capsys):
    words = ["--run", run, "--out", tmp_path, *QUICK[:4], "--num_test", 60, "--epsilon", 0.2, "--ood", "noise"]
    for _ in range(2):                                   # the second time the rows are there
        commands.run(evaluate.VERBS, ["uncertainty", *map(str, words), "--num_samples", "1"])
        rows = {name: csv_tables.read(tmp_path, name) for name in uncertainty_verb.TABLES}
        assert [(row["mutual_information"], row["variation_ratio"]) for row in rows["uncertainty"]] == 3 * [(None, None)]
        assert {row["score"] for name in ("detection", "rejection") for row in rows[name]} == {"entropy"}
        out = capsys.readouterr().out
        assert "mutual information needs several draws per prediction" in out and "added" in out
    evaluated(run, tmp_path / "more", "--ood", "noise", "--epsilon", 0)
    assert "needs several draws" not in capsys.readouterr().out
    plots_and_tables = [summary.name for summary in summaries.summaries(tmp_path)]
    assert {"uncertainty", "detection"} <= set(plots_and_tables)


@pytest.mark.usefixtures("undrawn")
def test_clean_accuracy_is_that_of_the_verb_accuracy_and_the_blind_one_that_of_other_draws(run, whole, tmp_path):
    words = [*QUICK, "--epsilons", "0,0.2"]
    commands.run(evaluate.VERBS, ["accuracy", "--run", str(run), "--out", str(tmp_path), *words])
    known = {row["epsilon"]: row["accuracy"] for row in csv_tables.read(tmp_path, "accuracy")}
    found = {row["epsilon"]: row["accuracy"] for row in whole[1]["uncertainty"][:2]}
    assert found.keys() == known.keys() and found[0] == known[0] > found[0.2] == pytest.approx(known[0.2], abs=0.1)


@pytest.mark.usefixtures("undrawn")
def test_equal_seeds_give_equal_files_and_rows_that_are_there_are_not_computed_again(run, whole, tmp_path, monkeypatch, capsys):
    torch.rand(5)                                        # whatever another process draws before
    evaluated(run, tmp_path, "--rejected", "0.5,0", "--ood", "permuted,noise")
    contents = {name: (whole[0] / "evaluation" / f"{name}.csv").read_bytes() for name in uncertainty_verb.TABLES}
    for name in ("uncertainty", "calibration", "rejection"):
        assert (tmp_path / "evaluation" / f"{name}.csv").read_bytes() == contents[name]
    assert sorted((tmp_path / "evaluation" / "detection.csv").read_bytes().splitlines()) == sorted(
        contents["detection"].splitlines())
    assert "added 0 rows" not in capsys.readouterr().out
    monkeypatch.setattr(uncertainty_verb, "scores", lambda *_, **__: pytest.fail("work was done"))
    evaluated(run, tmp_path, "--rejected", "0,0.5")
    out = capsys.readouterr().out
    assert "added 0 rows" in out and "permuted" in out and out.count("pgd-confident, ε") == 5
    assert len(json_files.read_jsonl(tmp_path / "evaluation" / "log.jsonl")) == 1
    seeds = []
    monkeypatch.setattr(uncertainty_verb.ood_images, "foreign_images", lambda name, like, seed, _: seeds.append(seed) or like)
    monkeypatch.setattr(uncertainty_verb._Doubt, "measure", lambda *_, **__: None)
    monkeypatch.setattr(uncertainty_verb._Doubt, "detect", lambda *_: None)
    evaluated(run, tmp_path, "--seed", 3, "--ood", "noise")
    assert seeds == [3]


@pytest.mark.usefixtures("undrawn")
def test_what_was_interrupted_goes_on_to_the_same_files(run, whole, tmp_path, monkeypatch):
    calls = stop_at(monkeypatch, uncertainty_verb, "scores", 3)
    with pytest.raises(SystemExit):
        evaluated(run, tmp_path, "--rejected", "0,0.5")
    assert [row["attack"] for row in csv_tables.read(tmp_path, "uncertainty")] == ["none", "pgd"]
    evaluated(run, tmp_path, "--rejected", "0,0.5")
    assert len(calls) == 3 + 4                           # clean again to compare with, the last attack, noise, permuted
    for name in uncertainty_verb.TABLES:
        assert (tmp_path / "evaluation" / f"{name}.csv").read_bytes() == (
            whole[0] / "evaluation" / f"{name}.csv").read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_more_is_added_to_what_is_there(run, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    before = {name: (tmp_path / "evaluation" / f"{name}.csv").read_bytes() for name in uncertainty_verb.TABLES}
    rows = evaluated(run, tmp_path, "--rejected", "0,0.25,0.5", "--confidence_weight", 2, "--ood", "none")
    assert all((tmp_path / "evaluation" / f"{name}.csv").read_bytes().startswith(before[name])
               for name in uncertainty_verb.TABLES)
    assert [row["confidence_weight"] for row in rows["uncertainty"]] == [None, None, 3, 2]
    assert sum(row["rejected"] == 0.25 for row in rows["rejection"]) == 4 * 2 - 2    # not for the weight of before
    line = json_files.read_jsonl(tmp_path / "evaluation" / "log.jsonl")[-1]
    assert line["rows"] == sum(map(len, rows.values())) - sum(map(len, whole[1].values()))


def test_a_deterministic_network_has_no_rows_of_mutual_information_and_no_draws(tmp_path):
    train(**tiny("none", TINY) | {"epochs": 1}, defense="none", out=tmp_path / "plain")
    rows = evaluated(tmp_path / "plain", tmp_path / "out", "--ood", "noise")
    assert {row["score"] for name in ("detection", "rejection") for row in rows[name]} == {"entropy"}
    assert {row["mutual_information"] for row in rows["uncertainty"]} == {0}
    assert {row["num_samples"] for row in rows["uncertainty"]} == {1} and rows["uncertainty"][1]["attack_samples"] == 1


def test_without_a_radius_nothing_is_attacked(run, tmp_path, capsys):
    rows = evaluated(run, tmp_path, "--epsilon", 0, "--ood", "none")
    assert [row["attack"] for row in rows["uncertainty"]] == ["none"] and rows["detection"] == []
    assert not (tmp_path / "figures" / "detection.svg").exists() and "detected" not in capsys.readouterr().out


def test_another_data_set_is_brought_to_the_runs_images(run, tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(30) % 15                          # more classes than the run has
    np.savez(tmp_path / "other.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    rows = evaluated(run, tmp_path / "out", "--ood", "npz", "--ood_dir", tmp_path / "other.npz")["detection"]
    assert [(row["score"], row["num_positives"], row["num_examples"]) for row in rows if row["ood"] == "npz"] == [
        ("entropy", 30, 60), ("mutual_information", 30, 60)]


def test_foreign_images_that_cannot_be_had_are_refused_before_any_work(run, tmp_path, capsys):
    words = ["--run", run, "--out", tmp_path / "out", *QUICK]
    assert "is the data set of the run itself" in refusal(capsys, *words, "--ood", "digits")
    assert "name exactly one" in refusal(capsys, *words, "--ood", "noise", "--ood_dir", tmp_path)
    assert "needs --ood_dir" in refusal(capsys, *words, "--ood", "npz")
    assert "--rejected must be" in refusal(capsys, *words, "--rejected", "1")
    assert "--confidence_weight must be" in refusal(capsys, *words, "--confidence_weight", "-1")
    assert not (tmp_path / "out").exists()
