"""Tests of weights: densities that integrate to one, known signal-to-noise, and pruning that keeps what matters."""
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.evaluation import weight_statistics
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.training import checkpoints


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))
    return ab.BayesianClassifier(network, {"1.*": 0.1, "*": 0.5}, 0.2)


def set_weights(classifier, mean, std):
    classifier.mean.data = torch.tensor(mean)
    classifier.log_std.data = torch.tensor(std).log()


def tiny(mean, std, **more):
    classifier = ab.BayesianClassifier(nn.Linear(len(mean), 1, bias=False), **more)
    set_weights(classifier, mean, std)
    return classifier


def test_the_signal_to_noise_is_the_logarithm_of_mean_over_std():
    classifier = tiny([1.0, -0.1, 0.0, 1e-30, 1e9], [0.1, 1.0, 0.1, 0.1, 1e-8])
    expected = torch.tensor([1.0, -1.0, -8.0, -8.0, 8.0])
    assert torch.allclose(weight_statistics.log10_signal_to_noise(classifier), expected, atol=1e-6)


def test_weights_are_told_apart_by_parameter_in_the_networks_order(classifier):
    values = torch.arange(23.0)
    parts = weight_statistics.by_parameter(classifier, values)
    assert list(parts) == ["all", "1.weight", "1.bias", "2.weight", "2.bias"]
    assert [len(part) for part in parts.values()] == [23, 12, 3, 6, 2] and parts["2.bias"].tolist() == [21.0, 22.0]
    for name, normal in classifier.posterior().items():
        assert torch.equal(weight_statistics.by_parameter(classifier, classifier.mean.detach())[name], normal.mean.flatten())


def test_the_signal_to_noise_of_a_layer_is_its_energy_over_that_of_its_noise_and_overall_the_mean_logarithm_counts(classifier):
    classifier.mean.data = torch.cat([torch.full((15,), 2.0), torch.tensor([3.0, -1, 1, 1, 0, 0, 0, 0])])
    classifier.log_std.data = torch.cat([torch.full((15,), 1.0), torch.full((7,), 0.5), torch.tensor([1.5])]).log()
    numbers = weight_statistics.module_numbers(classifier, 0.1)
    assert (numbers["snr/1"], numbers["snr/2"]) == pytest.approx((4, 12 / (7 / 4 + 9 / 4)))
    assert numbers["snr"] == pytest.approx(5 ** (15 / 23) * 4 ** (8 / 23) - 1)
    alone = tiny([1.0, 2.0], [1.0, 1.0])
    assert weight_statistics.module_numbers(alone, 0.1)["snr/network"] == pytest.approx(2.5)    # a network that is one layer


@pytest.mark.parametrize(("settings", "counted"), [
    ({}, "12"), ({"kl_over": "last"}, "2"), ({"deterministic": "1.weight"}, "12"), ({"deterministic": "1.*"}, "2"),
    ({"prior": dist.Laplace(0.0, 0.3)}, "12"), ({"prior": "scale_mixture"}, "12"),
    ({"prior": "spike_and_slab", "kl_over": "last"}, "2")], ids=str)
def test_the_kl_of_the_layers_that_it_counts_is_in_sum_that_of_the_classifier(settings, counted):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))
    classifier = ab.BayesianClassifier(network, 0.5, 0.2, **settings)
    torch.manual_seed(1)
    numbers = weight_statistics.module_numbers(classifier, 0.1)
    torch.manual_seed(1)                                 # an estimate takes one draw
    assert [name for name in numbers if name.startswith("kl")] == [f"kl_per_image/{layer}" for layer in counted]
    assert [name for name in numbers if name.startswith("snr/")] == [f"snr/{layer}" for layer in counted]
    assert sum(numbers[f"kl_per_image/{layer}"] for layer in counted) == pytest.approx(0.1 * classifier.kl().item(), rel=1e-4)
    assert all(math.isfinite(value) for value in numbers.values())


def test_the_priors_std_is_that_of_each_weight(classifier):
    expected = torch.cat([torch.full((15,), math.log(0.1)), torch.full((8,), math.log(0.5))])
    assert torch.allclose(weight_statistics.prior_log_std(classifier), expected)
    mixed = ab.BayesianClassifier(nn.Linear(2, 2), prior_std=0.1, prior="scale_mixture")
    assert weight_statistics.prior_log_std(mixed) is None
    assert {row["quantity"] for row in weight_statistics.density_rows(mixed)} == {"log_std", "log10_signal_to_noise"}
    assert {row["prior_log_std"] for row in weight_statistics.layer_rows(mixed)} == {None}


def test_a_histogram_holds_every_value_where_it_is():
    values = torch.cat([torch.zeros(300), torch.linspace(-1, 1, 700)])
    bins = weight_statistics.histogram(values)
    assert len(bins) == 81 and sum(share for *_, share in bins) == pytest.approx(1)
    assert all(a[1] == b[0] for a, b in zip(bins, bins[1:]))
    assert bins[0][0] < -1 < bins[0][1] and bins[-1][0] < 1 < bins[-1][1]
    left, right, _ = max(bins, key=lambda bin: bin[2])
    assert left < 0 < right
    assert max(share for *_, share in bins) == pytest.approx(0.3 + 700 / 1000 / 81, abs=0.003)
    (left, right, share), = [found for found in weight_statistics.histogram(torch.full((5,), -3.0)) if found[2]]
    assert left < -3 < right and share == 1


