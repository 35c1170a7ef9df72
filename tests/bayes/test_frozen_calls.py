import copy
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18

import pyro_advbnn as ab
from pyro_advbnn.attacks.losses import loss_and_gradient
from pyro_advbnn.attacks.modes import frozen
from pyro_advbnn.bayes.classifier import Classifier
from pyro_advbnn.bayes.kernels.frozen_calls import LeanCalls, fusible
from pyro_advbnn.system.errors import Note
from pyro_advbnn.system.precision import autocast

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


def test_every_batch_norm_after_a_convolution_is_found_and_every_pooling_after_a_relu():
    assert len(fusible(ab.networks.vgg16())) == 13 + 5
    assert len(fusible(ab.networks.model_a())) == 6 + 4
    assert len(fusible(resnet18())) == 20
    assert {("features.0", "features.1"), ("features.5", "features.6")} < {*fusible(ab.networks.convnet())}


def test_only_a_convolution_whose_output_nothing_else_reads_is_folded():
    assert fusible(Branching()) == [("plain", "after_plain")]
    assert fusible(DataDependent()) == []


class Rectified(nn.Module):
    """A convolution and a ReLU in a block, and a pooling; pooled: what it gives, from the network and images."""

    def __init__(self, pooled):
        super().__init__()
        self.block, self.drop = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)), nn.Dropout(0.0)
        self.pool, self.head, self.pooled = nn.MaxPool2d(2), nn.Linear(4, 10), pooled
        self.eval()

    def forward(self, x):
        return self.head(self.pooled(self, x).mean((2, 3)))


def read_again(net, x):
    h = net.block[0](x)
    return net.pool(net.block[1](h)) + h.mean((2, 3), keepdim=True)


def read_again_as_another(net, x):
    h = net.block[0](x)
    return net.pool(net.block[1](net.drop(h))) + h.mean((2, 3), keepdim=True)


@pytest.mark.parametrize("pooled", [read_again, read_again_as_another, lambda net, x: net.pool(net.block(x))],
                         ids=["its input is read again", "its input is another's", "a block is between"])
def test_a_relu_keeps_its_place_where(pooled):
    """A ReLU in place changes what others read; a block may get a hook."""
    network = Rectified(pooled)
    assert fusible(network) == []
    torch.testing.assert_close(ab.predict(Classifier(network), X), network(X).softmax(-1))


def test_a_relu_keeps_its_place_where_something_is_in_training_mode():
    class Pooled(nn.Sequential):
        def forward(self, x):
            convolution, relu, pool, drop = self
            h = relu(convolution(x))
            return pool(h - 0.3 if drop.training else h)

    network = Rectified(lambda net, x: net.block(x))
    network.block = Pooled(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.0)).eval()
    classifier = Classifier(network)
    assert fusible(network) == [("block.1", "block.2")]
    with frozen(classifier):
        torch.testing.assert_close(classifier(X), network(X))
        network.block[3].train()
        torch.testing.assert_close(classifier(X), network(X))


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
    classifier, seen, expected = Classifier(network), [], [network.features[:number](X) for number in (1, 2)]
    with frozen(classifier):
        classifier(X)
        for layer in network.features[:2]:
            layer.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
        classifier(X)
    torch.testing.assert_close(seen, expected)


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
            classifier(X)                                             # the first one compares
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


def folded_once(network, forward=None, patched=None, ready=settled):
    """A convolution, its BatchNorm, a pooling and a head; forward: the network's; patched: (layer, its own forward)."""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.pool, self.fc = network()

        def features(self, x):
            return self.pool(self.bn(self.conv(x)).relu())

        def forward(self, x):
            return forward(self, x) if forward else self.fc(self.features(x).mean((2, 3)))

    net = ready(Net())
    if patched:
        layer = net.get_submodule(patched[0])
        layer.forward = types.MethodType(patched[1], layer)
    return net


def layers():
    return nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Linear(4, 10)


def without_bias():
    return nn.Conv2d(3, 4, 3, bias=False), *layers()[1:]


