"""Tests of adversarial weight perturbation: the formula, what it leaves alone, and that no trace of it stays."""
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import build
from torch import nn
from torch.func import functional_call

import pyro_advbnn as ab
from pyro_advbnn.training import trainer
from pyro_advbnn.training.weight_perturbation import perturbed

KINDS = {
    "deterministic": ab.Classifier,
    "noisy": lambda network: ab.build_classifier("rse", network),
    "bayesian": lambda network: ab.BayesianClassifier(network, init_std=1e-8),
    "partly bayesian": lambda network: ab.BayesianClassifier(network, init_std=1e-8, deterministic=["0.*", "4.weight"]),
    "frozen layer": lambda network: ab.Classifier(network[:3].requires_grad_(False).append(network[3]).append(network[4])),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def network(*first):
    torch.manual_seed(0)
    return nn.Sequential(*first, nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10))


def batch():
    torch.manual_seed(1)
    return torch.rand(10, 1, 8, 8), torch.arange(10)


def weights(classifier):
    return {name: p.detach().clone() for name, p in classifier.mean_network().named_parameters()}


def step(classifier, lr, **more):
    torch.manual_seed(2)
    optimizer = torch.optim.SGD([p for p in classifier.parameters() if p.requires_grad], lr)
    ab.train_step(classifier, optimizer, *batch(), kl_weight=0.0, **more)


def slopes(net, at):
    at = {name: w.clone().requires_grad_() for name, w in at.items()}
    x, y = batch()
    return dict(zip(at, torch.autograd.grad(F.cross_entropy(functional_call(net, at, (x,)), y), at.values()), strict=True))


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("kind", ["deterministic", "bayesian", "partly bayesian"])
def test_a_step_takes_the_gradient_at_the_perturbed_weights_from_where_the_weights_are(kind, micro_batch):
    net = network()
    classifier = KINDS[kind](net)
    before = weights(classifier)
    gradient = slopes(net, before)
    moved = {name: w + 0.3 * w.norm() / gradient[name].norm() * gradient[name] if w.dim() > 1 else w
             for name, w in before.items()}
    step(classifier, 0.5, awp=0.3, micro_batch=micro_batch)
    for name, slope in slopes(net, moved).items():
        torch.testing.assert_close(weights(classifier)[name], before[name] - 0.5 * slope, rtol=1e-4, atol=1e-5)


@kinds
def test_every_trained_matrix_is_moved_by_its_share_and_the_loss_at_the_same_draw_is_higher(kind):
    classifier = KINDS[kind](network())
    x, y = batch()

    def loss():
        torch.manual_seed(3)
        return ab.negative_elbo(classifier, x, y, kl_weight=0.0)

    outside, before = loss(), weights(classifier)
    outside.backward()
    trained = {name for name, p in classifier.network.named_parameters() if p.requires_grad} or before
    with perturbed(classifier, 0.05):
        assert loss() > outside
        inside = weights(classifier)
    for name, w in before.items():
        if w.dim() > 1 and name in trained:
            torch.testing.assert_close((inside[name] - w).norm(), 0.05 * w.norm(), rtol=1e-3, atol=0)
        else:
            assert torch.equal(inside[name], w)


@kinds
def test_the_perturbation_is_undone_bit_for_bit_before_the_optimizers_step(kind):
    classifier = KINDS[kind](network())
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    step(classifier, 0.0, awp=0.1, attack=ab.PGD(0.1, 0.05, 2))
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())
    with pytest.raises(KeyError), perturbed(classifier, 0.1):
        raise KeyError
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())


@pytest.mark.parametrize("kind", ["deterministic", "bayesian"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_batch_moves_the_running_statistics_once(kind, momentum):
    classifier = KINDS[kind](network(nn.BatchNorm2d(1, momentum=momentum)))
    step(classifier, 0.1, awp=0.1)
    norm = classifier.network[0]
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.running_mean, (momentum or 1) * batch()[0].mean().reshape(1))


def test_a_callers_autocast_keeps_no_weights_from_before():
    """Whose cache holds casts of the weights that a gradient was taken at."""
    def losses(**cached):
        classifier = ab.Classifier(network())
        optimizer = torch.optim.SGD(classifier.parameters(), 0.5)
        with torch.autocast("cpu", torch.bfloat16, **cached):
            return [ab.train_step(classifier, optimizer, *batch(), kl_weight=0.0, awp=0.2).loss for _ in range(3)]

    assert losses() == losses(cache_enabled=False)


def test_a_training_perturbs_from_its_chosen_share_on(monkeypatch):
    _, training, _ = build(awp=0.01, awp_start=0.5)
    seen, real = [], trainer.step
    monkeypatch.setattr(trainer, "step", lambda *args, **how: (seen.append(how["awp"]), real(*args, **how))[1])
    for _ in range(2):
        list(training.epoch())
    assert seen == [0.0] * 4 + [0.01] * 4


@pytest.mark.parametrize("awp", [-0.1, 1.1, math.nan, "0.1"])
def test_a_size_that_is_none_is_refused(awp):
    with pytest.raises(ab.InputError, match="awp must "):
        step(ab.Classifier(network()), 0.1, awp=awp)


def test_the_perturbation_climbs_the_likelihood_alone_and_the_step_takes_the_kl_at_the_perturbed_weights():
    net, kl_weight = network(), 0.01
    classifier = ab.BayesianClassifier(net, prior_std=0.1, init_std=1e-8)
    before = weights(classifier)
    gradient = slopes(net, before)
    moved = {name: w + 0.3 * w.norm() / gradient[name].norm() * gradient[name] if w.dim() > 1 else w
             for name, w in before.items()}
    torch.manual_seed(2)
    ab.train_step(classifier, torch.optim.SGD(classifier.parameters(), 0.1), *batch(), kl_weight=kl_weight, awp=0.3)
    for name, slope in slopes(net, moved).items():
        expected = before[name] - 0.1 * (slope + kl_weight * moved[name] / 0.1**2)
        torch.testing.assert_close(weights(classifier)[name], expected, rtol=1e-4, atol=1e-5)
