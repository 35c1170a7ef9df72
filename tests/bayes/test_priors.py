import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_advbnn import InputError, networks
from pyro_advbnn.bayes import priors
from pyro_advbnn.bayes.bayesian_classifier import BayesianClassifier
from pyro_advbnn.bayes.priors import ElementwisePrior, NormalPrior, scale_mixture, spike_and_slab
from pyro_advbnn.bayes.settings import fan_in_factor, per_parameter_std


def test_normal_prior_is_independent_normals():
    prior = NormalPrior([(0, 3, 0.5), (3, 10, 2.0)])
    reference = dist.Normal(0.0, torch.tensor([0.5] * 3 + [2.0] * 7)).to_event(1)
    value = torch.randn(10)
    torch.testing.assert_close(prior.log_prob(value), reference.log_prob(value))
    torch.manual_seed(0)
    draws = prior.sample((20_000,))
    torch.testing.assert_close(draws.std(0), reference.stddev, rtol=0.05, atol=0)


@pytest.mark.parametrize("prior", ["normal", dist.Laplace(0.0, 0.3 / math.sqrt(2))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_model_alone_draws_from_the_prior(prior, dtype):
    import pyro
    classifier = BayesianClassifier(networks.convnet(width=4).to(dtype), prior_std=0.3, prior=prior)
    x, y = torch.rand(2, 1, 8, 8, dtype=dtype), torch.zeros(2, dtype=torch.long)
    weights = pyro.poutine.trace(classifier.model).get_trace(x, y, 1.0).nodes["weights"]["value"]
    assert weights.dtype == dtype and weights.std().item() == pytest.approx(0.3, rel=0.1)


def test_scale_mixture_has_the_density_of_blundell_s_equation_7():
    prior = ElementwisePrior(scale_mixture([0.25, 0.75], [1.0, 0.1]), like=torch.empty(4))
    value = torch.randn(4)
    normals = [dist.Normal(0.0, std).log_prob(value).exp() for std in (1.0, 0.1)]
    torch.testing.assert_close(prior.log_prob(value), (0.25 * normals[0] + 0.75 * normals[1]).log().sum())


def test_spike_and_slab_puts_its_mass_on_the_spike_and_the_slab():
    torch.manual_seed(0)
    draws = spike_and_slab(1.0, 1e-3, 0.3).sample((20_000,))
    assert (draws.abs() > 5e-3).float().mean().item() == pytest.approx(0.3, abs=0.02)


def test_fan_in_std_is_he_s_for_weights_and_one_for_normalisation():
    network = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 3),
                            nn.LayerNorm([1, 3]))
    assert per_parameter_std("fan_in", network) == {
        "0.weight": math.sqrt(2 / 18), "0.bias": math.sqrt(2 / 18), "1.weight": 1.0, "1.bias": 1.0,
        "3.weight": math.sqrt(2 / 8), "3.bias": math.sqrt(2 / 8), "4.weight": 1.0, "4.bias": 1.0}


def test_numbers_of_numpy_are_numbers():
    assert per_parameter_std(np.float32(0.5), nn.Linear(2, 2)) == {"weight": 0.5, "bias": 0.5}


def test_the_first_pattern_that_matches_counts():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert per_parameter_std({"0.*": 0.1, "*.bias": 0.2, "*": 0.3}, network) == {
        "0.weight": 0.1, "0.bias": 0.1, "1.weight": 0.3, "1.bias": 0.2}


@pytest.mark.parametrize(("text", "factor"), [("fan_in", 1), ("fan_in/10", 0.1), ("fan_in*0.5", 0.5), ("fan_in * 2", 2),
                                              ("fan_in*1e-3", 1e-3)])
def test_multiples_of_fan_in_are_read(text, factor):
    assert fan_in_factor(text) == pytest.approx(factor)


@pytest.mark.parametrize("text", ["", "fan", "fan_in/", "fan_in/0", "fan_in*x", "2*fan_in", "fan_in/-1", "fan_in*1.2.3"])
def test_other_texts_are_refused(text):
    with pytest.raises(InputError, match="fan_in"):
        fan_in_factor(text)


