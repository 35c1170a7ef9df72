"""Tests of the natural gradient: the formula, where it comes to rest, and that by draws it is the published IVON update."""
import copy
import math

import pyro.distributions as dist
import pytest
import torch
from tiny_runs import build
from torch import nn

import pyro_advbnn as ab

SIGMA, PRIOR_STD = 0.5, 0.7
BY = pytest.mark.parametrize("curvature", ["draws", "squares"])


def regression(outputs=1, init_std=0.1, **settings):
    """(a linear regression with `outputs` independent outputs, x (40, 3), y (40, outputs)), in float64."""
    torch.manual_seed(0)
    x = torch.randn(40, 3, dtype=torch.float64) * torch.tensor([0.3, 1.0, 2.0]) + 0.3
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64) + SIGMA * torch.randn(40, outputs, dtype=torch.float64)
    network = nn.Linear(3, outputs, bias="deterministic" in settings, dtype=torch.float64)
    classifier = ab.BayesianClassifier(network, PRIOR_STD, init_std, likelihood=lambda out: dist.Normal(out, SIGMA).to_event(1),
                                       **settings)
    return classifier, x, y


def backward(classifier, x, y, kl_weight):
    classifier.zero_grad()
    ab.negative_elbo(classifier, x, y, kl_weight=kl_weight).backward()


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_on_a_linear_regression_it_reaches_mean_and_diagonal_precision_of_the_conjugate_posterior(alpha):
    """The average of later iterates does: at a constant rho each keeps some noise. alpha tempers the likelihood."""
    classifier, x, y = regression(outputs=300)
    optimizer = ab.NaturalGradient(classifier, num_train=len(x), alpha=alpha, curvature="draws", lr=0.02, rho=0.05)
    iterates = []
    for _ in range(350):
        backward(classifier, x, y, alpha / len(x))
        optimizer.step()
        iterates.append(torch.stack([classifier.mean.detach(), (2 * classifier.log_std.detach()).exp()]))
    mean, square = torch.stack(iterates[100:]).mean(0).view(2, 300, 3)
    precision = x.T @ x / SIGMA**2 / alpha + torch.eye(3) / PRIOR_STD**2
    expected = torch.linalg.solve(precision, x.T @ y / SIGMA**2 / alpha).T
    assert (mean - expected).norm() < 0.01 * expected.norm()
    torch.testing.assert_close(1 / square.mean(0), precision.diagonal(), rtol=0.01, atol=0)


def test_by_its_gradients_it_reaches_the_diagonal_precision_where_the_noise_is_as_large_as_the_likelihood_says():
    """Each image twice, with +SIGMA and -SIGMA: then the empirical Fisher is the Hessian. Seen in batches."""
    classifier, x, _ = regression(outputs=300)
    y, error = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64), SIGMA * torch.randn(40, 300).sign()
    x, y, alpha, size = torch.cat([x, x]), torch.cat([y + error, y - error]), 0.1, 8
    with torch.no_grad():
        classifier.mean.copy_(torch.tensor([1.0, -2.0, 0.5]).repeat(300))
        classifier.log_std.fill_(math.log(0.05))
    optimizer = ab.NaturalGradient(classifier, num_train=len(x), alpha=alpha, lr=0, rho=0.02)
    squares = []
    for _ in range(1000):
        chosen = torch.randint(len(x), (size,))
        backward(classifier, x[chosen], y[chosen], alpha / len(x))
        optimizer.step()
        squares.append((2 * classifier.log_std.detach()).exp())
    found = 1 / torch.stack(squares[300:]).mean(0).view(300, 3).mean(0)
    torch.testing.assert_close(found, (x.T @ x / SIGMA**2 / alpha + torch.eye(3) / PRIOR_STD**2).diagonal(), rtol=0.05, atol=0)


