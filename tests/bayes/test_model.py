"""The classifier as Pyro code of others takes it: a joint density for NUTS, SVI and Predictive; likelihoods of one's own."""
import copy
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.bayes.elbo import objective

WEIGHTS, EACH, ONES = 20, 30, 20                         # images that see one weight, and those of them of class 1
N = WEIGHTS * EACH


class OneOfMany(nn.Module):
    """Logits (0, w_i) of an image whose pixel i is 1: as many separate posteriors of one weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WEIGHTS))

    def forward(self, x):
        score = x.flatten(1) @ self.weight
        return torch.stack([torch.zeros_like(score), score], 1)


def logistic():
    """(classifier, x, y, the log density of one weight on a grid, the grid)."""
    x, y = torch.eye(WEIGHTS).repeat_interleave(EACH, 0).view(N, 1, 4, 5), (torch.arange(N) % EACH < ONES).long()
    grid = torch.linspace(-4, 6, 4001)
    log_density = dist.Normal(0.0, 1.0).log_prob(grid) + ONES * F.logsigmoid(grid) + (EACH - ONES) * F.logsigmoid(-grid)
    return ab.BayesianClassifier(OneOfMany(), prior_std=1.0, init_std=0.1).eval(), x, y, log_density, grid


def exact_std(log_density, grid):
    p = log_density.softmax(0)
    mean = (p * grid).sum()
    return (p * (grid - mean) ** 2).sum().sqrt().item()


def log_joint(classifier, weight, *arguments, **more):
    model = pyro.poutine.condition(classifier.model, {"weights": weight})
    return pyro.poutine.trace(model).get_trace(*arguments, **more).log_prob_sum()


def test_the_model_is_the_joint_density_of_the_data_set():
    classifier, x, y, log_density, grid = logistic()
    for i in (torch.arange(WEIGHTS) + 1500, torch.arange(WEIGHTS) * 100 + 800):
        torch.testing.assert_close(log_joint(classifier, grid[i], x, y), log_density[i].sum(), rtol=1e-4, atol=0)
        twice = 2 * log_density[i].sum() - dist.Normal(0.0, 1.0).log_prob(grid[i]).sum()
        torch.testing.assert_close(log_joint(classifier, grid[i], x, y, num_data=2 * N), twice, rtol=1e-4, atol=0)


def test_nuts_finds_the_posterior():
    classifier, x, y, log_density, grid = logistic()
    mcmc = MCMC(NUTS(classifier.model), num_samples=80, warmup_steps=40, disable_progbar=True)
    mcmc.run(x, y)
    samples = mcmc.get_samples()
    assert Predictive(classifier.model, samples)(x[:5])["y"].shape == (80, 5)
    std = samples["weights"].std(0).square().mean().sqrt().item()
    assert std == pytest.approx(exact_std(log_density, grid), rel=0.1)


def test_the_joint_density_is_one_of_the_weights_alone_once_batchnorm_rests():
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=2), prior_std=1.0)
    x, y, weights = torch.rand(16, 1, 8, 8), torch.arange(16) % 10, 0.3 * torch.randn(len(classifier.mean))
    densities = []
    for mode in (True, False, False, True):
        classifier.train(mode)
        densities.append(log_joint(classifier, weights, x, y))
        with torch.no_grad():
            classifier.mean.normal_()
    assert densities[1] == densities[2] and densities[0] != densities[3]


def test_a_guide_of_pyro_s_own_finds_the_posterior():
    classifier, x, y, log_density, grid = logistic()
    before = [p.detach().clone() for p in classifier.parameters()]
    guide = AutoDiagonalNormal(classifier.model)
    svi = SVI(classifier.model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.985}), Trace_ELBO())
    for _ in range(300):
        svi.step(x, y)
    std = guide.get_posterior().stddev.square().mean().sqrt().item()
    assert std == pytest.approx(exact_std(log_density, grid), rel=0.1)
    assert all(torch.equal(p, old) for p, old in zip(classifier.parameters(), before, strict=True))


@pytest.mark.parametrize("defense", ["bnn", "none", "rse"])
def test_without_labels_they_are_sampled(defense):
    classifier = ab.build_classifier(defense, ab.networks.convnet(width=4)).eval()
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    predictive = Predictive(classifier.model, guide=classifier.guide, num_samples=20)
    sampled = predictive(x)["y"]
    assert sampled.shape == (20, 6) and (sampled != sampled[0]).any()
    assert (predictive(x, y)["y"] == y).all()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"kl_weight": 0.1, "num_data": 10}, "not both"), ({"num_data": 0}, "num_data must be a number > 0"),
    ({"num_data": float("nan")}, "num_data")])
@pytest.mark.parametrize("part", ["model", "guide"])
def test_scales_out_of_range_are_refused(arguments, message, part):
    classifier, x, y, *_ = logistic()
    with pytest.raises(ab.InputError, match=message):
        getattr(classifier, part)(x, y, **arguments)


def test_several_draws_in_one_call_are_refused():
    classifier, x, y, *_ = logistic()
    classifier.eval()
    model, guide, together = classifier.model, classifier.guide, Trace_ELBO(2, max_plate_nesting=1, vectorize_particles=True)
    for call in (SVI(model, guide, pyro.optim.Adam({}), together).step, Predictive(model, None, guide, 2, parallel=True)):
        with pytest.raises(ab.InputError, match="one draw of the weights in a call: "):
            call(x, y)


def test_the_labels_draw_nothing_from_the_stream_of_the_weights():
    classifier, x, y, *_ = logistic()
    torch.manual_seed(3)
    pyro.poutine.trace(classifier.guide).get_trace(x, y)
    after_guide = torch.get_rng_state()
    torch.manual_seed(3)
    ab.negative_elbo(classifier, x, y, kl_weight=0.1)
    assert torch.equal(torch.get_rng_state(), after_guide)


def regression(kind, **more):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    likelihood = lambda out: dist.Normal(out[:, 0], 0.5)                             # noqa: E731
    return (ab.BayesianClassifier if kind == "bayesian" else ab.Classifier)(network, likelihood=likelihood, **more)


@pytest.mark.parametrize("kind", ["bayesian", "deterministic"])
def test_a_normal_likelihood_is_a_regression_in_every_part_of_the_library(kind):
    classifier, x, y = regression(kind), torch.rand(8, 1, 2, 2), torch.randn(8)
    parts = objective(classifier, x, y, kl_weight=0.0)
    assert parts.logits.shape == (8, 1)
    torch.testing.assert_close(parts.nll, -dist.Normal(parts.logits[:, 0], 0.5).log_prob(y).mean())
    assert ab.train_step(classifier, torch.optim.Adam(classifier.parameters()), x, y, kl_weight=0.01).loss.isfinite()
    svi = SVI(classifier.model, classifier.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    assert svi.step(x, y) > 0
    assert Predictive(classifier.model, guide=classifier.guide, num_samples=3)(x)["y"].shape == (3, 8)
    assert copy.deepcopy(classifier).eval().requires_grad_(False)(x).shape == classifier.draw()(x).shape == (8, 1)
    with pytest.raises(ab.InputError, match="logits"):
        ab.predict(classifier, x)


ROWS = {"Normal": lambda out: dist.Normal(out[:, 0], 0.5), "StudentT": lambda out: dist.StudentT(3.0, out[:, 0]),
        "Categorical": lambda out: dist.Categorical(logits=out - 1)}


@pytest.mark.parametrize("name", ROWS)
def test_predictions_and_attacks_are_of_classes(name):
    network, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (torch.rand(8, 1, 2, 2), torch.arange(8) % 2)
    classifier = ab.BayesianClassifier(network, likelihood=ROWS[name])
    attack = ab.PGD(0.1, num_steps=1)
    for door in (lambda: ab.predict(classifier, x), lambda: ab.predict(classifier.averaged(2), x),
                 lambda: attack(classifier, x, y), lambda: ab.robust_accuracy(classifier, [(x, y)], num_samples=2)):
        with nullcontext() if name == "Categorical" else pytest.raises(ab.InputError, match=f"as likelihood, not {name}"):
            door()


@pytest.mark.parametrize("likelihood", [lambda out: dist.Categorical(logits=out / 10),
                                        lambda out: dist.Categorical(probs=out.softmax(-1).square())])
def test_a_categorical_of_other_logits_is_refused_where_the_softmax_would_be_wrong(likelihood):
    network, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (torch.rand(8, 1, 2, 2), torch.arange(8) % 3)
    classifier = ab.BayesianClassifier(network, likelihood=likelihood)
    for door in (lambda: ab.predict(classifier, x), lambda: ab.predict(classifier.averaged(2), x),
                 lambda: ab.PGD(0.1)(classifier, x, y), lambda: ab.robust_accuracy(classifier, [(x, y)])):
        with pytest.raises(ab.InputError, match="let the network return its logits, a temperature included"):
            door()


@pytest.mark.parametrize(("likelihood", "y"), [
    (lambda out: dist.Normal(out, 0.5), torch.zeros(8)), (lambda out: dist.Normal(out[:, 0], 0.5), torch.zeros(8, 1)),
    (lambda out: dist.Normal(out, 0.5).to_event(1), torch.zeros(8))])
def test_a_likelihood_that_pyro_would_broadcast_over_the_labels_is_refused(likelihood, y):
    classifier = ab.BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 1)), likelihood=likelihood)
    with pytest.raises(ab.InputError, match=r"batch shape \(8,\)"):
        ab.negative_elbo(classifier, torch.rand(8, 1, 2, 2), y, kl_weight=0.1)


def categorical(out):
    """Called as the package's own is."""
    return dist.Normal(out[:, 0], 0.5)


