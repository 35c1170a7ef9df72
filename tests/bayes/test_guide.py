import copy
import math

import pyro
import pytest
import torch
from pyro.distributions import Normal

from pyro_advbnn.bayes.guide import MeanFieldNormal
from pyro_advbnn.bayes.kernels import vectors
from pyro_advbnn.bayes.kernels.vectors import Buffers, standard_normal_, unflatten
from pyro_advbnn.bayes.priors import NormalPrior


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def small_chunks(monkeypatch):
    """Vectors of a few hundred elements take many chunks and streams."""
    monkeypatch.setattr(vectors, "_CPU_CHUNK", 64)
    monkeypatch.setattr(vectors, "_STREAM", 128)


def posterior(size=1000, **more):
    mean, log_std = torch.randn(size).requires_grad_(), (0.3 * torch.randn(size) - 1).requires_grad_()
    return MeanFieldNormal(mean, log_std, **more), Normal(mean, log_std.exp()).to_event(1)


def test_draws_have_the_mean_and_the_std_of_the_posterior(small_chunks):
    q, _ = posterior(200)
    draws = torch.stack([q.rsample().detach() for _ in range(2000)])
    torch.testing.assert_close(draws.mean(0), q.mean.detach(), atol=0.08, rtol=0)
    torch.testing.assert_close(draws.std(0), q.stddev.detach(), atol=0, rtol=0.1)
    correlation = torch.corrcoef(draws.T) - torch.eye(200)
    assert correlation.abs().max() < 6 / 2000**0.5        # every weight has noise of its own, across streams too


@pytest.mark.parametrize("differentiable", [True, False])
def test_consecutive_draws_differ_in_every_weight(small_chunks, differentiable):
    q, _ = posterior()
    with torch.set_grad_enabled(differentiable):
        first, second = q.rsample(), q.rsample()
    assert (first != second).all()


def test_a_draw_depends_on_the_seed_and_not_on_the_number_of_threads(small_chunks):
    threads = torch.get_num_threads()
    draws = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            torch.manual_seed(7)
            draws.append(standard_normal_(torch.empty(1000)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])


