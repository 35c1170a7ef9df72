"""In which order images come to a network's convolutions, and that calls under torch.func need none."""
import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.attacks.surrogates import surrogate
from pyro_advbnn.bayes.kernels.layout import as_convolutions_like
from pyro_advbnn.system.precision import autocast

CPU = torch.device("cpu")


def is_channels_last(x):
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def layouts_of(network):
    """A list, to which each call of a convolution adds whether its input is laid out channels last."""
    layouts = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, given: layouts.append(is_channels_last(given[0])))
    return layouts


@pytest.mark.parametrize("has_amx", [True, False])
def test_channels_last_is_for_bf16_where_the_cpu_multiplies_tiles(monkeypatch, has_amx):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    x = torch.rand(2, 3, 4, 4)
    network = ab.networks.convnet(width=4)
    with autocast(CPU, "bf16"):
        assert is_channels_last(as_convolutions_like(x, network)) == has_amx
        assert as_convolutions_like(x[0], network).is_contiguous()
    assert as_convolutions_like(x, network) is x


@pytest.mark.parametrize(("network", "expected"), [("vgg16", True), ("model_a", True), ("wide vgg11", False)])
def test_channels_last_is_for_narrow_networks_in_float32_on_the_cpu(network, expected):
    built = {"vgg16": lambda: ab.networks.vgg16(width=16), "model_a": ab.networks.model_a, "wide vgg11": ab.networks.vgg11}
    x = torch.rand(2, 3, 32, 32)
    assert is_channels_last(as_convolutions_like(x, built[network]())) == expected


@pytest.mark.parametrize("kind", [ab.Classifier, ab.BayesianClassifier])
def test_every_call_of_a_classifier_and_of_what_stands_in_for_it_lays_images_out(kind):
    classifier = kind(ab.networks.model_a(width=4))
    x, y = torch.rand(2, 3, 96, 96), torch.tensor([0, 1])
    in_training = layouts_of(classifier)
    ab.train_step(classifier, torch.optim.SGD(classifier.parameters(), 0.1), x, y, attack=ab.PGD(0.1, 0.1, 1), kl_weight=1e-4)
    assert in_training and all(in_training)
    for source in ("self", "mean", "pool:2"):
        answering = surrogate(classifier, source)
        layouts = layouts_of(answering)
        ab.predict(answering, x, num_samples=2)
        assert layouts and all(layouts), source


@pytest.mark.parametrize("source", ["self", "mean"])
def test_calls_under_vmap_lay_nothing_out(source):
    classifier = surrogate(ab.Classifier(ab.networks.model_a(width=2)).eval(), source)
    x = torch.rand(2, 3, 96, 96)
    answers = torch.func.vmap(lambda image: classifier(image[None])[0])(x)
    torch.testing.assert_close(answers, classifier(x), rtol=1e-4, atol=1e-5)