@pytest.mark.parametrize("likelihood", [lambda out: dist.Normal(out[:, 0], 0.5), categorical])
def test_a_checkpoint_needs_a_likelihood_again_where_the_classifier_had_one_of_its_own(tmp_path, likelihood):
    path, network = tmp_path / "c.pt", nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    classifier = ab.BayesianClassifier(network, likelihood=likelihood)
    ab.save(path, classifier)
    with pytest.raises(ab.InputError, match="pass it as likelihood"):
        ab.load(path, network)
    loaded = ab.load(path, network, likelihood=classifier.likelihood)
    assert loaded.likelihood is classifier.likelihood and torch.equal(loaded.mean, classifier.mean)
    ab.save(path, ab.Classifier(network))
    with pytest.raises(ab.InputError, match="pass none"):
        ab.load(path, network, likelihood=classifier.likelihood)


FACTORS = [0.5, 1.0, 2.5]


@pytest.mark.parametrize("defense", ["bnn", "adv", "rse"])
def test_class_weights_are_factors_of_the_log_likelihood_alone(defense, tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    weighted = ab.build_classifier(defense, network, class_weights=FACTORS)
    plain = ab.build_classifier(defense, network)
    x, y = torch.rand(9, 1, 2, 2), torch.arange(9) % 3
    torch.manual_seed(1)
    parts = objective(weighted, x, y, kl_weight=0.0)
    losses = F.cross_entropy(parts.logits, y, reduction="none")
    torch.testing.assert_close(parts.nll, (torch.tensor(FACTORS)[y] * losses).mean())
    torch.manual_seed(1)
    torch.testing.assert_close(objective(weighted, x, y.byte(), kl_weight=0.0).nll, parts.nll)
    attacked = []
    for classifier in (weighted, plain):
        torch.manual_seed(2)
        attacked.append(ab.pgd(classifier, x, y, epsilon=0.1, step_size=0.1, num_steps=2))
    assert torch.equal(*attacked)
    assert weighted.state_dict().keys() == plain.state_dict().keys()
    ab.save(tmp_path / "c.pt", weighted, {"defense": defense})
    assert ab.load(tmp_path / "c.pt", network).class_weights.tolist() == FACTORS


@pytest.mark.parametrize("weights", [[1.0, 0.0, 1.0], [1.0, -1.0, 1.0], [[1.0]], [float("nan")] * 3, [1.0, 1.0]])
def test_class_weights_that_are_not_one_positive_number_for_each_class_are_refused(weights):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ab.InputError, match="class_weights"):
        classifier = ab.Classifier(network, class_weights=weights)
        ab.negative_elbo(classifier, torch.rand(3, 1, 2, 2), torch.arange(3), kl_weight=0)