def test_log_density_and_its_gradients_are_those_of_independent_normals(small_chunks):
    q, reference = posterior()
    value = torch.randn(1000, requires_grad=True)
    torch.testing.assert_close(q.log_prob(value), reference.log_prob(value))
    leaves = [value, q.mean, q.log_std]
    got, expected = (torch.autograd.grad(p.log_prob(value), leaves) for p in (q, reference))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_log_density_of_the_own_draw_is_the_same_as_of_a_copy(small_chunks):
    q, reference = posterior(prior=NormalPrior([(0, 1000, 0.1)]))
    w = q.rsample()
    torch.testing.assert_close(q.log_prob(w), q.log_prob(w.clone()))
    torch.testing.assert_close(q.log_prob(w + 1), reference.log_prob(w + 1))
    got, expected = (torch.autograd.grad(p.log_prob(w), [q.mean, q.log_std], retain_graph=True) for p in (q, reference))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_kl_that_comes_with_a_draw_is_the_kl_alone(small_chunks):
    prior = NormalPrior([(0, 300, 0.1), (300, 1000, 0.7)], counted=(200, 950))
    q, _ = posterior(prior=prior, counted=(200, 950))
    alone = torch.distributions.kl_divergence(q, prior)
    q.rsample()
    along = torch.distributions.kl_divergence(q, prior)
    torch.testing.assert_close(along, alone)
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.mean, q.stddev),
        torch.distributions.Normal(0.0, torch.cat([torch.full((300,), 0.1), torch.full((700,), 0.7)])))[200:950].sum()
    torch.testing.assert_close(along, reference)
    got, got_alone, expected = (torch.autograd.grad(kl, [q.mean, q.log_std]) for kl in (along, alone, reference))
    for one, two, other in zip(got, got_alone, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(two, other, rtol=1e-4, atol=1e-5)


def test_kl_to_another_prior_is_not_the_one_that_came_with_the_draw():
    q, _ = posterior(prior=NormalPrior([(0, 1000, 0.1)]))
    q.rsample()
    other = NormalPrior([(0, 1000, 0.5)])
    expected = torch.distributions.kl_divergence(Normal(q.mean, q.stddev), Normal(0.0, 0.5)).sum()
    torch.testing.assert_close(torch.distributions.kl_divergence(q, other), expected)


def test_gradients_of_a_draw_add_those_of_weights_and_kl(small_chunks):
    prior = NormalPrior([(0, 1000, 0.1)], counted=(200, 950))
    q, _ = posterior(prior=prior, counted=(200, 950))
    torch.manual_seed(1)
    w = q.rsample()
    cost = torch.randn(1000)
    got = torch.autograd.grad(w.dot(cost) + 0.1 * q.kl_to_prior, [q.mean, q.log_std])
    eps = (w.detach() - q.mean.detach()) / q.stddev.detach()
    reference = (q.mean + q.stddev * eps).dot(cost) + 0.1 * torch.distributions.kl_divergence(
        Normal(q.mean, q.stddev), Normal(0.0, 0.1))[200:950].sum()
    for one, other in zip(got, torch.autograd.grad(reference, [q.mean, q.log_std]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_draws_that_are_still_in_use_are_never_overwritten():
    buffers = Buffers()
    q, _ = posterior(buffers=buffers)
    with torch.no_grad():
        kept = [q.rsample() for _ in range(6)]
    copies = [w.clone() for w in kept]
    with torch.no_grad():
        q.rsample()
    assert all(torch.equal(w, copy) for w, copy in zip(kept, copies, strict=True))
    assert len({w.data_ptr() for w in kept}) == 6


def test_memory_of_a_dropped_draw_is_used_again():
    q, _ = posterior(buffers=Buffers())
    with torch.no_grad():
        where = q.rsample().data_ptr()
        again = q.rsample().data_ptr()
    assert where == again


def test_a_graph_that_needs_a_draw_keeps_its_memory():
    q, _ = posterior(buffers=Buffers())
    x = torch.randn(1000, requires_grad=True)
    with torch.no_grad():
        w = q.rsample()
    loss, expected = (x * w[:]).sum(), w.clone()
    del w
    with torch.no_grad():
        for _ in range(5):
            q.rsample()
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)


def test_a_buffer_from_inference_mode_serves_training():
    q, _ = posterior(buffers=Buffers())
    with torch.inference_mode():
        q.rsample()
    q.rsample().sum().backward()
    assert torch.equal(q.mean.grad, torch.ones(1000))


def test_copies_share_no_memory():
    q, _ = posterior(buffers=Buffers())
    with torch.no_grad():
        where = q.rsample().data_ptr()                   # free again
    assert copy.deepcopy(q.buffers).take(q.mean).data_ptr() != where


def test_unflatten_gives_views_and_gathers_their_gradients():
    vector = torch.arange(10.0, requires_grad=True)
    first, second, third = unflatten(vector, [(2, 2), (), (5,)], Buffers())
    assert first.tolist() == [[0, 1], [2, 3]] and second == 4
    (first.sum() * 2 + third[1]).backward()               # the second has no gradient
    assert vector.grad.tolist() == [2, 2, 2, 2, 0, 0, 1, 0, 0, 0]
    assert first.data_ptr() == vector.data_ptr()


def test_many_draws_at_once_have_the_asked_shape():
    q, _ = posterior(7)
    assert q.rsample((3, 2)).shape == (3, 2, 7)


def test_pyro_accepts_it_as_a_distribution():
    q, _ = posterior(7)
    with pyro.poutine.trace() as trace:
        pyro.sample("w", q)
    assert trace.trace.nodes["w"]["fn"].event_shape == (7,)
    assert math.isfinite(trace.trace.log_prob_sum().item())