def test_the_density_rows_integrate_to_one_for_every_layer(classifier):
    classifier.log_std.data = torch.randn(23)
    rows = weight_statistics.density_rows(classifier)
    for quantity in ("log_std", "log10_signal_to_noise", "prior_log_std"):
        for layer in ("all", "1.weight", "1.bias", "2.weight", "2.bias"):
            found = [row for row in rows if (row["quantity"], row["layer"]) == (quantity, layer)]
            assert sum(row["share"] for row in found) == pytest.approx(1)
    prior = [(row["left"], row["right"], row["share"]) for row in rows
             if (row["quantity"], row["layer"]) == ("prior_log_std", "all")]
    assert prior == [(pytest.approx(math.log(std)), pytest.approx(math.log(std)), pytest.approx(share))
                     for std, share in ((0.1, 15 / 23), (0.5, 8 / 23))]


def test_the_layer_rows_summarise_each_parameter(classifier):
    classifier.log_std.data = torch.linspace(-3, -1, 23)
    rows = {row["layer"]: row for row in weight_statistics.layer_rows(classifier)}
    assert [row["num_weights"] for row in rows.values()] == [23, 12, 3, 6, 2]
    assert rows["all"]["log_std_mean"] == pytest.approx(-2, abs=1e-5) == rows["all"]["log_std_median"]
    assert (rows["all"]["log_std_q05"], rows["all"]["log_std_q95"]) == (pytest.approx(-3 + 2 / 22), pytest.approx(-1 - 2 / 22))
    assert rows["2.bias"]["prior_log_std"] == pytest.approx(math.log(0.5))


def test_pruning_takes_the_lowest_signal_to_noise_or_the_largest_std():
    mean, std = [3.0, 0.1, -2.0, 0.5], [2.0, 0.01, 0.5, 1.0]       # |mean| / std: 1.5, 10, 4, 0.5
    pruned = weight_statistics.prune(tiny(mean, std), 0.5)
    assert pruned.mean.tolist() == pytest.approx([0, 0.1, -2.0, 0]) and pruned.mean[0] == 0
    assert pruned.log_std.exp().tolist() == pytest.approx([1e-8, 0.01, 0.5, 1e-8])
    by_std = weight_statistics.prune(tiny(mean, std), 0.5, "std")
    assert by_std.mean.tolist() == pytest.approx([0, 0.1, -2.0, 0])
    assert weight_statistics.prune(tiny(mean, std), 0.25, "std").mean.tolist() == pytest.approx([0, 0.1, -2.0, 0.5])
    assert weight_statistics.prune(tiny(mean, std), 0.25).mean.tolist() == pytest.approx([3.0, 0.1, -2.0, 0])


@pytest.mark.parametrize("by", weight_statistics.PRUNE_BY)
def test_pruning_in_steps_takes_what_pruning_at_once_does(classifier, by):
    classifier.log_std.data = torch.linspace(-3, -1, 23)
    classifier.mean.data = torch.linspace(1, 2, 23)
    in_steps = classifier
    for fraction in (0.2, 0.4, 0.6):
        in_steps = weight_statistics.prune(in_steps, fraction, by)
        assert torch.equal(in_steps.mean, weight_statistics.prune(classifier, fraction, by).mean)


def test_pruning_nothing_and_everything_and_the_original_stays(classifier):
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    assert torch.equal(weight_statistics.prune(classifier, 0).mean, classifier.mean)
    nothing_left = weight_statistics.prune(classifier, 1.0)
    assert torch.count_nonzero(nothing_left.mean) == 0
    assert nothing_left(torch.rand(5, 4)).abs().max() < 1e-6
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())


def test_a_pruned_mean_network_is_saved_as_a_plain_state_dict(classifier, tmp_path):
    network = weight_statistics.prune(classifier, 0.5).mean_network()
    checkpoints.save_state_dict(tmp_path / "pruned.pt", network)
    state = torch.load(tmp_path / "pruned.pt", weights_only=True)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))
    plain.load_state_dict(state)
    assert sum(int((tensor == 0).sum()) for tensor in state.values()) == 12     # round(23 / 2)
    x = torch.rand(3, 4)
    assert torch.equal(plain(x), network(x))


@pytest.mark.parametrize(("fraction", "by", "message"), [
    (-0.1, "std", "fraction must lie in"), (1.1, "std", "fraction must lie in"), (math.nan, "std", "fraction must lie in"),
    (0.5, "size", "by must be one of signal_to_noise, std"),
])
def test_wrong_settings_are_refused(classifier, fraction, by, message):
    with pytest.raises(InputError, match=message):
        weight_statistics.prune(classifier, fraction, by)


def test_only_a_bayesian_classifier_can_be_pruned():
    with pytest.raises(InputError, match="only a Bayesian classifier"):
        weight_statistics.prune(ab.Classifier(nn.Linear(2, 2)), 0.5)
