import sys

import pytest
import torch
from torch import nn

from pyro_advbnn import InputError, networks
from pyro_advbnn.networks import build_network, is_imported


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("name", "num_classes", "expected"), [
    ("vgg16", 10, 14_728_266), ("vgg16", 143, 14_796_495), ("model_a", 10, 2_166_282),
])
def test_parameter_counts_are_the_paper_s(name, num_classes, expected):
    assert count(build_network(name, num_classes)) == expected


@pytest.mark.parametrize(("name", "convolutions"), [("vgg11", 8), ("vgg13", 10), ("vgg16", 13), ("vgg19", 16)])
def test_vggs_have_their_depth_and_take_32_and_64_pixels(name, convolutions):
    network = build_network(name, 7, width=4).eval()
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == convolutions
    for side in (32, 64):
        assert network(torch.rand(2, 3, side, side)).shape == (2, 7)


def test_layers_are_convolution_batchnorm_relu_as_in_the_authors_code():
    kinds = [type(m).__name__ for m in networks.vgg11(width=4).features[:4]]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    assert networks.vgg11(width=4).features[0].bias is not None


@pytest.mark.parametrize(("name", "channels", "side"), [
    *(("convnet", channels, side) for channels in (1, 3) for side in (8, 16, 28, 32)),
    *(("model_a", 3, side) for side in (80, 96, 128))])
def test_convnet_takes_small_images_of_one_or_three_channels_and_model_a_80_pixels_and_more(name, channels, side):
    assert build_network(name, 5, channels, width=4).eval()(torch.rand(2, channels, side, side)).shape == (2, 5)


@pytest.mark.parametrize(("name", "channels", "side"), [("vgg16", 3, 16), ("model_a", 3, 64), ("convnet", 1, 4)])
def test_images_that_do_not_fit_are_refused(name, channels, side):
    with pytest.raises(InputError, match=f"{side}x{side}"):
        build_network(name, 10, channels, 4)(torch.rand(1, channels, side, side))


def test_any_torchvision_classifier_comes_by_name():
    assert build_network("torchvision:resnet18", 10).eval()(torch.rand(1, 3, 32, 32)).shape == (1, 10)


def test_a_network_of_one_s_own_is_imported(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text("from torch import nn\n"
                                         "def small(n): return nn.Sequential(nn.Flatten(), nn.Linear(4, n))\n"
                                         "def odd(n): return 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    assert build_network("my_nets:small", 3)(torch.rand(2, 1, 2, 2)).shape == (2, 3)
    with pytest.raises(InputError, match="nn.Module"):
        build_network("my_nets:odd", 3)


@pytest.mark.parametrize(("name", "arguments", "match"), [
    ("resnet18", {}, "vgg16"), ("torchvision:resnet19", {}, "resnet18"), ("no_such_module:f", {}, "no_such_module"),
    ("torch:no_such_function", {}, "no_such_function"), ("torchvision:resnet18", {"in_channels": 1}, "3 channels"),
    ("torchvision:resnet18", {"width": 8}, "width"), (":", {}, "cannot be built"),
])
def test_networks_that_cannot_be_built_are_refused(name, arguments, match):
    with pytest.raises(InputError, match=match):
        build_network(name, 10, **arguments)


def test_only_code_of_one_s_own_counts_as_imported():
    assert is_imported("my_nets:small")
    assert not is_imported("vgg16") and not is_imported("torchvision:resnet18")


def test_a_network_function_that_fails_is_reported_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "bad_nets.py").write_text("def boom(n): raise KeyError('oops')\ndef noargs(): pass\n")
    (tmp_path / "worse_nets.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    cases = {"bad_nets:boom": "KeyError: 'oops'", "bad_nets:noargs": "TypeError", "worse_nets:f": "invalid syntax"}
    for name, match in cases.items():
        with pytest.raises(InputError, match=match):
            build_network(name, 3)
