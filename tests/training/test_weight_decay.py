"""Tests of weight decay: it pulls at means and deterministic parameters, and at no log std."""
import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.training.recipes import build_optimizer

OPTIMIZERS = {name: lambda classifier, name=name: build_optimizer(classifier, {
    "optimizer": name, "learning_rate": 1e-3, "weight_decay": 0.1}) for name in ("adam", "sgd")}
OPTIMIZERS["AdamW"] = lambda classifier: torch.optim.AdamW(classifier.parameter_groups(), lr=1e-3)


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_without_a_gradient_means_and_deterministic_parameters_shrink_and_stds_stay(build):
    torch.manual_seed(0)
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.01, deterministic=["*.weight"])
    before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    optimizer = build(classifier)
    for p in classifier.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(classifier.log_std, before["log_std"])
    for name in ("mean", "deterministic"):
        assert getattr(classifier, name).norm() < before[name].norm()


def test_a_deterministic_network_decays_as_a_whole():
    classifier = ab.Classifier(ab.networks.convnet(width=4))
    group, = build_optimizer(classifier, {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.1}).param_groups
    assert group["params"] == list(classifier.parameters()) and group["weight_decay"] == 0.1


def test_a_parameter_may_get_its_first_gradient_in_a_later_step():
    """As an expert to which the first batch sent no image."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = build_optimizer(nn.ModuleList([first, second]), {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0})
    start = first.weight.detach().clone()
    for modules in ([first], [first, second]):
        optimizer.zero_grad()
        for p in (p for module in modules for p in module.parameters()):
            p.grad = torch.ones_like(p)
        before = second.weight.detach().clone()
        optimizer.step()
    torch.testing.assert_close(second.weight.detach(), before - 0.1)
    torch.testing.assert_close(first.weight.detach(), start - 0.1 - 0.1 * (1 + 0.9))
