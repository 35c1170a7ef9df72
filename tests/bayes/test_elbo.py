import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.bayes.elbo import objective
from pyro_advbnn.bayes.settings import per_parameter_std


def batch(size=16):
    return torch.rand(size, 1, 8, 8, dtype=torch.float64), torch.randint(10, (size,))


def bayesian(**changes):
    return ab.BayesianClassifier(ab.networks.convnet(width=4).double(), **({"prior_std": 0.1, "init_std": 0.02} | changes))


def kl_by_hand(mean, log_std, prior_std):
    """Eq. (6), in double precision, straight from facts.md."""
    mean, log_std = mean.double(), log_std.double()
    return (math.log(prior_std) - log_std + ((2 * log_std).exp() + mean**2) / (2 * prior_std**2) - 0.5).sum()


def same_draw(function, seed=3):
    torch.manual_seed(seed)
    return function()


def gradients(loss, classifier):
    return torch.autograd.grad(loss, [classifier.mean, classifier.log_std])


def test_loss_is_equation_10_computed_by_hand():
    classifier, (x, y) = bayesian(), batch()
    loss = same_draw(lambda: ab.negative_elbo(classifier, x, y, kl_weight=0.3 / 1000))
    cross_entropy = same_draw(lambda: F.cross_entropy(classifier(x), y))
    expected = cross_entropy + 0.3 / 1000 * kl_by_hand(classifier.mean, classifier.log_std, 0.1)
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch_statistics", ["draw", "mean"])
def test_gradients_are_those_of_the_paper_s_randlayer(batch_statistics):
    """Appendix A with N := N / alpha: grad + mu / (s0^2 N) and grad exp(s) eps - 1 / N + exp(2 s) / (s0^2 N).

    Where the mean network tells BatchNorm its statistics, mean also has their gradient.
    """
    classifier, (x, y) = bayesian(batch_statistics=batch_statistics), batch()
    mean, log_std, s0, n = classifier.mean.detach(), classifier.log_std.detach(), 0.1, 1000 / 0.3
    loss = same_draw(lambda: ab.negative_elbo(classifier, x, y, kl_weight=1 / n))
    got = gradients(loss, classifier)
    torch.manual_seed(3)
    eps = torch.randn_like(mean)
    w = (mean + log_std.exp() * eps).requires_grad_()
    nll = F.cross_entropy(classifier._logits(classifier._by_name(w), x), y)
    grad, of_statistics = torch.autograd.grad(nll, [w, classifier.mean], materialize_grads=True)
    expected = (grad + of_statistics + mean / (s0**2 * n),
                grad * log_std.exp() * eps - 1 / n + (2 * log_std).exp() / (s0**2 * n))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_parts_add_up_to_the_loss():
    classifier, (x, y) = bayesian(), batch()
    parts = objective(classifier, x, y, kl_weight=1e-3)
    torch.testing.assert_close(parts.loss, parts.nll + 1e-3 * parts.kl)
    torch.testing.assert_close(parts.kl, classifier.kl().detach())
    assert parts.kl == objective(classifier, *batch(4), kl_weight=1.0).kl        # in closed form: no draw is in it
    torch.testing.assert_close(F.cross_entropy(parts.logits.float(), y), parts.nll)


def test_empty_guide_gives_the_cross_entropy():
    classifier, (x, y) = ab.Classifier(ab.networks.convnet(width=4).double()), batch()
    torch.testing.assert_close(ab.negative_elbo(classifier, x, y, kl_weight=1.0), F.cross_entropy(classifier(x).float(), y))


