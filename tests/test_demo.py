"""Tests of demo: three tiny trainings, their nine rows and one table."""
import csv
import os

import pytest

from pyro_advbnn import demo
from pyro_advbnn.cli import commands

TINY = {"width": 4, "num_train": 120, "validation": 20, "num_steps": 1, "epochs": 1, "num_samples": 1}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    train = demo.train
    monkeypatch.setattr(demo, "train", lambda **flags: train(**TINY | flags))


def test_the_demo_attacks_three_defences_and_prints_one_table(tmp_path, capsys):
    commands.run(demo.demo, ["--out", str(tmp_path / "demo")])
    lines = capsys.readouterr().out.splitlines()[-4:]
    names = [line.strip().split("  ")[0] for line in lines]
    assert names == ["defence", "no defence", "adversarial training", "Adv-BNN"]
    for defense in ("none", "adv", "advbnn"):
        with (tmp_path / "demo" / defense / "evaluation" / "accuracy.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["defense"], row["epsilon"], row["attack_samples"], row["num_examples"]) for row in rows] == [
            (defense, "0", "1", "360"), (defense, "0.2", "1", "360"), (defense, "0.2", "10", "360"),
        ][:3 if defense == "advbnn" else 2]
        assert all(f"{100 * float(row['accuracy']):.1f} [" in "\n".join(lines) for row in rows)


@pytest.mark.parametrize("words", ["--sede 1", "--seed one", "digits", "--out"])
def test_the_demo_refuses_what_it_does_not_know(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        commands.run(demo.demo, words.split())
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n"), os.listdir(tmp_path)) == (2, "", 1, [])


def test_the_demo_overwrites_nothing(tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SystemExit) as end:
        commands.run(demo.demo, ["--out", str(tmp_path)])
    assert end.value.code == 2 and "is not overwritten; choose another --out\n" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["mine"]