def parametrized():
    convolution, norm, *others = layers()
    return convolution, nn.utils.parametrizations.weight_norm(norm, dim=None), *others


def weights_standardised(conv, x):
    w = conv.weight
    return F.conv2d(x, (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True), conv.bias, padding=1)


def padded_in_a_circle(conv, x):
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), conv.weight, conv.bias)


def head(net, h):
    return net.fc(h.mean((2, 3)))


READ_ELSEWHERE = {
    "the weight, by another convolution": lambda net, x: head(net, net.features(x) + net.pool(
        F.conv2d(x, net.conv.weight, net.conv.bias, padding=2, dilation=2))),
    "the weight, by einsum": lambda net, x: head(net, net.features(x) + torch.einsum(
        "bchw,kcij->bk", x, net.conv.weight)[..., None, None] / 1024),
    "the bias": lambda net, x: net.fc(net.features(x).mean((2, 3)) + net.conv.bias),
    "whether there is a bias": lambda net, x: head(net, net.features(x)) * (3 if net.conv.bias is not None else 1),
}
FORWARDS_OF_THEIR_OWN = {
    "weight standardisation": ("conv", weights_standardised), "circular padding": ("conv", padded_in_a_circle),
    "a norm that does nothing": ("bn", lambda norm, x: x), "a pooling by means": ("pool", lambda pool, x: F.avg_pool2d(x, 2)),
    "the network": ("", lambda net, x: net.fc(net.conv(x).mean((2, 3)))),
}
ATTRIBUTES = {
    "of the pooling": lambda net, x: head(net, net.features(x)) / net.pool.stride,
    "of the BatchNorm": lambda net, x: head(net, net.features(x)) * (1 - net.bn.eps) + net.bn.running_var.sum(),
}
PECULIAR = {
    **{name: lambda f=f: folded_once(layers, f) for name, f in (READ_ELSEWHERE | ATTRIBUTES).items()},
    **{name: lambda p=p: folded_once(layers, patched=p) for name, p in FORWARDS_OF_THEIR_OWN.items()},
    "there is none": lambda: folded_once(without_bias, READ_ELSEWHERE["whether there is a bias"]),
    "parametrized": lambda: folded_once(parametrized),
}


@pytest.mark.parametrize("wrap", [Classifier, lambda network: ab.BayesianClassifier(network, init_std=1e-8).eval()])
@pytest.mark.parametrize("network", PECULIAR.values(), ids=PECULIAR)
def test_a_network_that_does_more_than_its_modules_is_predicted_as_it_is(network, wrap):
    network = network()                                  # a Note, where folding is found to be wrong, would be an error
    torch.testing.assert_close(ab.predict(wrap(network), X, num_samples=2), network(X).softmax(-1), rtol=1e-3, atol=1e-4)


def test_reading_attributes_is_no_reason_not_to_fold():
    assert all(fusible(folded_once(layers, forward)) == [("conv", "bn")] for forward in (*ATTRIBUTES.values(), None))


UNSEEN = {                                               # no trace of it in the graph
    "the bias, out of the state": lambda net, x: head(net, net.features(x)) * net.conv.state_dict()["bias"].norm(),
    "the weight, as a number": lambda net, x: head(net, net.features(x)) * net.conv._parameters["weight"].detach().norm(),
}


@pytest.mark.parametrize("wrap", [Classifier, lambda network: ab.BayesianClassifier(network, init_std=1e-8).eval()])
@pytest.mark.parametrize("ready", [settled, nn.Module.eval], ids=["settled", "new"])
@pytest.mark.parametrize("forward", UNSEEN.values(), ids=UNSEEN)
def test_where_folding_changes_the_answer_the_network_is_called_as_it_is_and_a_note_says_so_once(forward, ready, wrap):
    network = folded_once(layers, forward, ready=ready)
    classifier = wrap(network)
    assert fusible(network) == [("conv", "bn")]
    with pytest.warns(Note, match="the network answers otherwise") as told:
        first = ab.predict(classifier, X, num_samples=2)
    assert len(told) == 1 and issubclass(Note, UserWarning)
    classifier.forget()
    for answer in (first, ab.predict(classifier, X, num_samples=2)):
        torch.testing.assert_close(answer, network(X).softmax(-1), rtol=1e-3, atol=1e-4)