def test_kl_weight_zero_leaves_the_likelihood_alone():
    classifier, (x, y) = bayesian(), batch()
    loss = same_draw(lambda: ab.negative_elbo(classifier, x, y, kl_weight=0))
    cross_entropy = same_draw(lambda: F.cross_entropy(classifier(x), y))
    torch.testing.assert_close(loss, cross_entropy)
    for got, expected in zip(gradients(loss, classifier), gradients(cross_entropy, classifier), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kl_weight", [-1e-9, math.nan, math.inf])
def test_kl_weight_out_of_range_is_refused(kl_weight):
    with pytest.raises(ab.InputError, match="kl_weight"):
        ab.negative_elbo(bayesian(), *batch(), kl_weight=kl_weight)


@pytest.mark.parametrize(("arguments", "kl_weight", "times"), [
    ({"kl_weight": 1e-3}, 1e-3, 1), ({}, 1 / 16, 16), ({"num_data": 500}, 1 / 500, 500), ({"num_data": 0.5}, 2, 0.5)])
def test_literal_svi_has_the_same_loss_and_without_a_kl_weight_that_of_the_joint_density(arguments, kl_weight, times):
    classifier, (x, y) = bayesian(), batch()
    svi = SVI(classifier.model, classifier.guide, pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO())
    ours = same_draw(lambda: ab.negative_elbo(classifier, x, y, kl_weight=kl_weight))
    assert same_draw(lambda: svi.evaluate_loss(x, y, **arguments)) == pytest.approx(times * ours.item(), rel=1e-6)


@pytest.mark.parametrize("deterministic", [(), ("classifier.*",)])
def test_twenty_svi_steps_move_mean_and_log_std_as_twenty_of_ours(deterministic):
    ours, (x, y) = bayesian(deterministic=deterministic), batch()
    start, theirs = ours.mean.detach().clone(), copy.deepcopy(ours)
    svi = SVI(theirs.model, theirs.guide, pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO())
    optimizer = torch.optim.Adam(ours.parameters(), lr=1e-3)
    torch.manual_seed(5)
    for _ in range(20):
        svi.step(x, y, 1e-3)
    torch.manual_seed(5)
    for _ in range(20):
        loss = ab.negative_elbo(ours, x, y, kl_weight=1e-3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for got, expected in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert (ours.mean - start).abs().max() > 0.01


def test_our_steps_leave_pyro_s_parameter_store_alone():
    ab.negative_elbo(bayesian(), *batch(), kl_weight=1e-3).backward()
    assert not list(pyro.get_param_store().keys())


def test_classifiers_do_not_touch_each_other_under_svi():
    first, (x, y) = bayesian(), batch()
    second = copy.deepcopy(first)
    before = [p.detach().clone() for p in second.parameters()]
    optimizer = pyro.optim.Adam({"lr": 1e-2})
    for classifier in (second, first):                   # the second is known to the parameter store first
        SVI(classifier.model, classifier.guide, optimizer, TraceMeanField_ELBO()).evaluate_loss(x, y, 1e-3)
    SVI(first.model, first.guide, optimizer, TraceMeanField_ELBO()).step(x, y, 1e-3)
    assert all(torch.equal(p, old) for p, old in zip(second.parameters(), before, strict=True))
    assert not torch.equal(first.mean, before[0])


def test_a_deterministic_classifier_trains_under_svi():
    classifier, (x, y) = ab.Classifier(ab.networks.convnet(width=4).double()), batch()
    before = [p.detach().clone() for p in classifier.parameters()]
    SVI(classifier.model, classifier.guide, pyro.optim.Adam({"lr": 1e-2}), TraceMeanField_ELBO()).step(x, y)
    assert all((p - old).abs().max() > 0 for p, old in zip(classifier.parameters(), before, strict=True))


class BinaryLogits(nn.Module):
    """Logistic regression as a two-class network with one weight vector: logits (0, x w)."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        score = x.flatten(1) @ self.weight
        return torch.stack([torch.zeros_like(score), score], 1)


def test_svi_recovers_the_conjugate_posterior_of_linear_regression():
    """y ~ N(x w, 1), w ~ N(0, s0^2): precision X'X + 1/s0^2; the best factorised normal has mean and precision's diagonal."""
    n, d, s0 = 200, 3, 0.5
    x = torch.randn(n, d)
    y = x @ torch.tensor([0.5, -0.3, 0.8]) + torch.randn(n)
    precision = x.T @ x + torch.eye(d) / s0**2
    classifier = ab.BayesianClassifier(BinaryLogits(d), prior_std=s0, init_std=0.2,
                                       likelihood=lambda out: dist.Normal(out[:, 1], 1.0))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 1000)
    for _ in range(1000):
        loss = ab.negative_elbo(classifier, x, y, kl_weight=1 / n)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(classifier.mean.detach(), torch.linalg.solve(precision, x.T @ y), atol=0.02, rtol=0)
    torch.testing.assert_close(classifier.log_std.detach().exp(), precision.diagonal().rsqrt(), atol=0.006, rtol=0)


def test_the_loss_is_zero_gradient_where_the_posterior_is_the_prior():
    network = BinaryLogits(4)
    classifier = ab.BayesianClassifier(network, prior_std=0.3, init_std=0.3)
    assert classifier.kl().item() == pytest.approx(0, abs=1e-6)
    for gradient in gradients(classifier.kl(), classifier):
        torch.testing.assert_close(gradient, torch.zeros(4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("prior", [dist.Laplace(0.0, 0.2), dist.Normal(0.1, 0.3)])
def test_priors_with_a_known_kl_use_it(prior):
    classifier = bayesian(prior=prior)
    q = torch.distributions.Normal(classifier.mean, classifier.log_std.exp())
    torch.testing.assert_close(classifier.kl(), torch.distributions.kl_divergence(q, prior).sum())
    first, second = (objective(classifier, *batch(), kl_weight=1.0).kl for _ in range(2))
    assert first == second
    assert classifier.settings()["kl"] == "closed form"


@pytest.mark.parametrize("prior", [ab.priors.scale_mixture([0.5, 0.5], [0.3, 0.01]), ab.priors.spike_and_slab(0.3, 0.01)])
def test_mixture_priors_use_a_monte_carlo_kl_that_is_right_on_average(prior):
    network = BinaryLogits(5)
    nn.init.normal_(network.weight, std=0.1)
    classifier = ab.BayesianClassifier(network, init_std=0.05, prior=prior)
    assert classifier.settings()["kl"] == "Monte-Carlo estimate"
    x, y = torch.randn(4, 5), torch.randint(2, (4,))
    estimates = torch.stack([objective(classifier, x, y, kl_weight=1.0).kl for _ in range(500)])
    grid = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    q = torch.distributions.Normal(classifier.mean.detach().double()[:, None], 0.05)
    log_ratio = q.log_prob(grid) - prior.log_prob(grid)
    expected = (q.log_prob(grid).exp() * log_ratio).sum() * (grid[1] - grid[0])
    assert estimates.double().mean() == pytest.approx(expected.item(), abs=5 * estimates.std().item() / 500**0.5)
    assert estimates.std() > 0


def test_monte_carlo_kl_has_the_right_gradient_on_average():
    """Against a Normal prior written as a mixture of one, whose KL gradient is known."""
    network = BinaryLogits(4000)                         # equal weights, each with a draw of its own
    nn.init.constant_(network.weight, 0.2)
    classifier = ab.BayesianClassifier(network, init_std=0.1, prior=ab.priors.scale_mixture([1.0], [0.3]))
    by_mean, by_log_std = gradients(classifier.kl(), classifier)
    assert by_mean.mean().item() == pytest.approx(0.2 / 0.3**2, abs=0.08)
    assert by_log_std.mean().item() == pytest.approx(0.1**2 / 0.3**2 - 1, abs=0.05)


def test_kl_over_the_last_layer_counts_only_its_weights():
    classifier, (x, y) = bayesian(kl_over="last"), batch()
    last = classifier.posterior()["classifier.weight"].mean.numel() + 10
    expected = kl_by_hand(classifier.mean[-last:], classifier.log_std[-last:], 0.1)
    torch.testing.assert_close(classifier.kl().double(), expected)
    parts = objective(classifier, x, y, kl_weight=1.0)
    torch.testing.assert_close(parts.kl.double(), expected, rtol=1e-6, atol=0)
    grad_log_std = gradients(classifier.kl(), classifier)[1]
    assert (grad_log_std[:-last] == 0).all() and (grad_log_std[-last:] != 0).all()
    parts.loss.backward()
    assert (classifier.log_std.grad[:-last] != 0).any()   # the likelihood reaches every layer all the same


def test_kl_of_a_prior_per_parameter_is_the_sum_over_parameters():
    classifier = bayesian(prior_std="fan_in")
    stds = per_parameter_std("fan_in", ab.networks.convnet(width=4))
    expected = sum(kl_by_hand(q.mean, q.stddev.log(), stds[name]) for name, q in classifier.posterior().items())
    torch.testing.assert_close(classifier.kl().double(), expected, rtol=1e-5, atol=1e-3)
    parts = objective(classifier, *batch(), kl_weight=1.0)
    torch.testing.assert_close(parts.kl, classifier.kl().detach())


@pytest.mark.parametrize("kl_weight", [None, 0.3])
def test_model_and_guide_scale_the_latent_alike(kl_weight):
    classifier, (x, y) = bayesian(), batch()
    arguments = (x, y) if kl_weight is None else (x, y, kl_weight)
    scales = [pyro.poutine.trace(part).get_trace(*arguments).nodes["weights"]["scale"]
              for part in (classifier.model, classifier.guide)]
    assert scales == [kl_weight or 1] * 2
