import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

import pyro_advbnn as ab
from pyro_advbnn.attacks.modes import frozen
from pyro_advbnn.bayes.classifier import Classifier
from pyro_advbnn.bayes.kernels.frozen_calls import foldable

X = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def settled(network):
    """In eval mode, with statistics and affine maps that leave nothing as it was."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return network.eval()


class Branching(nn.Module):
    """A convolution whose output is read twice, one that is called twice, one without bias, and a lone BatchNorm."""

    def __init__(self):
        super().__init__()
        self.twice_read, self.after_twice_read = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.twice_called, self.after_twice_called = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.plain, self.after_plain = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)
        self.last, self.lone = nn.Linear(4, 10), nn.BatchNorm1d(10)

    def forward(self, x):
        x = self.twice_read(x)
        x = x + self.after_twice_read(x)
        x = self.after_twice_called(self.twice_called(x)) + self.twice_called(x)
        return self.lone(self.last(self.after_plain(self.plain(x)).mean((2, 3))))


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = ab.networks.convnet(in_channels=3, width=4)

    def forward(self, x):
        return self.network(x) if x.sum() > 0 else self.network(-x)


NETWORKS = {
    "vgg11": lambda: ab.networks.vgg11(width=4), "convnet": lambda: ab.networks.convnet(in_channels=3, width=4),
    "resnet18": lambda: resnet18(num_classes=10), "branching": Branching, "data dependent": DataDependent,
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4))), nn.Flatten(),
                                    nn.Linear(3600, 10)),
}


def test_every_batch_norm_after_a_convolution_is_found():
    assert len(foldable(ab.networks.vgg16())) == 13
    assert len(foldable(ab.networks.model_a())) == 6
    assert len(foldable(resnet18())) == 20
    assert foldable(ab.networks.convnet())[0] == ("features.0", "features.1")


def test_only_a_convolution_whose_output_nothing_else_reads_is_folded():
    assert foldable(Branching()) == [("plain", "after_plain")]
    assert foldable(DataDependent()) == []


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_frozen_classifier_answers_as_its_network(kind):
    network = settled(NETWORKS[kind]())
    expected = network(X)
    classifier = Classifier(network)
    with frozen(classifier):
        torch.testing.assert_close(classifier(X), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(classifier(X), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_logits_and_input_gradients_of_a_draw_are_those_without_folding(kind):
    classifier = ab.BayesianClassifier(settled(NETWORKS[kind]()), init_std=0.01).eval()
    results = []
    for context in (frozen(classifier), torch.enable_grad()):
        x = X.clone().requires_grad_()
        torch.manual_seed(2)
        with context:
            logits = classifier(x)
            results.append((logits.detach(), torch.autograd.grad(F.cross_entropy(logits, torch.tensor([1, 2, 3])), x)[0]))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_draw_leaves_mean_and_deterministic_weights_as_they_are():
    classifier = ab.BayesianClassifier(settled(ab.networks.convnet(width=4)), deterministic=["features.0.*", "features.4.*"])
    before = copy.deepcopy(classifier.eval().state_dict())
    with frozen(classifier):
        classifier(X[:, :1])
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())


@pytest.mark.parametrize("wrap", [Classifier, ab.BayesianClassifier])
def test_batch_norm_in_training_mode_normalises_by_the_batch(wrap):
    classifier = wrap(settled(ab.networks.convnet(width=4)))
    x, mean = X[:, :1], classifier.network.features[1].running_mean.clone()
    with frozen(classifier.eval()):
        still = classifier(x)
    with frozen(classifier.train()):
        assert (classifier(x) - still).abs().max() > 0.1
    assert (classifier.network.features[1].running_mean - mean).abs().max() > 0.01


def test_hooks_are_called_and_see_what_they_would():
    network = settled(ab.networks.convnet(in_channels=3, width=4))
    classifier, seen = Classifier(network), []
    with frozen(classifier):
        classifier(X)
        network.features[1].register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
        classifier.eval()(X)
    torch.testing.assert_close(seen[0], network.features[1](network.features[0](X)))


def test_a_module_with_two_names_is_left_alone():
    convolution = nn.Conv2d(3, 3, 3, padding=1)
    network = nn.Sequential(convolution, nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3),
                            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    network[3].weight = convolution.weight
    expected = settled(network)(X)
    for classifier in (Classifier(network), ab.BayesianClassifier(network, init_std=1e-8).eval()):
        with frozen(classifier):
            torch.testing.assert_close(classifier(X), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [
    lambda network: network.features[4].weight.neg_(), lambda network: network.features[1].running_mean.add_(1),
    lambda network: network.features[1].bias.sub_(1), lambda network: network.load_state_dict(
        ab.networks.convnet(in_channels=3, width=4).state_dict())])
def test_a_frozen_classifier_sees_a_change_of_its_weights_at_once(change):
    network = settled(ab.networks.convnet(in_channels=3, width=4))
    classifier = Classifier(network)
    with frozen(classifier), torch.no_grad():
        before = classifier(X)
        change(network)
        assert not torch.allclose(classifier(X), before, atol=1e-4)
        torch.testing.assert_close(classifier(X), network(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrap", [Classifier, ab.BayesianClassifier])
def test_under_autocast_logits_are_close_and_weights_are_cast_once(wrap):
    classifier = wrap(settled(ab.networks.vgg11(width=8)), **({"init_std": 1e-8} if wrap is ab.BayesianClassifier else {}))
    with frozen(classifier.eval()):
        exact = classifier(X)
        with torch.autocast("cpu", torch.bfloat16):
            seen = []
            hook = classifier.network.features[0].register_forward_pre_hook(lambda m, _: seen.append(m.weight.dtype))
            rounded = classifier(X)
            hook.remove()
        torch.testing.assert_close(classifier(X), exact)              # and back, once autocast is off again
    assert seen == [torch.bfloat16]
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("wrap", [Classifier, ab.BayesianClassifier])
def test_a_copy_of_a_classifier_that_was_called_goes_on_by_itself(wrap):
    classifier = wrap(settled(ab.networks.convnet(in_channels=3, width=4)))
    with frozen(classifier.eval()):
        classifier(X)
        other = copy.deepcopy(classifier)
        with torch.no_grad():
            for p in other.parameters():
                p.zero_()
        assert not torch.allclose(other(X), classifier(X), atol=1e-3)