@BY
@pytest.mark.parametrize("share", [1.0, 0.3], ids=["whole KL", "warm-up"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_two_steps_are_the_formula_written_out(share, weight_decay, curvature):
    classifier, x, y = regression(outputs=2, deterministic=["bias"])
    alpha, lr, rho, momentum, clip = 0.5, 0.03, 0.02, 0.8, 2.0
    optimizer = ab.NaturalGradient(classifier, num_train=len(x), alpha=alpha, curvature=curvature, lr=lr, rho=rho,
                                   momentum=momentum, clip=clip, weight_decay=weight_decay)
    buffers, sums, weight = {"mean": 0.0, "deterministic": 0.0}, [0.0, 0.0], share * alpha / len(x)
    optimizer.param_groups[-1]["kl_weight"] = weight
    torch.manual_seed(3)                                 # draws by which c > 0, as in the long run it is
    for _ in range(2):
        backward(classifier, x, y, weight)
        natural = len(x) / alpha * classifier.log_std.grad
        if curvature == "squares":
            square = (2 * classifier.log_std.detach()).exp()
            of_kl = weight * (square / PRIOR_STD**2 - 1)
            of_draws = classifier.log_std.grad - of_kl
            natural = len(x) / alpha * (max(sums[0] / sums[1] if sums[1] else 0, 0) * of_draws**2 + of_kl)
            sums = [(1 - rho) * old + rho * new.sum() for old, new in zip(sums, [of_draws, of_draws**2])]
            moved = rho / 2 * natural.clamp(max=clip)
        else:
            moved = (1 + rho * natural + (rho * natural) ** 2 / 2).log() / 2
        expected = {"log_std": classifier.log_std.detach() - moved}
        for name in buffers:
            before = getattr(classifier, name).detach().clone()
            gradient = getattr(classifier, name).grad + (weight_decay * before if name == "deterministic" else 0)
            buffers[name] = momentum * buffers[name] + gradient
            expected[name] = before - lr * (gradient + momentum * buffers[name])
        optimizer.step()
        torch.testing.assert_close(dict(classifier.named_parameters()), expected)
    assert 0 < (natural > clip).sum() < len(natural)


@pytest.mark.parametrize("curvature", [0.0, 0.05, 3.0])
def test_its_fixed_point_is_the_inverse_of_curvature_and_prior_to_which_it_rises_by_half_rho_at_most(curvature):
    classifier, x, _ = regression(init_std=0.01)
    alpha, rho = 0.5, 0.1
    optimizer = ab.NaturalGradient(classifier, num_train=len(x), alpha=alpha, curvature="draws", rho=rho)
    for _ in range(400):
        before, square = classifier.log_std.detach().clone(), (2 * classifier.log_std.detach()).exp()
        classifier.log_std.grad = curvature * square + alpha / len(x) * (square / PRIOR_STD**2 - 1)     # of its mean over draws
        optimizer.step()
        assert (classifier.log_std - before).max() <= rho / 2 * (1 + 1e-9)
    effective = len(x) / alpha
    expected = 1 / (effective * (curvature + 1 / (effective * PRIOR_STD**2)))
    torch.testing.assert_close(square, torch.full_like(square, expected), rtol=1e-3, atol=0)


def test_by_draws_a_std_grows_by_the_root_of_two_at_most_and_falls_as_far_as_it_is_told():
    classifier, x, _ = regression()
    optimizer = ab.NaturalGradient(classifier, num_train=len(x), alpha=1, curvature="draws", rho=0.1)
    before = classifier.log_std.detach().clone()
    classifier.log_std.grad = torch.tensor([-1.0, -1e-3, 1e9], dtype=torch.float64) / (0.1 * len(x))   # -1: where it grows most
    optimizer.step()
    moved = classifier.log_std.detach() - before
    torch.testing.assert_close(moved[:2], torch.tensor([0.5 * math.log(2), 0.5e-3], dtype=torch.float64), rtol=1e-3, atol=0)
    assert moved[2] == pytest.approx(-math.log(1e9 / math.sqrt(2)), rel=1e-6)
    classifier.log_std.grad.fill_(1e300)                 # as at an alpha of nearly 0
    optimizer.step()
    assert classifier.log_std.isfinite().all()


def ivon(classifier, log_std, h_hat, effective, rho):
    """log_std after one step of IVON (Shen et al. 2024, Algorithm 1, lines 3 to 5 and 8), of which h_hat is line 3.

    The paper's beta_2 is 1 - rho, its lambda is `effective`, and its delta the weight decay of the prior.
    """
    delta = 1 / (effective * PRIOR_STD**2)
    h = 1 / (effective * (2 * log_std).exp()) - delta                               # sigma^2 = 1 / (lambda (h + delta))
    h = (1 - rho) * h + rho * h_hat + rho**2 * (h - h_hat) ** 2 / (2 * (h + delta))
    return -0.5 * torch.log(effective * (h + delta))


@pytest.mark.parametrize("alpha", [1.0, 0.1])
@pytest.mark.parametrize("rho", [0.2, 0.01])
def test_by_draws_log_std_moves_as_in_ivon(rho, alpha):
    classifier, x, y = regression(outputs=20)
    effective, log_std = len(x) / alpha, classifier.log_std.detach().clone()
    torch.manual_seed(1)
    weights = classifier.posterior_distribution().rsample().detach()
    out = x @ weights.view(20, 3).T
    g_hat = ((out - y).T @ x / SIGMA**2 / len(x)).flatten()                         # of the mean nll, at the draw
    h_hat = g_hat * (weights - classifier.mean.detach()) / (2 * log_std).exp()
    torch.manual_seed(1)
    backward(classifier, x, y, 1 / effective)
    ab.NaturalGradient(classifier, num_train=len(x), alpha=alpha, curvature="draws", rho=rho).step()
    torch.testing.assert_close(classifier.log_std.detach(), ivon(classifier, log_std, h_hat, effective, rho))


def classifier_and_optimizer(kl_over="all", **settings):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    classifier = ab.BayesianClassifier(network, init_std=0.1, deterministic=["*.bias"], kl_over=kl_over)
    return classifier, ab.NaturalGradient(classifier, num_train=20, alpha=0.5, **settings)





def step(classifier, optimizer, seed):
    torch.manual_seed(seed)
    ab.train_step(classifier, optimizer, torch.rand(5, 1, 2, 2), torch.randint(2, (5,)), kl_weight=0.5 / 20)


@BY
def test_its_state_is_one_vector_of_momentum_with_which_a_copy_or_a_restart_goes_on_bit_for_bit(curvature):
    classifier, optimizer = classifier_and_optimizer(curvature=curvature)
    step(classifier, optimizer, 1)
    state = optimizer.state_dict()["state"].values()
    assert sum(each.numel() for of_one in state for each in of_one.values() if each.numel() > 2) == len(classifier.mean) + 5
    copied, restarted = copy.deepcopy((classifier, optimizer)), classifier_and_optimizer(curvature=curvature)
    for one, other in zip(restarted, (classifier, optimizer), strict=True):
        one.load_state_dict(copy.deepcopy(other.state_dict()))
    for pair in (classifier, optimizer), copied, restarted:
        step(*pair, 2)
        assert all(map(torch.equal, pair[0].parameters(), classifier.parameters()))


@BY
@pytest.mark.parametrize("name", ["mean", "log_std", "deterministic"])
def test_what_is_frozen_or_has_no_gradient_yet_stays_and_may_join_later(name, curvature):
    classifier, optimizer = classifier_and_optimizer(curvature=curvature)
    frozen = getattr(classifier, name).requires_grad_(False)
    before = copy.deepcopy(classifier)
    step(classifier, optimizer, 1)
    moved = {key for key, p in classifier.named_parameters() if not torch.equal(p, before.get_parameter(key))}
    assert moved == {"mean", "log_std", "deterministic"} - {name}
    frozen.requires_grad_(True)
    step(classifier, optimizer, 2)
    assert not torch.equal(frozen, before.get_parameter(name))


@BY
@pytest.mark.parametrize("rho", [0, 5e-324, 1e-300])
def test_with_a_rho_of_next_to_nothing_log_std_stays_bit_for_bit_and_the_mean_moves(rho, curvature):
    classifier, optimizer = classifier_and_optimizer(rho=rho, curvature=curvature)
    before = copy.deepcopy(classifier)
    step(classifier, optimizer, 1)
    assert torch.equal(classifier.log_std, before.log_std) and not torch.equal(classifier.mean, before.mean)


@BY
def test_weights_that_the_kl_does_not_count_follow_the_likelihood_alone(curvature):
    classifier, optimizer = classifier_and_optimizer(kl_over="last", curvature=curvature)
    before = classifier.log_std.detach().clone()
    optimizer.zero_grad()
    (0.5 / 20 * classifier.kl()).backward()
    optimizer.step()
    moved = classifier.log_std != before
    assert moved[-6:].all() and not moved[:-6].any()


@pytest.mark.parametrize("value", [1.0, math.inf])
def test_with_a_gradscaler_a_step_is_as_without_and_one_with_an_infinite_gradient_is_left_out(value):
    (plain, optimizer), (classifier, scaled) = classifier_and_optimizer(), classifier_and_optimizer()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for p, q in zip(plain.parameters(), classifier.parameters(), strict=True):
        p.grad = torch.full_like(p, value / 4)
        q.grad = torch.full_like(q, value)
    scaler.scale(torch.ones(()))
    if math.isfinite(value):
        optimizer.step()
    scaler.step(scaled)
    assert all(map(torch.equal, plain.parameters(), classifier.parameters()))


@pytest.mark.parametrize(("settings", "message"), [
    ({"num_train": 0}, "num_train must be at least 1, got 0"), ({"num_train": 2.5}, "num_train must be a whole number"),
    ({"alpha": 1e-30}, r"num_train / alpha must lie in \[0, 1e\+30\], got 4"),
    ({"alpha": 0}, "alpha must be a number > 0, got 0"), ({"alpha": "auto"}, "alpha must be a number, got 'auto'"),
    ({"lr": -1}, "lr must be a number >= 0, got -1"), ({"rho": 1.5}, r"rho must lie in \[0, 1\], got 1.5"),
    ({"rho": -0.1}, "rho must lie in"), ({"momentum": 2}, r"momentum must lie in \[0, 1\], got 2"),
    ({"curvature": "hessian"}, "curvature must be squares or draws, got 'hessian'"),
    ({"clip": 0}, "clip must be a number > 0, got 0"), ({"weight_decay": -1}, "weight_decay must be a number >= 0"),
])
def test_numbers_out_of_range_are_refused_in_one_line(settings, message):
    with pytest.raises(ab.InputError, match=message):
        ab.NaturalGradient(regression()[0], **{"num_train": 40, "alpha": 1, **settings})


@pytest.mark.parametrize("classifier", [ab.Classifier(nn.Linear(3, 2)), nn.Linear(3, 2)], ids=["deterministic", "network"])
def test_without_a_posterior_it_is_refused(classifier):
    with pytest.raises(ab.InputError, match="the natural gradient needs a posterior, a BayesianClassifier, got a "):
        ab.NaturalGradient(classifier, num_train=40, alpha=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_posterior_in_half_precision_is_refused(dtype):
    with pytest.raises(ab.InputError, match=f"float32 or float64 in training, got {dtype}"):
        ab.NaturalGradient(regression()[0].to(dtype), num_train=40, alpha=1)


@pytest.mark.parametrize(("alpha", "rho"), [(0.02, None), (0.5, 0.1)])
def test_a_training_tells_it_the_images_after_the_hold_out_alpha_and_rho(alpha, rho):
    config, training, _ = build(optimizer="natural", alpha=alpha, rho=rho, curvature="draws")
    assert training.optimizer.param_groups[-1]["curvature"] == "draws"
    natural = training.optimizer.param_groups[-1]
    assert config["num_train"] == 100 and natural["effective_size"] == 100 / alpha and natural["rho"] == (rho or 0.005)


def test_a_training_tells_it_the_weight_of_the_kl_in_each_step_of_a_warm_up():
    config, training, _ = build(optimizer="natural", alpha=0.5, kl_warmup=0.5)
    seen = []
    training.optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[-1]["kl_weight"]))
    for _ in range(2):                                   # of four steps each
        list(training.epoch())
    assert seen == pytest.approx([0.5 / 100 * share for share in (0, 0.25, 0.5, 0.75, 1, 1, 1, 1)])
    assert training.last_kl_weight == seen[-1]


def test_a_step_by_hand_tells_it_the_weight_of_the_kl():
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=2), prior_std=0.1, init_std=0.01).train()
    optimizer = ab.NaturalGradient(classifier, num_train=100, alpha=0.5)
    ab.train_step(classifier, optimizer, torch.rand(6, 1, 8, 8), torch.arange(6), kl_weight=0.001)
    assert optimizer.param_groups[-1]["kl_weight"] == 0.001


def test_draws_that_tell_of_a_negative_curvature_tell_of_none():
    classifier, _, _ = regression()
    optimizer = ab.NaturalGradient(classifier, num_train=40, alpha=1.0, rho=0.1)
    for _ in range(2):
        before, slope = classifier.log_std.detach().clone(), classifier.kl_by_log_std()
        classifier.log_std.grad = torch.full_like(before, -0.1)
        optimizer.step()
    torch.testing.assert_close(classifier.log_std.detach(), before - 0.05 * slope)
