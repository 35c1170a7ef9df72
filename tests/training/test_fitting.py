"""Tests of training from arrays in one call: it is what the command trains, and what it refuses."""
import numpy as np
import pytest
import torch
from tiny_runs import content, equal

import pyro_advbnn as ab
from pyro_advbnn.train import train

Y = np.random.default_rng(0).integers(0, 3, 60)
X = np.random.default_rng(1).integers(0, 60, (60, 8, 8, 1), dtype=np.uint8) + (90 * Y[:, None, None, None]).astype(np.uint8)
FLOATS = X.transpose(0, 3, 1, 2) / 255
SMALL = {"epsilon": 0.05, "epochs": 1, "batch_size": 30, "device": "cpu"}


def network(num_classes=3):
    torch.manual_seed(1)
    return ab.networks.convnet(num_classes, width=4)


@pytest.mark.parametrize("defense", ["advbnn", "adv"])
def test_arrays_are_trained_as_the_command_trains_them(tmp_path, defense):
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    train(dataset="npz", data_dir=tmp_path / "a.npz", network="convnet", defense=defense, validation=0, seed=3,
          out=tmp_path / "run", **SMALL)
    classifier = ab.fit(X, Y, network="convnet", defense=defense, seed=3, **SMALL)
    assert equal(dict(classifier.state_dict()), content(tmp_path / "run")["state"]) and not classifier.training


def test_bytes_of_numpy_and_floats_of_torch_give_the_same_classifier_and_leave_network_and_generator_as_they_were():
    given, same = network(), network()
    torch.manual_seed(5)
    first = ab.fit(X, Y, network=given, seed=np.int64(0), **SMALL | {"device": torch.device("cpu")})
    other = ab.fit(torch.from_numpy(FLOATS).float(), torch.from_numpy(Y), network=given, **SMALL)
    assert all(parameter.grad is None for parameter in first.parameters())
    assert equal(dict(first.state_dict()), dict(other.state_dict()))
    assert equal(dict(given.state_dict()), dict(same.state_dict())) and given.training
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize("defense", ["advbnn", "adv"])
def test_a_single_step_trains_too(defense):
    given = network()
    fitted = ab.fit(X, Y, network=given, defense=defense, **SMALL | {"batch_size": 60}).mean_network().state_dict()
    moved = [name for name, value in given.named_parameters() if not torch.equal(fitted[name], value)]
    assert moved == [name for name, _ in given.named_parameters()]


class Viewing(torch.nn.Module):
    """A forward that takes the activations of a convolution for contiguous."""

    def __init__(self, channels):
        super().__init__()
        self.convolution, self.linear = torch.nn.Conv2d(channels, 4, 3), torch.nn.Linear(4 * 30 * 30, 3)

    def forward(self, x):
        x = self.convolution(x).relu()
        return self.linear(x.view(len(x), -1))