class Checkpointed(nn.Sequential):
    def forward(self, x):
        return self[1](checkpoint(self[0], x, use_reentrant=False))


def test_where_the_gradient_calls_modules_anew_the_network_is_called_as_it_is():
    network = settled(Checkpointed(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
                                   nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))))
    y, gradients = torch.arange(3), []
    with pytest.warns(Note, match="its gradient calls modules anew"):
        for classifier in (Classifier(network), network):
            with torch.inference_mode():                 # where no gradient can be looked at
                ab.predict(classifier, X, num_samples=1)
            with frozen(classifier):
                gradients.append(loss_and_gradient(classifier, X, y)[1])
    assert torch.equal(*gradients) and gradients[0].any()
    assert all(p.grad is None for p in network.parameters())


CLASSIFIERS = [
    lambda: ab.BayesianClassifier(settled(ab.networks.convnet(in_channels=3, width=4)), init_std=0.1).eval(),
    lambda: ab.build_classifier("rse", settled(ab.networks.convnet(in_channels=3, width=4))).eval(),
    lambda: ab.BayesianClassifier(ab.add_noise(settled(ab.networks.vgg11(width=2))), init_std=0.1).eval()]


@pytest.mark.parametrize("build", CLASSIFIERS)
def test_draws_are_the_same_bits_with_and_without_the_comparison(build, monkeypatch):
    answers, compared, original = [], [], LeanCalls._compare
    for compare in (original, lambda *_: True):
        monkeypatch.setattr(LeanCalls, "_compare", lambda *args, c=compare: compared.append(c) or c(*args))
        torch.manual_seed(2)
        classifier = build()
        torch.manual_seed(3)
        x_adv = ab.pgd(classifier, X, torch.tensor([1, 2, 3]), epsilon=0.1, step_size=0.05, num_steps=2)
        answers.append([x_adv, ab.predict(classifier, X, num_samples=2), torch.get_rng_state()])
        classifier.forget()
        ab.predict(classifier, X)
    assert compared.count(original) == 1 < len(compared) and all(map(torch.equal, *answers))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_in_both_are_no_difference(value):
    network = folded_once(layers)
    with torch.no_grad():
        network.fc.bias[0] = value
    classifier = Classifier(network)
    with frozen(classifier), warnings.catch_warnings(action="error"):
        assert not classifier(X)[:, 0].isfinite().any() and all(classifier._lean_calls._agree.values())


def test_nothing_is_compared_in_training_mode_which_would_move_the_running_statistics():
    network = settled(ab.networks.convnet(in_channels=3, width=4)).train()
    classifier, norm = Classifier(network), network.features[1]
    for part in (network, norm):                         # all of it, or one norm alone
        classifier.eval()
        part.train()
        before = norm.num_batches_tracked.item()
        with frozen(classifier):
            classifier(X)
        assert norm.num_batches_tracked == before + 1


def test_weights_kept_before_a_fused_step_which_moves_no_version_are_not_those_after_it():
    classifier = Classifier(settled(ab.networks.convnet(in_channels=3, width=4))).eval()
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1, fused=True)
    with frozen(classifier):
        classifier(X)
    with torch.enable_grad():
        classifier(X).square().mean().backward()
    optimizer.step()
    with frozen(classifier):
        torch.testing.assert_close(classifier(X), classifier.mean_network().eval()(X), rtol=1e-4, atol=1e-4)