@pytest.mark.parametrize(("text", "share"), [("share/10", 0.1), ("share*0.5", 0.5), ("share", 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_share_is_one_of_each_weights_size_and_of_a_tenth_of_its_layers_root_mean_square_at_least(text, share, dtype):
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1, bias=False)).to(dtype)
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[3.0, -1.0], [1e-9, 0.0]]))
        network[0].bias.copy_(torch.tensor([-2.0, 0.0]))
        network[2].weight.zero_()
    classifier = BayesianClassifier(network, init_std=text)
    root_mean_square, of_norm = math.sqrt((9 + 1 + 4) / 6), math.sqrt(1 / 2)         # of weight and bias together
    sizes = [3, 1, *[root_mean_square / 10] * 2, 2, root_mean_square / 10, 1, 1, of_norm / 10, of_norm / 10]
    expected = [share * size for size in sizes] + [1e-8] * 2
    torch.testing.assert_close(classifier.log_std.detach(), torch.tensor(expected).log().to(dtype))
    assert torch.equal(classifier.mean, torch.cat([p.detach().flatten() for p in network.parameters()]))


@pytest.mark.parametrize("settings", [
    {}, {"kl_over": "last"}, {"prior_std": {"0.weight": 0.1, "0.bias": 1.0, "2.*": 0.4}, "deterministic": ["2.bias"]},
    {"prior": dist.Laplace(0.0, 0.3)},
], ids=["one std", "last layer", "a std for each parameter", "another family"])
@pytest.mark.parametrize("counted", [None, (3, 8)])
def test_the_gradient_of_the_kl_in_log_std_is_that_of_autograd(settings, counted):
    classifier = BayesianClassifier(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)), init_std="share/10", **settings)
    classifier.prior.counted = counted or classifier.prior.counted
    expected, = torch.autograd.grad(classifier.kl(), classifier.log_std)
    torch.testing.assert_close(classifier.kl_by_log_std(), expected)


def test_a_closed_form_follows_the_classifier_to_another_device(monkeypatch):
    prior = dist.Laplace(torch.tensor(0.0), torch.tensor(0.1))
    classifier = BayesianClassifier(networks.convnet(width=4), prior=prior, init_std=0.05)
    expected = classifier.kl()
    classifier.prior._on(torch.device("meta"))           # as for a sample there; in a GPU's place
    monkeypatch.setattr(priors, "_moved", lambda one_weight, device: prior)     # of meta tensors nothing can be copied back
    assert classifier.kl() == expected


@pytest.mark.parametrize("arguments", [([0.5], [1.0, 2.0]), ([0.5, 0.6], [1.0, 2.0]),
                                       ([0.5, 0.5], [1.0, 0.0]), ([-0.5, 1.5], [1.0, 2.0])])
def test_mixtures_out_of_range_are_refused(arguments):
    with pytest.raises(InputError, match="scale_mixture"):
        scale_mixture(*arguments)


@pytest.mark.parametrize("name", ["scale_mixture", "spike_and_slab"])
def test_named_priors_are_the_shipped_ones_with_the_given_std(name):
    expected = scale_mixture([0.5, 0.5], [0.2, {"scale_mixture": 0.02, "spike_and_slab": 0.002}[name]])
    prior = BayesianClassifier(networks.convnet(width=4), prior_std=0.2, prior=name).prior.one_weight
    value = 0.01 * torch.randn(5)                        # where the narrow half counts
    torch.testing.assert_close(prior.log_prob(value), expected.log_prob(value))


@pytest.mark.parametrize(("settings", "match"), [
    ({"prior": "horseshoe"}, "spike_and_slab"), ({"prior": None}, "got None"),
    ({"prior": "scale_mixture", "prior_std": "fan_in"}, "one number"),
])
def test_named_priors_that_cannot_be_built_are_refused(settings, match):
    with pytest.raises(InputError, match=match):
        BayesianClassifier(networks.convnet(width=4), **settings)


def test_patterns_that_match_nothing_are_refused():
    with pytest.raises(InputError, match="prior_std: no parameter matches 'zzz'"):
        per_parameter_std({"zzz": 1.0, "*": 1.0}, networks.convnet(width=4))


def test_an_elementwise_prior_counts_the_weights_that_it_says():
    w = torch.randn(3, 100)
    prior = ElementwisePrior(dist.Laplace(0.0, 0.1), (20, 95), like=w[0])
    torch.testing.assert_close(prior.log_prob(w), dist.Laplace(0.0, 0.1).log_prob(w[:, 20:95]).sum(1))
