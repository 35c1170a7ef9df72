"""Copies of what torch does not copy: classifiers, draws and mean networks of networks that keep what a call has left."""
import copy
import pickle
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import prune

import pyro_advbnn as ab

X, Y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)


class Keeps(nn.Module):
    """Keeps an activation as an attribute, and the last ones in a list and a mapping."""

    def __init__(self):
        super().__init__()
        self.net, self.last, self.named = ab.networks.convnet(width=4), [], {}

    def forward(self, x):
        self.features = self.net.features(x)
        self.last.append(self.features * 2)
        self.named["mean"] = self.features.mean((2, 3))
        return self.net.classifier(self.named["mean"])


class Scaled(nn.Module):
    """Parameters of its own, at the top and further in."""

    def __init__(self):
        super().__init__()
        self.net, self.scale, self.inner = ab.networks.convnet(width=4), nn.Parameter(torch.ones(())), nn.Module()
        self.inner.shift = nn.Parameter(torch.zeros(10))

    def forward(self, x):
        return self.net(x) * self.scale + self.inner.shift


def changed(by):
    """A network whose first and last weights are computed from others before each call."""
    network = ab.networks.convnet(width=4)
    with warnings.catch_warnings(action="ignore"):       # torch has newer ones
        by(network.features[0])
        by(network.classifier)
    return network


NETWORKS = {
    "kept activations": Keeps, "weight_norm": lambda: changed(nn.utils.weight_norm),
    "spectral_norm": lambda: changed(nn.utils.spectral_norm),
    "prune": lambda: changed(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
    "GraphModule": lambda: fx.symbolic_trace(Scaled()),
    "a GraphModule inside": lambda: nn.Sequential(nn.Identity(), fx.symbolic_trace(Scaled())),
}


@pytest.mark.parametrize("defense", ["bnn", "none", "rse"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_networks_that_torch_does_not_copy_are_trained_drawn_and_evaluated(network, defense):
    torch.manual_seed(0)
    network = network()
    network(X)                                           # what is kept is there before the classifier
    classifier = ab.build_classifier(defense, network, init_std=1e-8)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
    ab.train_step(classifier, optimizer, X, Y, kl_weight=0, attack=ab.PGD(0.1, num_steps=1))
    classifier.eval()
    for build in (classifier.draw, classifier.mean_network, lambda: copy.deepcopy(classifier),
                  lambda: ab.surrogate(classifier, "pool:2")):
        torch.manual_seed(1)
        answer = build().eval()(X)
        if defense != "rse":
            torch.testing.assert_close(answer.log_softmax(-1), classifier(X).log_softmax(-1), rtol=1e-3, atol=1e-4)
    row = ab.robust_accuracy(classifier, [(X, Y)], ab.Through(ab.PGD(0.1, num_steps=1), "mean"), num_samples=2)
    assert row["num_examples"] == 6
    copied = copy.deepcopy(classifier)
    ab.train_step(copied, torch.optim.SGD(copied.parameters(), lr=0.1), X, Y, kl_weight=0)


@pytest.mark.parametrize(("attribute", "value"), [("lock", threading.Lock()), ("images", (x for x in X))])
def test_an_attribute_that_cannot_be_copied_is_named(attribute, value):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    setattr(network[1], attribute, value)
    deterministic = ab.Classifier(network)
    for make in (lambda: ab.BayesianClassifier(network), deterministic.draw, lambda: copy.deepcopy(deterministic)):
        with pytest.raises(ab.InputError, match=f"its attribute 1.{attribute} cannot: cannot pickle"):
            make()
    assert torch.equal(deterministic(X), F.linear(X.flatten(1), network[1].weight, network[1].bias))


def scripted(network):
    with warnings.catch_warnings(action="ignore"):       # torch has newer ones
        return torch.jit.script(network)


def traced(network):
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.trace(network, X)


@pytest.mark.parametrize(("wrap", "match"), [
    (nn.DataParallel, "pass its .module"), (lambda network: nn.Sequential(nn.DataParallel(network)), "pass its .module"),
    (scripted, "TorchScript"), (lambda network: nn.Sequential(traced(network)), "TorchScript")])
@pytest.mark.parametrize("defense", ["none", "rse", "bnn"])
def test_networks_that_call_others_than_the_modules_they_hold_are_refused_for_every_defence(wrap, match, defense):
    network = wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(ab.InputError, match=match):
        ab.build_classifier(defense, network)


@pytest.mark.parametrize("wrap", [ab.Classifier, ab.BayesianClassifier])
def test_a_compiled_classifier_is_pickled_and_its_copy_answers_by_its_own_weights(wrap):
    classifier = wrap(ab.networks.convnet(width=4)).eval()
    classifier.compile(backend="eager")
    with torch.no_grad():
        classifier(X)
        copied = copy.deepcopy(classifier)
        for p in copied.parameters():
            p.fill_(-100.0 if p is getattr(copied, "log_std", None) else 0.0)
        assert copied(X).abs().max() < 1e-6 < classifier(X).abs().max()
    assert torch.equal(next(pickle.loads(pickle.dumps(classifier)).parameters()), next(classifier.parameters()))