class Float32Head(nn.Module):
    """Its last layer leaves autocast, as numerically delicate parts do."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward(self, x):
        features = self.body(x).mean((2, 3))
        with torch.autocast(x.device.type, enabled=False):
            return self.head(features.float())


@pytest.mark.parametrize("wrap", [Classifier, ab.BayesianClassifier])
def test_a_part_that_leaves_autocast_is_attacked_as_it_is_called(wrap):
    classifier = wrap(Float32Head()).eval()
    ab.predict(classifier, X)                            # in float32 nothing stands in the way
    with autocast(torch.device("cpu"), "bf16"), warnings.catch_warnings(action="ignore", category=Note):
        x_adv = ab.pgd(classifier, X, torch.zeros(3, dtype=torch.int64), epsilon=0.1, step_size=0.1, num_steps=1)
    assert not torch.equal(x_adv, X)


def test_looking_for_what_can_be_folded_draws_nothing():
    class Resizing(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = ab.networks.convnet(in_channels=3, width=4)

        def forward(self, x):
            return self.network(x * torch.rand(()))

    network = Resizing().eval()
    before = torch.get_rng_state()
    fusible(network)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("wrap", [Classifier, lambda network: ab.BayesianClassifier(network, init_std=1e-8)])
def test_a_buffer_that_was_made_in_inference_mode_has_no_version_and_is_no_hindrance(wrap):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = settled(ab.networks.convnet(in_channels=3, width=4))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls = self.calls + 1
            return self.network(x)

    classifier = wrap(Counting()).eval()
    with torch.inference_mode(), frozen(classifier):
        answers = [classifier(X) for _ in range(3)]      # of which the first compares
    torch.testing.assert_close(answers[2], classifier.mean_network().eval()(X), rtol=0, atol=1e-4)


@pytest.mark.parametrize("wrap", [Classifier, ab.BayesianClassifier])
def test_what_was_kept_in_inference_mode_gives_gradients_later(wrap):
    classifier = wrap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 10))).eval()
    classifier.requires_grad_(False)
    with torch.inference_mode():
        classifier(X)
    x = X.clone().requires_grad_()
    classifier(x).sum().backward()
    assert x.grad.abs().sum() > 0


class TwoNorms(nn.Module):
    """One BatchNorm for clean images and one for attacked ones, as in AdvProp (Xie et al. 2020)."""

    def __init__(self):
        super().__init__()
        self.conv, self.clean, self.attacked = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu, self.pool, self.last, self.is_clean = nn.ReLU(), nn.MaxPool2d(2), nn.Linear(900, 10), True
        self.tanh, self.activation = nn.Tanh(), self.relu

    def forward(self, x):
        x = (self.clean if self.is_clean else self.attacked)(self.conv(x))
        return self.last(self.pool(self.activation(x)).flatten(1))


class Doubled(nn.BatchNorm2d):
    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize("change", [
    lambda network: setattr(network, "is_clean", False), lambda network: setattr(network, "activation", nn.Softplus()),
    lambda network: setattr(network, "activation", network.tanh),
    lambda network: setattr(network, "pool", nn.AvgPool2d(2)), lambda network: setattr(network.clean, "__class__", Doubled)])
@pytest.mark.parametrize("build", [Classifier, lambda network: ab.BayesianClassifier(network, init_std=1e-8)])
def test_predictions_follow_a_switch_in_the_network_and_a_layer_that_was_replaced(change, build):
    classifier = build(settled(TwoNorms())).eval()
    before = ab.predict(classifier, X, num_samples=1)
    change(classifier.network)
    expected = classifier.mean_network().eval()(X).softmax(-1)
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(ab.predict(classifier, X, num_samples=1), expected, rtol=1e-4, atol=1e-5)


class CountsItsCalls(TwoNorms):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


@pytest.mark.parametrize("build", [lambda: ab.build_classifier("rse", ab.networks.convnet(in_channels=3, width=4)),
                                   lambda: Classifier(settled(CountsItsCalls()))])
def test_what_a_call_itself_leaves_in_the_network_makes_nobody_trace_it_again(build):
    classifier = build().eval()
    ab.predict(classifier, X)
    calls = classifier._lean_calls
    ab.predict(classifier, X)
    assert classifier._lean_calls is calls
    classifier.network.another = nn.Identity()
    assert not calls.are_up_to_date()