@pytest.mark.parametrize("defense", ["advbnn", "adv"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_may_view_its_activations_as_contiguous(channels, defense):
    images = X.repeat(4, axis=1).repeat(4, axis=2).repeat(channels, axis=3)
    for x in (images, (images / 255).astype(np.float32).transpose(0, 3, 1, 2)):
        classifier = ab.fit(x, Y, network=Viewing(channels), defense=defense, **SMALL)
        assert classifier(torch.zeros(2, channels, 32, 32)).shape == (2, 3)


def test_a_network_may_tell_more_classes_apart_than_the_labels_have():
    for y in (Y, Y + 2):                                 # the first classes may lack, as where a network is tuned to some
        assert ab.fit(X, y, network=network(5), **SMALL)(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    with pytest.raises(ab.InputError, match=r"labels must lie between 0 and 1, as the network tells 2 classes apart"):
        ab.fit(X, Y, network=network(2), **SMALL)


@pytest.mark.parametrize("x, y, says", [
    (X.transpose(0, 3, 1, 2), Y, r"x must be uint8 of shape \(N, H, W, C\).*got uint8 \(60, 1, 8, 8\)"),
    (X / 255, Y, r"x must be floats of shape \(N, C, H, W\).*got float64 \(60, 8, 8, 1\)"),
    (X.astype(int), Y, "x must be uint8 of shape.*got int64"),
    (X[..., 0], Y, r"x must be uint8 of shape.*got uint8 \(60, 8, 8\)"),
    (255 * FLOATS, Y, r"x must lie in \[0, 1\].*to 239"), (FLOATS - 0.5, Y, r"x must lie in \[0, 1\].*from -0.5"),
    (FLOATS * np.nan, Y, "x must lie in"), (X, Y[:5], "y: expected one label for each of 60 images, got 5"),
    (X, np.eye(3)[Y], r"y: labels must be integers of shape \(N,\), got float64 \(60, 3\)"),
    (X, Y - 1, "y: labels must be from 0"), (X, Y + 1, "y: classes count from 0, but the smallest label is 1")])
def test_arrays_of_another_kind_are_refused_in_a_line(x, y, says):
    with pytest.raises(ab.InputError, match=says):
        ab.fit(x, y, network="convnet", **SMALL)


@pytest.mark.parametrize("given, says", [
    ({"epsilon": None}, "epsilon must be given, got None"), ({"seed": None}, "seed must be given"),
    ({"epsilon": 8}, r"epsilon must be a number in \[0, 1\], got 8"), ({"defense": "pgd"}, "defense must be one of none, adv"),
    ({"epochs": 0}, "epochs must be an integer"), ({"network": "resnet"}, "network must be one of vgg11"),
    ({"network": ab.networks.convnet}, "the network must be an nn.Module, got function"),
    ({"network": ab.networks.vgg11(3, 1, 2)}, "the network takes images of 32 or more pixels a side, got 8x8")])
def test_arguments_out_of_range_and_networks_that_do_not_fit_are_refused_in_a_line(given, says):
    with pytest.raises(ab.InputError, match=says):
        ab.fit(X, Y, **{"network": network(), **SMALL, **given})


class Masked(torch.nn.Module):
    """Attention with a causal mask, which is infinite above its diagonal; what it says of itself besides is no tensor."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(8, 4), torch.nn.Linear(32, 3)
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))

    def forward(self, x):
        rows = self.inner(x.flatten(1, 2))
        weights = (rows @ rows.mT + self.mask).softmax(-1)
        return self.outer((weights @ rows).flatten(1))

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize("defense", ["advbnn", "adv"])
def test_a_mask_of_infinities_is_no_number_gone_wrong(defense):
    fitted = ab.fit(X, Y, network=Masked(), defense=defense, **SMALL)
    assert torch.equal(fitted.network.mask, Masked().mask)


@pytest.mark.parametrize("defense", ["advbnn", "adv", "advrse"])
def test_a_network_without_gradient_by_its_images_is_refused_where_it_is_to_be_attacked(defense):
    class Normalised(torch.nn.Sequential):
        def forward(self, x):
            with torch.no_grad():
                x = (x - 0.5) / 0.25
            return super().forward(x)

    network = Normalised(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    with pytest.raises(ab.InputError, match="has no gradient by its images"):
        ab.fit(X, Y, network=network, defense=defense, **SMALL)
    ab.fit(X, Y, network=network, defense={"adv": "none", "advbnn": "bnn", "advrse": "rse"}[defense], **SMALL)


@pytest.mark.parametrize("other", [network(), ab.Mixture([ab.Classifier(network()), ab.Classifier(network())])],
                         ids=["a network", "a mixture"])
def test_a_step_is_refused_for_what_has_no_likelihood(other):
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with pytest.raises(ab.InputError, match=f"must be one of this package's classifiers, got a {type(other).__name__}"):
        ab.train_step(other, optimizer, torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), kl_weight=0.0)
