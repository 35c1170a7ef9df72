import math

import pyro
import pytest
import torch
from pyro.distributions import Laplace, Normal

from pyro_advbnn.bayes.guide import MeanFieldNormal, draw, kl_to_normal
from pyro_advbnn.bayes.kernels import vectors
from pyro_advbnn.bayes.kernels.vectors import standard_normal_, unflatten
from pyro_advbnn.bayes.priors import ElementwisePrior, NormalPrior


@pytest.fixture
def small_chunks(monkeypatch):
    """Vectors of a few hundred elements take many chunks."""
    monkeypatch.setattr(vectors, "_CPU_CHUNK", 64)


def posterior(size=1000, **more):
    mean, log_std = torch.randn(size, dtype=torch.float64), 0.3 * torch.randn(size, dtype=torch.float64) - 1
    mean, log_std = mean.requires_grad_(), log_std.requires_grad_()
    return MeanFieldNormal(mean, log_std, **more), Normal(mean, log_std.exp()).to_event(1)


def test_draws_have_the_mean_and_the_std_of_the_posterior(small_chunks):
    q, _ = posterior(200)
    draws = torch.stack([q.rsample().detach() for _ in range(2000)])
    torch.testing.assert_close(draws.mean(0), q.mean.detach(), atol=0.08, rtol=0)
    torch.testing.assert_close(draws.std(0), q.stddev.detach(), atol=0, rtol=0.1)
    correlation = torch.corrcoef(draws.T) - torch.eye(200)
    assert correlation.abs().max() < 6 / 2000**0.5        # every weight has noise of its own


@pytest.mark.parametrize("differentiable", [True, False])
def test_consecutive_draws_differ_in_every_weight(small_chunks, differentiable):
    q, _ = posterior()
    with torch.set_grad_enabled(differentiable):
        first, second = q.rsample(), q.rsample()
    assert (first != second).all()


def test_log_density_and_its_gradients_are_those_of_independent_normals_over_the_weights_that_count():
    q, reference = posterior(counted=(200, 950))
    value = torch.randn(1000, dtype=torch.float64, requires_grad=True)
    log_probs = q.log_prob(value), reference.base_dist.log_prob(value)[200:950].sum()
    torch.testing.assert_close(*log_probs)
    torch.testing.assert_close(*(torch.autograd.grad(log_prob, [value, q.mean, q.log_std]) for log_prob in log_probs))


@pytest.mark.parametrize("counts", [True, False])
def test_gradients_can_be_differentiated_again(small_chunks, counts):
    """As the Hessian of Pyro's AutoLaplaceApproximation and gradient penalties need it."""
    prior, size = NormalPrior([(0, 60, 0.1), (60, 100, 0.7)], (30, 90)), 100

    def value(mean, log_std):
        torch.manual_seed(1)
        weights, kl = MeanFieldNormal(mean, log_std).rsample_with_kl(prior)
        kl = kl if counts else 0.0
        matrix, vector, unused = unflatten(weights, [(9, 10), (9,), (1,)])
        return (matrix.sin().sum(1) * vector).sum() + kl

    q, _ = posterior(size)
    assert torch.autograd.gradgradcheck(value, (q.mean, q.log_std))


def test_each_of_several_draws_has_its_log_density():
    q, _ = posterior(100, counted=(20, 95))
    draws = q.rsample((2, 3)).detach()
    for distribution in (q, NormalPrior([(0, 30, 0.1), (30, 100, 0.7)], (20, 95)),
                         ElementwisePrior(Laplace(0.0, 0.1), (20, 95), like=q.mean)):
        expected = torch.stack([distribution.log_prob(w) for w in draws.view(6, 100)]).view(2, 3)
        torch.testing.assert_close(distribution.log_prob(draws), expected)


@pytest.mark.parametrize("counted", [(0, 1000), (200, 950), (400, 500)])
def test_the_pass_that_draws_and_takes_the_kl_says_what_equations_5_and_6_say(small_chunks, counted):
    prior = NormalPrior([(0, 300, 0.1), (300, 1000, 0.7)], counted)
    q, _ = posterior()
    torch.manual_seed(1)
    weights, kl = q.rsample_with_kl(prior)
    torch.manual_seed(1)
    expected = draw(q.mean, q.log_std, standard_normal_(torch.empty_like(q.mean)))
    first, last = counted
    expected_kl = sum(kl_to_normal(q.mean[part], q.log_std[part], std) for part, std in (
        (slice(first, max(first, 300)), 0.1), (slice(max(first, 300), last), 0.7)))
    torch.testing.assert_close((weights, kl), (expected, expected_kl))
    torch.testing.assert_close(torch.distributions.kl_divergence(q, prior), expected_kl)
    cost = torch.randn_like(weights)
    for loss, reference in ((weights @ cost + 0.1 * kl, expected @ cost + 0.1 * expected_kl), (kl, expected_kl),
                            (weights @ cost, expected @ cost)):
        leaves = [q.mean, q.log_std]
        torch.testing.assert_close(torch.autograd.grad(loss, leaves, retain_graph=True),
                                   torch.autograd.grad(reference, leaves, retain_graph=True))


def test_equation_6_is_the_kl_of_two_normals():
    q, reference = posterior()
    expected = torch.distributions.kl_divergence(reference.base_dist, Normal(0.0, torch.tensor(0.1, dtype=torch.float64))).sum()
    torch.testing.assert_close(kl_to_normal(q.mean, q.log_std, 0.1), expected)


def test_what_was_drawn_in_inference_mode_leaves_training_as_it_is():
    q, _ = posterior()
    with torch.inference_mode():
        q.rsample()
    q.rsample().sum().backward()
    assert (q.mean.grad == 1).all()


def test_unflatten_gives_views_and_gathers_their_gradients():
    vector = torch.arange(10.0, requires_grad=True)
    first, second, third = unflatten(vector, [(2, 2), (), (5,)])
    assert first.tolist() == [[0, 1], [2, 3]] and second == 4
    (first.sum() * 2 + third[1]).backward()               # the second has no gradient
    assert vector.grad.tolist() == [2, 2, 2, 2, 0, 0, 1, 0, 0, 0]
    assert first.data_ptr() == vector.data_ptr()


def test_pyro_accepts_it_as_a_distribution():
    q, _ = posterior(7)
    assert q.rsample((3, 2)).shape == (3, 2, 7)
    with pyro.poutine.trace() as trace:
        pyro.sample("w", q)
    assert trace.trace.nodes["w"]["fn"].event_shape == (7,)
    assert math.isfinite(trace.trace.log_prob_sum().item())


def test_gradients_that_can_be_differentiated_again_are_those_of_the_fast_pass():
    prior, found = NormalPrior([(0, 60, 0.1), (60, 100, 0.7)], (30, 90)), []
    leaves = [value.double().requires_grad_() for value in (torch.randn(100), torch.full((100,), -1.0))]
    for create_graph in (False, True):
        torch.manual_seed(1)
        weights, kl = MeanFieldNormal(*leaves).rsample_with_kl(prior)
        found.append(torch.autograd.grad(weights.sin().sum() + kl, leaves, create_graph=create_graph))
    torch.testing.assert_close(*found)
