"""Tests of what Python code gives: settings and paths of another kind are refused by name, what stands for a path is one."""
import csv
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_advbnn as ab
from pyro_advbnn import benchmark, demo, evaluate
from pyro_advbnn.experiments.scales import Reproduction
from pyro_advbnn.experiments.selection import Selection
from pyro_advbnn.experiments.verbs import AttackFlags
from pyro_advbnn.system.errors import check_number, reason
from pyro_advbnn.train import train


@pytest.fixture
def classifier():
    return ab.Classifier(ab.networks.convnet(width=2))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ab.PGD(0.1, num_steps=1.5), "num_steps must be a whole number of at least 0, got 1.5"),
    (lambda: ab.PGD(0.1, num_steps="3"), "num_steps must be a whole number of at least 0, got '3'"),
    (lambda: ab.PGD(0.1, num_steps=True), "num_steps must be a whole number of at least 0, got True"),
    (lambda: ab.PGD("0.1"), "epsilon must be a number, got '0.1'"),
    (lambda: ab.PGD(None), "epsilon must be a number, got None"),
    (lambda: ab.PGD(Fraction(8, 255)), r"epsilon must be a number, got Fraction\(8, 255\)"),
    (lambda: ab.PGD(torch.ones(3)), r"epsilon must be a number, got tensor\(\[1., 1., 1.\]\)"),
    (lambda: ab.PGD(0.1, "0.1"), "step_size must be a number, got '0.1'"),
    (lambda: ab.PGD(0.1, momentum="some"), "momentum must be a number, got 'some'"),
    (lambda: ab.PGD(0.1, attack_samples=2.0), "attack_samples must be a whole number of at least 1, got 2.0"),
    (lambda: ab.PGD(0.1, norm=["l2"]), r"norm must be one of linf, l2, got \['l2'\]"),
    (lambda: ab.APGD(0.1, restarts=None), "restarts must be a whole number of at least 1, got None"),
    (lambda: ab.RandomNoise(0.1, num_tries="many"), "num_tries must be a whole number of at least 1, got 'many'"),
    (lambda: ab.Square("0.1"), "epsilon must be a number, got '0.1'"),
    (lambda: ab.Square(0.1, num_queries=0.5), "num_queries must be a whole number of at least 0, got 0.5"),
    (lambda: ab.CarliniWagner(0.1, num_steps=0.5), "num_steps must be a whole number of at least 1, got 0.5"),
    (lambda: ab.CarliniWagner(0.1, confidence="high"), "confidence must be a number, got 'high'"),
    (lambda: ab.Examination(None, [], epsilon=0.1, num_steps=0.5), "num_steps must be a whole number of at least 1, got 0.5"),
    (lambda: ab.Examination(None, [], epsilon="0.1"), "epsilon must be a number, got '0.1'"),
    (lambda: ab.load(3), "path must be a path, got 3"),
    (lambda: ab.load(b"x"), "path must be a path, got b'x'"),
    (lambda: ab.load(""), "path must be a path, got ''"),
])
def test_what_is_no_number_or_path_is_refused_with_the_name_of_the_argument(make, message):
    with pytest.raises(ab.InputError, match=message):
        make()


@pytest.mark.parametrize("num_samples", [1.5, "2", None])
def test_draws_that_are_no_whole_number_are_refused_by_all_that_average(classifier, num_samples):
    x, y = torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    for call in (lambda: ab.predict(classifier, x, num_samples=num_samples), lambda: classifier.averaged(num_samples),
                 lambda: ab.robust_accuracy(classifier, [(x, y)], num_samples=num_samples),
                 lambda: ab.worst_case_accuracy(classifier, [(x, y)], {"pgd": ab.PGD(0.1)}, num_samples=num_samples)):
        with pytest.raises(ab.InputError, match="num_samples must be a whole number of at least 1, got"):
            call()


def test_numpys_numbers_are_numbers():
    attack = ab.PGD(np.float32(0.1), num_steps=np.int64(3), attack_samples=np.int32(2))
    assert (attack.num_steps, attack.attack_samples) == (3, 2) and attack.step_size == pytest.approx(0.1 * 2.5 / 3)
    check_number("epsilon", torch.tensor(0.1))


