"""Tests of checkpoints: what is saved comes back bit for bit, and no file can do harm."""
import os
import pickle
import warnings
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pyro.distributions import Laplace, Normal
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.bayes import priors
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.training import checkpoints, run_folders

CONFIG = {"network": "convnet", "num_classes": 10, "in_channels": 1, "width": 4}
x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
y = torch.arange(16) % 10


def convnet():
    torch.manual_seed(0)
    return ab.networks.convnet(width=4)


def trained(classifier):
    """A few steps, so that no tensor is as it was made, the BatchNorm statistics included."""
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
    torch.manual_seed(1)
    classifier.train()
    for _ in range(3):
        ab.train_step(classifier, optimizer, x, y, kl_weight=1e-4)
    return classifier


def assert_same(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
    assert a.settings() == b.settings() and type(a) is type(b)
    answers = []
    for classifier in (a, b):
        torch.manual_seed(2)
        answers.append((ab.predict(classifier, x, num_samples=3), classifier.kl().detach()))
    assert torch.equal(answers[0][0], answers[1][0]) and torch.equal(answers[0][1], answers[1][1])


@pytest.mark.parametrize("told", [{}, {"defense": "rse"}, {"defense": "mine"}])
@pytest.mark.parametrize("defense", ab.DEFENSES)
def test_every_defence_comes_back_bit_for_bit_whatever_config_calls_it(tmp_path, defense, told):
    classifier = trained(ab.build_classifier(defense, convnet(), prior_std="fan_in", init_std="fan_in/10"))
    assert any("running_mean" in name and value.abs().sum() > 0 for name, value in classifier.state_dict().items())
    checkpoints.save(tmp_path / "c.pt", classifier, CONFIG | told)
    loaded = checkpoints.load(tmp_path / "c.pt")
    assert not loaded.training
    assert_same(classifier, loaded)


@pytest.mark.parametrize("settings", [
    {"kl_over": "last"},
    {"deterministic": ["*.bias", "features.1.*"]},
    {"prior_std": {"classifier.*": 0.3, "*": 0.1}, "init_std": 0.02},
    {"prior": "spike_and_slab", "prior_std": 0.5, "init_std": "share/10"},
    {"prior": priors.scale_mixture([0.5, 0.5], [1.0, 0.1])},
    {"prior": priors.spike_and_slab(), "deterministic": ["*.bias"]},
], ids=lambda settings: "-".join(settings))
def test_every_setting_of_a_bayesian_classifier_comes_back(tmp_path, settings):
    classifier = trained(ab.BayesianClassifier(convnet(), **settings))
    checkpoints.save(tmp_path / "c.pt", classifier, CONFIG)
    own = {"prior": settings["prior"]} if not isinstance(settings.get("prior", ""), str) else {}
    assert_same(classifier, checkpoints.load(tmp_path / "c.pt", **own))


def test_numpys_numbers_and_texts_come_back_as_pythons(tmp_path):
    classifier = ab.BayesianClassifier(convnet(), prior_std=np.logspace(-2, 0, 3)[1], init_std={"*": np.float64(0.02)})
    config = CONFIG | {"accuracy": np.mean([0.25, 0.75]), "class_names": list(np.array(["cat", "dog"]))}
    checkpoints.save(tmp_path / "c.pt", classifier, config, epoch=np.int64(3), losses=[np.float32(0.5)])
    content = checkpoints.read(tmp_path / "c.pt")
    assert content["config"] == CONFIG | {"accuracy": 0.5, "class_names": ["cat", "dog"]}
    assert (content["epoch"], content["losses"]) == (3, [0.5])
    assert checkpoints.load(tmp_path / "c.pt").settings()["prior_std"] == pytest.approx(0.1)


@pytest.mark.parametrize("defense", ["adv", "advbnn"])
def test_what_is_loaded_in_inference_mode_predicts_there_and_trains_later(tmp_path, defense):
    checkpoints.save(tmp_path / "c.pt", ab.build_classifier(defense, convnet()), CONFIG | {"defense": defense})
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    with torch.inference_mode():
        classifier = ab.load(tmp_path / "c.pt")
        assert ab.predict(classifier, x).shape == (4, 10)
    ab.train_step(classifier, torch.optim.SGD(classifier.parameters(), 0.1), x, y, kl_weight=0.0, attack=ab.PGD(0.1))


def test_a_network_of_the_users_own_comes_back_when_the_same_architecture_is_passed(tmp_path):
    def network():
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 10))

    classifier = trained(ab.BayesianClassifier(network()))
    checkpoints.save(tmp_path / "c.pt", classifier)
    passed = network()
    before = {name: value.clone() for name, value in passed.state_dict().items()}
    assert_same(classifier, checkpoints.load(tmp_path / "c.pt", passed))
    assert all(torch.equal(value, before[name]) for name, value in passed.state_dict().items())
    with pytest.raises(InputError, match="does not name its network; pass the same architecture"):
        checkpoints.load(tmp_path / "c.pt")
    with pytest.raises(InputError, match="does not fit the network"):
        checkpoints.load(tmp_path / "c.pt", convnet())


