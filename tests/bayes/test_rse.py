import pytest
import torch
from torch import nn

import pyro_advbnn as ab


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))


class Tokens(nn.Module):
    """Attention over rows of pixels, with a linear layer in front: no convolution."""

    def __init__(self, encoder=None):
        super().__init__()
        self.embed, self.attention = nn.Linear(8, 4), encoder or nn.MultiheadAttention(4, 2, batch_first=True)
        self.head, self.arguments = nn.Linear(4, 10), 1 if encoder else 3

    def forward(self, x):
        x = self.attention(*[self.embed(x[:, 0])] * self.arguments)
        return self.head((x if self.arguments == 1 else x[0]).mean(1))


class TwoNames(nn.Module):
    """One convolution under two names, in one of which the network calls it."""

    def __init__(self, called):
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3)
        self.b, self.called, self.end = self.a, called, nn.Linear(4, 10)

    def forward(self, x):
        return self.end(getattr(self, self.called)(x).amax((2, 3)))


class TwoBlocks(nn.Module):
    """One block with a convolution under two names."""

    def __init__(self):
        super().__init__()
        block = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.a, self.b, self.end = block, block, nn.Linear(4, 10)

    def forward(self, x):
        return self.end(self.b(x))


class ReadsItsLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.end = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, x):
        x = self.conv(x) + self.conv.bias.view(-1, 1, 1) * self.conv.weight.norm() / self.conv.stride[0]
        return self.end(x.amax((2, 3)))


class AsksForItsLayers(nn.Module):
    """A forward that looks at the kinds of its layers, and sets something on one."""

    def __init__(self):
        super().__init__()
        self.conv, self.layers = nn.Conv2d(1, 4, 3), nn.ModuleList([nn.Flatten(), nn.Linear(36, 8), nn.Linear(8, 10)])

    def forward(self, x):
        self.conv.stride = (2, 2)
        x = self.conv(x)
        for layer in self.layers:
            x = layer(x).relu() if isinstance(layer, nn.Linear) and layer is not self.layers[-1] else layer(x)
        return x


NETWORKS = {"an MLP": (mlp, {"Linear": 2}),
            "attention": (Tokens, {"Linear": 2}),
            "an encoder layer": (lambda: Tokens(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)), {"Linear": 4}),
            "called by its first name": (lambda: TwoNames("a"), {"Conv2d": 1}),
            "called by its second name": (lambda: TwoNames("b"), {"Conv2d": 1}),
            "in a shared block": (TwoBlocks, {"Conv2d": 1}),
            "weights read by the network": (ReadsItsLayer, {"Conv2d": 1}),
            "kinds read by the network": (AsksForItsLayers, {"Conv2d": 1}),
            "a lone layer": (lambda: nn.Linear(8, 10), {"Linear": 1}),
            "convolutions": (lambda: ab.networks.convnet(width=4), {"Conv2d": 4})}


@pytest.mark.parametrize(("build", "where"), NETWORKS.values(), ids=NETWORKS)
def test_every_network_gets_noise_and_the_records_say_where(build, where):
    torch.manual_seed(0)
    network, x = build(), torch.rand(4, 8) if isinstance(build(), nn.Linear) else torch.rand(4, 1, 8, 8)
    classifier = ab.build_classifier("rse", network).eval()
    assert not torch.equal(classifier(x), classifier(x))
    with torch.no_grad():                                # torch has other ways there
        for module in classifier.modules():
            if isinstance(module, ab.AdditiveNoise):
                module.drawn = False
        classifier(x)
    assert all(module.drawn for module in classifier.modules() if isinstance(module, ab.AdditiveNoise))
    assert classifier.settings()["noise_before"] == where
    stds = [m.std for m in classifier.modules() if isinstance(m, ab.AdditiveNoise)]
    assert stds == [0.2] + [0.1] * (sum(where.values()) - 1)
    draw = classifier.draw()
    assert torch.equal(draw(x), draw(x))
    assert "noise_before" not in ab.build_classifier("adv", network).settings()


def test_without_its_noise_the_network_is_itself():
    for build, _ in NETWORKS.values():
        network = build().eval()
        x = torch.rand(4, 8) if isinstance(network, nn.Linear) else torch.rand(4, 1, 8, 8)
        torch.testing.assert_close(ab.add_noise(network, 0.0, 0.0)(x), network(x))


@pytest.mark.parametrize(("network", "match"), [
    (nn.Flatten(), "has neither"), (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64)), "has neither"),
    (ab.add_noise(nn.Linear(64, 10)), "has noise before its layers already")])
def test_a_network_that_noise_has_no_place_in_is_refused(network, match):
    with pytest.raises(ab.InputError, match=match):
        ab.build_classifier("rse", network)


class ReadsInstead(ReadsItsLayer):
    def __init__(self, parts):
        super().__init__()
        self.parts, self.first = parts, nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        x = self.first(x) if self.parts == "one" else nn.functional.conv2d(x, self.first.weight, self.first.bias)
        return self.end(nn.functional.conv2d(x, self.conv.weight, self.conv.bias).amax((2, 3)))


@pytest.mark.parametrize(("parts", "told", "where"), [
    ("one", "before conv: the", {"Conv2d": 1}), ("both", "before conv, first: the", {"Conv2d": 2})])
def test_layers_that_the_network_reads_and_does_not_call_are_told_of(parts, told, where):
    classifier = ab.build_classifier("rse", ReadsInstead(parts))
    with pytest.warns(ab.Note, match=f"no noise is drawn {told}"):
        ab.negative_elbo(classifier, torch.rand(4, 1, 8, 8), torch.arange(4), kl_weight=0.0)
    assert classifier.settings()["noise_before"] == where


@pytest.mark.parametrize("passed", [lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 10)),
                                    lambda: ab.add_noise(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 10)))])
@pytest.mark.parametrize("config", [None, {"defense": "rse"}])
def test_noise_comes_back_from_a_checkpoint_with_its_stds(tmp_path, passed, config):
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 10))
    classifier = ab.Classifier(ab.add_noise(network, 0.6, 0.3))
    ab.save(tmp_path / "c.pt", classifier, config)
    loaded = ab.load(tmp_path / "c.pt", network=passed())
    assert [module.std for module in loaded.modules() if isinstance(module, ab.AdditiveNoise)] == [0.6]
    assert torch.equal(loaded.network[0].weight, classifier.network[0].weight)


def test_noise_stays_beside_hooks_of_another_process(monkeypatch):
    monkeypatch.setattr(torch.utils.hooks.RemovableHandle, "next_id", 0)         # as where a pickle is read
    network = ab.add_noise(ab.networks.convnet(width=4)).eval()
    monkeypatch.setattr(torch.utils.hooks.RemovableHandle, "next_id", 0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda *_: None)
    x = torch.rand(2, 1, 8, 8)
    assert not torch.equal(network(x), network(x))