def test_saving_to_a_folder_or_below_a_missing_one_is_refused_and_makes_nothing(tmp_path, classifier):
    with pytest.raises(ab.InputError, match=f"path must be that of a file, got the folder {tmp_path}"):
        ab.save(tmp_path, classifier)
    with pytest.raises(ab.InputError, match="path must be a path, got 3"):
        ab.save(3, classifier)
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{tmp_path / 'missing/dir/x.pt'}'"):
        ab.save(str(tmp_path / "missing/dir/x.pt"), classifier)
    assert list(tmp_path.iterdir()) == []


def test_paths_may_be_given_as_text_to_every_command_and_dataclass_of_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(out="text", width=2, num_train=60, validation=10, num_steps=1, epochs=1, defense="none", device="cpu")
    assert (tmp_path / "text/config.json").exists()
    evaluate.accuracy(of=Selection(run="text", num_test=10, device="cpu"), epsilons=[0], attack=AttackFlags(num_steps=1))
    assert (tmp_path / "text/evaluation/accuracy.csv").exists()
    evaluate.accuracy(of=Selection(run="text", num_test=10, device="cpu"), epsilons=0.1, attack=AttackFlags(num_steps=1))
    rows = csv.DictReader(Path("text/evaluation/accuracy.csv").read_text().splitlines())
    assert [float(row["epsilon"]) for row in rows] == [0, 0.1]
    assert Selection(runs=["a", Path("b")]).runs == [Path("a"), Path("b")]
    assert Reproduction(out="here").out == Path("here")


def test_none_is_a_flag_that_is_not_given(tmp_path):
    out, nothing = tmp_path / "run", {"alpha": None, "prior": None, "num_samples": None}
    train(out=out, width=2, num_train=60, validation=10, num_steps=1, epochs=1, defense="none", device="cpu", **nothing)
    train(resume=out, epochs=2, defense=None, device=None, **nothing)
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(("call", "message"), [
    (lambda: train(out=3), "out must be a path, got 3"),
    (lambda: train(out=""), "out must be a path, got ''"),
    (lambda: train(epochs="3"), "epochs must be an integer in"),
    (lambda: train(epochs=2.5), "epochs must be an integer in"),
    (lambda: train(epochs=0), "epochs must be an integer"),
    (lambda: train(defense="advbn"), "defense must be one of none, adv"),
    (lambda: train(learning_rate=math.nan), "learning_rate must be a number > 0"),
    (lambda: train(tensorboard=1), "tensorboard must be true or false, got 1"),
    (lambda: evaluate.accuracy(of="runs/a"), "of must be a Selection, got 'runs/a'"),
    (lambda: evaluate.accuracy(of=Selection(run="a"), epsilons="0,0.1"),
     r"epsilons must be a list of numbers in \[0, [0-9.]+\], got '0,0.1'"),
    (lambda: evaluate.accuracy(of=Selection(run="a"), epsilons=[0, 2]), "epsilons must be a list of numbers in"),
    (lambda: evaluate.accuracy(of=Selection(run="a"), epsilons=[]), "epsilons must be a list of numbers in"),
    (lambda: evaluate.accuracy(of=Selection(run="a"), epsilons=2), r"epsilons must be a list of numbers in .*, got 2"),
    (lambda: Selection(run=3), "run must be a path, got 3"),
    (lambda: Selection(runs="a,b"), "runs must be a list, each a path"),
    (lambda: train(out="a", defense="adv", alpha=1), "alpha means nothing for --defense adv"),
    (lambda: train(out="a", defense="adv", num_samples=5), "num_samples 5 means nothing for --defense adv"),
    (lambda: AttackFlags(num_steps=1.5), "num_steps must be an integer"),
    (lambda: Reproduction(scale="huge"), "scale must be one of smoke, small, medium, paper, got 'huge'"),
    (lambda: benchmark.benchmark(out=3), "out must be a path, got 3"),
    (lambda: demo.demo(out=3), "out must be a path, got 3"),
])
def test_what_a_command_cannot_take_is_refused_in_python_too(tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ab.InputError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("error", "told"), [
    (ValueError("mat1 and\n  mat2 do\tnot fit"), "mat1 and mat2 do not fit"), (KeyError(), "KeyError"),
    (RuntimeError(" \n"), "RuntimeError"), (RuntimeError("word " * 1000), ("word " * 60)),
])
def test_a_reason_is_one_line_that_is_neither_empty_nor_endless(error, told):
    assert reason(error) == told