@pytest.mark.parametrize("frozen", [["features"], ["features.0.weight", "classifier.bias"]], ids=["all but the head", "two"])
@pytest.mark.parametrize("defense", ["none", "rse", "bnn"])
def test_frozen_parameters_come_back_frozen(tmp_path, frozen, defense):
    network = convnet()
    for name, p in network.named_parameters():
        p.requires_grad_(not name.startswith(tuple(frozen)))
    classifier = trained(ab.build_classifier(defense, network))
    checkpoints.save(tmp_path / "c.pt", classifier, CONFIG | {"defense": defense})
    passed = convnet()
    for loaded in (checkpoints.load(tmp_path / "c.pt"), checkpoints.load(tmp_path / "c.pt", passed)):
        assert_same(classifier, loaded)
        for parameters in (loaded, classifier):
            assert sum(not p.requires_grad for p in parameters.parameters()) in (2, 16)
        assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in classifier.parameters()]
    assert defense != "bnn" or all(p.requires_grad for p in passed.parameters())         # it is left as it is


@pytest.mark.parametrize("still_frozen", [False, True])
def test_what_was_frozen_when_a_network_became_bayesian_and_trains_later_comes_back(tmp_path, still_frozen):
    network = convnet()
    network.features.requires_grad_(False)
    classifier = trained(ab.BayesianClassifier(network).requires_grad_(True))
    checkpoints.save(tmp_path / "c.pt", classifier)
    passed = convnet()
    passed.features.requires_grad_(not still_frozen)
    loaded = checkpoints.load(tmp_path / "c.pt", passed)
    assert_same(classifier, loaded)
    assert all(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize(("wrap", "dtypes"), [
    (ab.Classifier, (torch.float64, torch.float32)), (ab.Classifier, (torch.bfloat16, torch.float32)),
    *((ab.BayesianClassifier, (dtype, dtype)) for dtype in (torch.float64, torch.float16, torch.float32))])
def test_each_tensor_comes_back_in_its_own_dtype_and_half_precision_as_float32(tmp_path, wrap, dtypes):
    def network(first=torch.float32, last=torch.float32):
        layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8).to(first), nn.Linear(8, 10).to(last))
        layers.register_buffer("spectrum", torch.tensor([1 + 2j, 3j]))
        layers.register_buffer("exact", torch.tensor(0.1, dtype=torch.float64))
        return layers

    classifier = wrap(network(*dtypes))
    checkpoints.save(tmp_path / "c.pt", classifier)
    loaded, saved = checkpoints.load(tmp_path / "c.pt", network()).state_dict(), classifier.state_dict()
    for name, value in loaded.items():
        assert torch.equal(value, saved[name].to(value.dtype)), name
        assert value.dtype == (torch.float32 if saved[name].dtype in (torch.float16, torch.bfloat16) else saved[name].dtype)


