"""Tests of baselines: they compute what our classifier computes, so that the benchmark compares like with like."""
import copy

import pyro
import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.bayes.kernels import posterior as passes
from pyro_advbnn.bayes.kernels import vectors
from pyro_advbnn.experiments.baselines import AuthorsStyle, PlainPyro
from pyro_advbnn.training.recipes import build_optimizer

BASELINES = [PlainPyro, AuthorsStyle]
ATTACK = ab.PGD(0.1, 0.03, 4)
CERTAIN = 1e-8
ADAM = {"optimizer": "adam", "learning_rate": 0.0, "weight_decay": 0.0}


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = ab.networks.convnet(width=4)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    return network


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.rand(8, 1, 8, 8), torch.randint(10, (8,))


@pytest.fixture
def equal_draws(monkeypatch):
    """Every normal of every way to draw is 0.7."""
    for module in (vectors, passes):
        monkeypatch.setattr(module, "standard_normal_", lambda out: out.fill_(0.7))
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.full_like(like, 0.7))
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal",
                        lambda shape, dtype, device: torch.full(shape, 0.7, dtype=dtype, device=device))


def attacked(baseline, x, y):
    if isinstance(baseline, AuthorsStyle):
        return baseline.attack(x, y, ATTACK.epsilon, ATTACK.step_size, ATTACK.num_steps)
    return ATTACK(baseline, x, y)


def posterior(baseline):
    """The baseline's (means, log stds), each as one vector in the order of the network's parameters."""
    if isinstance(baseline, AuthorsStyle):
        layers = [layer for layer in baseline.modules() if hasattr(layer, "sigma")]
        tensors = [p for layer in layers for p in layer.mu], [p for layer in layers for p in layer.sigma]
    else:
        tensors = baseline.means, baseline.log_stds
    return tuple(torch.cat([p.flatten() for p in part]) for part in tensors)


def gradients(baseline):
    copied = copy.deepcopy(baseline)
    for p, original in zip(copied.parameters(), baseline.parameters(), strict=True):
        p.data = original.grad
    return posterior(copied)


@pytest.mark.parametrize("build", BASELINES)
def test_the_attack_is_ours(build, network, batch, equal_draws):
    ours, baseline = ab.BayesianClassifier(network, 0.1, 0.05, batch_statistics="draw"), build(network, 0.1, 0.05)
    x_adv = attacked(baseline, *batch)
    torch.testing.assert_close(x_adv, ATTACK(ours, *batch), rtol=0, atol=1e-6)
    assert (x_adv - batch[0]).abs().max() > 0.09 and not x_adv.requires_grad


@pytest.mark.parametrize("build", BASELINES)
def test_loss_gradients_and_batch_norm_statistics_of_a_step_are_ours(build, network, batch, equal_draws):
    ours, baseline = ab.BayesianClassifier(network, 0.1, 0.05, batch_statistics="draw"), build(network, 0.1, 0.05)
    loss = baseline.train_step(torch.optim.Adam(baseline.parameters(), lr=0.0), *batch, attack=ATTACK, kl_weight=1e-2)
    expected = ab.train_step(ours, build_optimizer(ours, ADAM), *batch, attack=ATTACK, kl_weight=1e-2)
    torch.testing.assert_close(loss, expected.loss.detach(), rtol=1e-5, atol=1e-5)
    for mine, other in zip((ours.mean.grad, ours.log_std.grad), gradients(baseline), strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-3, atol=1e-5)
    theirs = [buffer for name, buffer in baseline.named_buffers() if "running" in name]
    for mine, other in zip([b for name, b in ours.named_buffers() if "running" in name], theirs, strict=True):
        torch.testing.assert_close(other, mine)


@pytest.mark.parametrize("build", BASELINES)
def test_a_few_steps_move_the_posterior_as_ours(build, network, batch, equal_draws):
    ours, baseline = ab.BayesianClassifier(network, 0.1, 0.05, batch_statistics="draw"), build(network, 0.1, 0.05)
    our_optimizer = build_optimizer(ours, ADAM | {"learning_rate": 1e-3})
    its_optimizer = torch.optim.Adam(baseline.parameters(), lr=1e-3)
    for _ in range(3):
        baseline.train_step(its_optimizer, *batch, attack=ATTACK, kl_weight=1e-2)
        ab.train_step(ours, our_optimizer, *batch, attack=ATTACK, kl_weight=1e-2)
    for mine, other in zip((ours.mean, ours.log_std), posterior(baseline), strict=True):
        assert (mine - other).abs().quantile(0.99) < 1e-4


@pytest.mark.parametrize("build", BASELINES)
def test_the_kl_is_ours(build, network, batch):
    ours, baseline = ab.BayesianClassifier(network, 0.1, CERTAIN), build(network, 0.1, CERTAIN)
    clean = ab.PGD(0.0, 0.0, 0)
    optimizer = torch.optim.Adam(baseline.parameters(), lr=0.0)
    losses = [baseline.train_step(optimizer, *batch, attack=clean, kl_weight=weight) for weight in (1.0, 1e-8)]
    assert (losses[0] - losses[1]).item() == pytest.approx(ours.kl().item(), rel=1e-5)


@pytest.mark.parametrize("build", BASELINES)
def test_every_call_draws_anew_with_the_posteriors_std(build, network, batch):
    baseline = build(network, 0.1, 0.05)
    torch.manual_seed(0)
    first, second = (baseline(batch[0]) for _ in range(2))
    logits = [out[0] if isinstance(out, tuple) else out for out in (first, second)]
    assert (logits[0] != logits[1]).all()
    assert torch.allclose(posterior(baseline)[1].exp(), torch.tensor(0.05))


def test_plain_pyro_has_a_site_for_every_parameter_in_model_and_guide(network, batch):
    baseline = PlainPyro(network, 0.1, 0.05)
    names = list(dict(network.named_parameters()))
    guide = pyro.poutine.trace(baseline.guide).get_trace(*batch, 1.0)
    model = pyro.poutine.trace(pyro.poutine.replay(baseline.model, guide)).get_trace(*batch, 1.0)
    assert guide.stochastic_nodes == names
    assert [name for name in model.stochastic_nodes if name != "batch"] == names


def test_no_draw_of_plain_pyros_attack_pays_for_gradients_of_the_weights(network, batch):
    baseline = PlainPyro(network, 0.1, 0.05)
    attacked(baseline, *batch)
    assert all(p.grad is None and p.requires_grad for p in baseline.parameters())


def test_the_authors_attack_computes_gradients_of_all_weights_and_leaves_none(network, batch):
    baseline = AuthorsStyle(network, 0.1, 0.05)
    computed = []
    for p in baseline.parameters():
        p.register_hook(lambda grad: computed.append(1))
    attacked(baseline, *batch)
    assert len(computed) == ATTACK.num_steps * len(list(baseline.parameters()))
    assert all(p.grad is None for p in baseline.parameters())


def test_the_authors_style_refuses_networks_with_parameters_outside_of_layers():
    with pytest.raises(ab.InputError, match="MultiheadAttention"):
        AuthorsStyle(nn.Sequential(nn.MultiheadAttention(4, 2)), 0.1, 0.05)