def test_code_of_the_users_own_is_never_imported_from_a_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "harmful.py").write_text("import pathlib\npathlib.Path(__file__).with_name('HARM').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoints.save(tmp_path / "c.pt", ab.Classifier(convnet()), CONFIG | {"network": "harmful:build"})
    with pytest.raises(InputError, match="give --network again, or pass the network"):
        checkpoints.load(tmp_path / "c.pt")
    assert not (tmp_path / "HARM").exists()


def test_a_prior_of_ones_own_must_be_passed_again_and_no_other(tmp_path):
    classifier = ab.BayesianClassifier(convnet(), prior=priors.spike_and_slab())
    checkpoints.save(tmp_path / "c.pt", classifier, CONFIG)
    with pytest.raises(InputError, match="pass it as prior"):
        checkpoints.load(tmp_path / "c.pt")
    answers = []
    for each in (classifier, checkpoints.load(tmp_path / "c.pt", prior=priors.spike_and_slab())):
        torch.manual_seed(0)
        answers.append(each.kl().detach())
    assert torch.allclose(*answers)
    checkpoints.save(tmp_path / "c.pt", ab.BayesianClassifier(convnet()), CONFIG)
    with pytest.raises(InputError, match="was trained with the prior normal; pass none"):
        checkpoints.load(tmp_path / "c.pt", prior=Normal(0.0, 0.06))


def test_a_prior_of_other_parameters_is_not_taken_for_the_one_of_the_training(tmp_path):
    checkpoints.save(tmp_path / "c.pt", ab.BayesianClassifier(convnet(), prior=Laplace(0.0, 0.1)), CONFIG)
    checkpoints.load(tmp_path / "c.pt", prior=Laplace(0.0, 0.1))
    for other in (Laplace(0.0, 10.0), Normal(0.0, 0.1)):
        with pytest.raises(InputError, match="pass it as prior"):
            checkpoints.load(tmp_path / "c.pt", prior=other)


class TwoBranches(nn.Module):
    """Two layers of one shape, which each training may declare in another order."""

    def __init__(self, order):
        super().__init__()
        for name in order:
            setattr(self, name, nn.Linear(64, 10))

    def forward(self, x):
        return self.left(x.flatten(1)) - self.right(x.flatten(1))


@pytest.mark.parametrize("deterministic", [(), ("*.bias", "left.weight")])
def test_weights_that_a_network_declares_in_another_order_are_refused(tmp_path, deterministic):
    """They lie in one vector by their order: those of one layer would be taken for the other's."""
    saved, other = (ab.BayesianClassifier(TwoBranches(order), deterministic=deterministic)
                    for order in (["left", "right"], ["right", "left"]))
    checkpoints.save(tmp_path / "checkpoint.pt", saved, training={})
    checkpoints.load(tmp_path / "checkpoint.pt", TwoBranches(["left", "right"]))
    told = r"the next weight is (left|right).* \[.*10.*\] in the file, right"
    with pytest.raises(InputError, match=told):
        checkpoints.load(tmp_path / "checkpoint.pt", TwoBranches(["right", "left"]))
    with pytest.raises(InputError, match=told):          # as a training goes on
        run_folders.restore_position(SimpleNamespace(result=other), checkpoints.read(tmp_path), tmp_path)


@pytest.mark.parametrize("more", [
    {"config": {"network": print}}, {"config": {"counts": defaultdict(int)}}, {"accuracies": np.ones(3)},
    {"folder": Path("runs")}, {"attack": lambda x: x}])
def test_what_could_not_be_read_again_is_not_saved_and_the_old_file_stays(tmp_path, more):
    checkpoints.save(tmp_path / "c.pt", ab.Classifier(convnet()), CONFIG)
    before = (tmp_path / "c.pt").read_bytes()
    with pytest.raises(InputError, match="must hold plain values and tensors only"):
        checkpoints.save(tmp_path / "c.pt", ab.Classifier(convnet()), **{"config": CONFIG} | more)
    assert (tmp_path / "c.pt").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("other", [nn.Linear(2, 2), None, {"weights": 1}])
def test_what_is_no_classifier_is_not_saved(tmp_path, other):
    with pytest.raises(InputError, match=f"classifier must be one of this package's classifiers, got a {type(other).__name__}"):
        checkpoints.save(tmp_path / "c.pt", other)
    assert list(tmp_path.iterdir()) == []


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def saved(path, **changes):
    empty = {"config": CONFIG, "settings": {"kind": "deterministic"}, "state": {}, "frozen": []}
    torch.save({"format": checkpoints.FORMAT} | empty | changes, path)


def truncated(path):
    checkpoints.save(path, ab.Classifier(convnet()), CONFIG)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD = {
    "truncated": (truncated, "damaged or no checkpoint"),
    "empty": (lambda path: path.touch(), "damaged or no checkpoint"),
    "text": (lambda path: path.write_text("hello, I am a text\n"), "damaged or no checkpoint"),
    "pickle bomb": (lambda path: path.write_bytes(pickle.dumps(Bomb(path.parent / "BOOM"))), "damaged or no"),
    "bomb inside": (lambda path: saved(path, settings=Bomb(path.parent / "BOOM")), "damaged or no checkpoint"),
    "whole module": (lambda path: torch.save(nn.Linear(2, 2), path), "damaged or no checkpoint"),
    "tensor": (lambda path: torch.save(torch.ones(3), path), "not a checkpoint of this package"),
    "foreign": (lambda path: torch.save({"state_dict": {}}, path), "not a checkpoint of this package"),
    "newer": (lambda path: saved(path, format=checkpoints.FORMAT + 1), "has format 6; this version reads 5"),
    "odd format": (lambda path: saved(path, format="new"), "not a checkpoint of this package"),
    "no weights": (saved, "does not fit the network"),
    "missing": (lambda path: None, "cannot be read: No such file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line_and_runs_nothing(tmp_path, kind):
    write, message = BAD[kind]
    path = tmp_path / "c.pt"
    write(path)
    with warnings.catch_warnings(record=True, action="always") as told, pytest.raises(InputError) as refusal:
        checkpoints.load(path)
    assert told == []                                    # one line, not one and a warning
    text = str(refusal.value)
    assert message in text and str(path) in text and "\n" not in text
    assert "weights_only" not in text                    # torch's advice is to load the file unsafely
    assert not (tmp_path / "BOOM").exists()


@pytest.mark.parametrize("place", ["os.replace", "os.fsync", "torch.save"])
def test_a_crash_while_saving_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, place):
    path = tmp_path / "c.pt"
    checkpoints.save(path, ab.Classifier(convnet()), CONFIG)
    before = path.read_bytes()

    def crash(*arguments):
        if place == "torch.save":
            Path(tmp_path / next(iter(set(os.listdir(tmp_path)) - {"c.pt"}))).write_text("half a file")
        raise OSError("the disk is full")

    monkeypatch.setattr(torch if place == "torch.save" else os, place.partition(".")[2], crash)
    with pytest.raises(OSError, match="disk is full"):
        checkpoints.save(path, trained(ab.Classifier(convnet())), CONFIG)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["c.pt"]
