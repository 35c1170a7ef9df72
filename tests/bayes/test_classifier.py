import copy
import math
import statistics
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint_sequential

import pyro_advbnn as ab
from pyro_advbnn.system import distributed
from pyro_advbnn.system.errors import Note


class Tied(nn.Module):
    """Two linear layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x.flatten(1)).relu())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        return self.head(self.norm(x + self.scale * self.attention(x, x, x)[0]).mean(1))


def grouped():
    return nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, groups=8), nn.PReLU(),
                         nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


NETWORKS = {
    "convnet": (lambda: ab.networks.convnet(width=4), (1, 8, 8)),
    "grouped and depthwise": (grouped, (4, 8, 8)),
    "tied": (Tied, (1, 2, 2)),
    "attention and LayerNorm": (Attention, (8, 3, 3)),
    "weight norm": (lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(9, 3))), (1, 3, 3)),
    "a lone layer": (lambda: nn.Linear(3, 3), (3,)),
    "torchvision": (lambda: torchvision.models.squeezenet1_1(num_classes=3), (3, 32, 32)),
}


@pytest.fixture(params=NETWORKS)
def network_and_x(request):
    build, shape = NETWORKS[request.param]
    return build().eval(), torch.rand(2, *shape)


def almost_certain(network, **more):
    return ab.BayesianClassifier(network, init_std=1e-8, **more).train(network.training)


def test_any_network_becomes_bayesian_and_at_std_zero_is_itself(network_and_x):
    network, x = network_and_x
    torch.testing.assert_close(almost_certain(network)(x), network(x), rtol=1e-3, atol=1e-4)


def test_every_weight_is_random_and_trained(network_and_x):
    network, x = network_and_x
    classifier = ab.BayesianClassifier(network, init_std=0.02)
    assert len(classifier.mean) == len(classifier.log_std) == sum(p.numel() for p in network.parameters())
    assert not torch.equal(classifier(x), classifier(x))
    assert set(classifier.posterior()) == {name for name, _ in network.named_parameters()}
    ab.negative_elbo(classifier, x, torch.zeros(2, dtype=torch.long), kl_weight=1e-3).backward()
    assert (classifier.log_std.grad != 0).all()


def test_the_wrapped_network_is_left_alone_and_may_be_wrapped_again(network_and_x):
    network, x = network_and_x
    before = copy.deepcopy(network.state_dict())
    classifier = ab.BayesianClassifier(network, init_std=0.05).train()
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.1)
    ab.train_step(classifier, optimizer, torch.cat([x, x]), torch.zeros(4, dtype=torch.long), kl_weight=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    torch.testing.assert_close(almost_certain(network)(x), network(x), rtol=1e-3, atol=1e-4)


def test_a_fixed_draw_answers_the_same_and_is_independent(network_and_x):
    network, x = network_and_x
    classifier = ab.BayesianClassifier(network, init_std=0.05).eval()
    draw = classifier.draw()
    first = draw(x)
    with torch.no_grad():
        classifier.mean.zero_()
    assert torch.equal(draw(x), first)
    assert [name for name, _ in draw.named_parameters()] == [name for name, _ in network.named_parameters()]
    assert draw.state_dict().keys() == network.state_dict().keys()


def test_the_mean_network_is_the_wrapped_network_at_first(network_and_x):
    network, x = network_and_x
    assert torch.equal(ab.BayesianClassifier(network).mean_network()(x), network(x))


def test_tied_parameters_are_counted_once():
    classifier = ab.BayesianClassifier(Tied())
    assert len(classifier.mean) == 16 + 4 + 4
    draw = classifier.draw()
    assert draw.first.weight is draw.second.weight


def test_the_classifier_holds_no_second_copy_of_the_weights():
    network = ab.networks.convnet(width=4)
    state = ab.BayesianClassifier(network).state_dict()
    buffers = {f"network.{name}" for name, _ in network.named_buffers()}
    assert set(state) == {"mean", "log_std"} | buffers


def test_posterior_has_the_names_and_shapes_of_the_network():
    network = ab.networks.convnet(width=4)
    classifier = ab.BayesianClassifier(network, init_std=0.03)
    posterior = classifier.posterior()
    with torch.no_grad():                                # as a training that goes on, which changes no posterior of before
        classifier.mean.zero_()
    for name, p in network.named_parameters():
        assert torch.equal(posterior[name].mean, p)
        torch.testing.assert_close(posterior[name].stddev, torch.full_like(p, 0.03).detach())


@pytest.mark.parametrize("kind", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_parametrized_layer_has_the_bias_of_a_plain_one(kind):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    parametrized = copy.deepcopy(plain)
    for layer in (parametrized[1], parametrized[3]):
        kind(layer)
    first, second = (ab.BayesianClassifier(network, "fan_in", "fan_in/30", kl_over="last").posterior()
                     for network in (plain, parametrized))
    for name in ("1.bias", "3.bias"):
        assert torch.equal(first[name].stddev, second[name].stddev)
    nn.init.zeros_(parametrized[3].bias)
    shares = ab.BayesianClassifier(parametrized, init_std="share/10").posterior()
    assert (shares["3.bias"].stddev > 1e-6).all()        # by the size of the weights of its layer
    weights = [q.mean.numel() for name, q in second.items() if name.startswith("3.")]
    start, stop = ab.BayesianClassifier(parametrized, kl_over="last").prior.counted
    assert stop - start == sum(weights) == sum(q.mean.numel() for q in second.values()) - start


def test_the_kl_of_a_last_layer_that_shares_its_weight_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64))
    network[2].weight = network[1].weight
    with pytest.raises(ab.InputError, match="shares a weight with another layer"):
        ab.BayesianClassifier(network, kl_over="last")


@pytest.mark.parametrize("make", ["draw", "mean_network"])
def test_a_draw_and_the_mean_network_have_the_deterministic_weights(make):
    network = ab.networks.convnet(width=4)
    nn.init.constant_(network.classifier.bias, 0.7)
    classifier = ab.BayesianClassifier(network, deterministic=["classifier.bias"])
    assert torch.equal(getattr(classifier, make)().classifier.bias, network.classifier.bias)


def test_stds_by_pattern_need_none_for_what_is_frozen():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 10))
    network[1].requires_grad_(False)
    stds = {name: q.stddev for name, q in ab.BayesianClassifier(network, {"2.*": 0.1}, {"2.*": 0.01}).posterior().items()}
    assert set(stds) == {"2.weight", "2.bias"} and all((std == 0.01).all() for std in stds.values())


def test_deterministic_parameters_are_trained_without_a_distribution():
    network = ab.networks.convnet(width=4)
    classifier = ab.BayesianClassifier(network, deterministic=["features.1.*", "*.bias"])
    names = set(classifier.posterior())
    assert "features.1.weight" not in names and not any(name.endswith("bias") for name in names)
    total = sum(p.numel() for p in network.parameters())
    assert len(classifier.mean) + len(classifier.deterministic) == total
    x, y = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    ab.negative_elbo(classifier, x, y, kl_weight=1e-3).backward()
    assert (classifier.deterministic.grad != 0).any()
    torch.testing.assert_close(almost_certain(network.eval(), deterministic=["*.bias"])(x), network(x), rtol=1e-3, atol=1e-4)


def test_parameters_that_need_no_gradient_stay_fixed():
    network = ab.networks.convnet(width=4)
    network.classifier.weight.requires_grad_(False)
    classifier = ab.BayesianClassifier(network, init_std=0.1)
    assert "classifier.weight" not in classifier.posterior()
    assert torch.equal(classifier.draw().classifier.weight, network.classifier.weight)
    assert [name for name, p in classifier.named_parameters() if p.requires_grad] == ["mean", "log_std"]
    assert torch.equal(classifier.state_dict()["network.classifier.weight"], network.classifier.weight)


@pytest.mark.parametrize(("network", "match"), [
    (lambda: nn.Flatten(), "no parameters"),
    (lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), "one dtype"),
    (lambda: nn.LazyLinear(3), "has no shape yet"),
    (lambda: nn.LSTM(2, 2), "recurrent"), (lambda: nn.Sequential(nn.Linear(2, 2), nn.GRU(2, 2)), "recurrent"),
    (lambda: nn.Linear(2, 2).requires_grad_(False), "no parameters that require a gradient"),
])
def test_networks_that_cannot_be_bayesian_are_refused(network, match):
    with pytest.raises(ab.InputError, match=match):
        ab.BayesianClassifier(network())


@pytest.mark.parametrize(("settings", "match"), [
    ({"prior_std": 0}, "prior_std"), ({"prior_std": -1.0}, "prior_std"), ({"prior_std": math.nan}, "prior_std"),
    ({"prior_std": "fan_out"}, "prior_std"), ({"prior_std": {"features.*": 0.1}}, "classifier.weight"),
    ({"init_std": "share*0"}, "init_std"), ({"init_std": "share/1e9"}, "init_std"), ({"prior_std": "share/10"}, "prior_std"),
    ({"init_std": 1e-9}, "init_std"), ({"init_std": 11}, "init_std"), ({"init_std": "fan_in/0"}, "init_std"),
    ({"deterministic": ["nothing*"]}, "nothing"), ({"deterministic": ["*"]}, "no parameter"),
    ({"kl_over": "first"}, "kl_over"), ({"kl_over": "last", "deterministic": ["classifier.*"]}, "last"),
    ({"prior": torch.distributions.Normal(torch.zeros(2), 1.0)}, "one weight"),
])
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(ab.InputError, match=match):
        ab.BayesianClassifier(ab.networks.convnet(width=4), **settings)


@pytest.mark.parametrize("kind", ["tuple", "dict", "image"])
def test_a_network_that_does_not_return_logits_is_refused(kind):
    class Odd(nn.Linear):
        def forward(self, x):
            logits = super().forward(x)
            return {"tuple": (logits,), "dict": {"out": logits}, "image": logits[..., None]}[kind]
    for classifier in (ab.BayesianClassifier(Odd(2, 2)), ab.Classifier(Odd(2, 2))):
        with pytest.raises(ab.InputError, match="logits"):
            classifier(torch.rand(3, 2))


def test_log_std_stays_in_its_range():
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4))
    with torch.no_grad():
        classifier.log_std[:3] = torch.tensor([-100.0, 100.0, -3.0])
    classifier.constrain_()
    torch.testing.assert_close(classifier.log_std[:3].detach(), torch.tensor([math.log(1e-8), math.log(10), -3.0]))


def test_averaged_is_the_log_of_the_mean_softmax():
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.3).eval()
    x = torch.rand(5, 1, 8, 8)
    torch.manual_seed(1)
    averaged = classifier.averaged(3)(x)
    torch.manual_seed(1)
    expected = sum(classifier(x).softmax(-1) for _ in range(3)) / 3
    torch.testing.assert_close(averaged.exp(), expected)
    with pytest.raises(ab.InputError):
        classifier.averaged(0)


class Centred(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place

    def forward(self, x):
        return x.mul_(2).sub_(1) if self.in_place else 2 * x - 1


@pytest.mark.parametrize("num_images", [6, 130])         # all of them tell BatchNorm's statistics, and every second one
def test_a_first_layer_that_works_in_place_changes_no_image_that_is_used_again(num_images):
    x, y, found = torch.rand(num_images, 1, 8, 8), torch.arange(num_images) % 3, []
    before = x.clone()
    for in_place in (True, False):
        torch.manual_seed(0)
        network = nn.Sequential(Centred(in_place), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))
        classifier = ab.BayesianClassifier(network.train(), init_std=0.1)
        ab.train_step(classifier, torch.optim.SGD(classifier.parameters(), lr=0.1), x.clone(), y, kl_weight=0, awp=0.1)
        classifier.eval()
        found.append((classifier.mean.detach(), classifier.averaged(3)(x), ab.predict(classifier, x, num_samples=3)))
    assert torch.equal(x, before)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("training", [True, False])
def test_averaged_is_in_the_mode_of_its_classifier(training):
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4)).train(training)
    inner = classifier.network.pool.train(not training)
    assert classifier.averaged(2).training is training and inner.training is not training


def test_averaged_can_be_differentiated_through_all_its_draws():
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.3).eval().requires_grad_(False)
    x = torch.rand(5, 1, 8, 8)
    gradients = []
    for build in (lambda: classifier.averaged(4), lambda: lambda x: sum(classifier(x).softmax(-1) for _ in range(4)).log()):
        torch.manual_seed(1)
        leaf = x.clone().requires_grad_()
        gradients += torch.autograd.grad(build()(leaf)[:, 0].sum(), leaf)
    torch.testing.assert_close(*gradients)


def test_the_std_kept_for_an_attack_is_never_stale():
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.5).eval()
    x, y = torch.rand(5, 1, 8, 8), torch.randint(10, (5,))
    ab.pgd(classifier, x, y, epsilon=0.1, step_size=0.1, num_steps=1)
    classifier.log_std.data.fill_(-18.0)                 # behind autograd's back
    expected = classifier.mean_network().eval()
    attacked = ab.pgd(classifier, x, y, epsilon=0.1, step_size=0.1, num_steps=1)
    assert torch.equal(attacked, ab.pgd(expected, x, y, epsilon=0.1, step_size=0.1, num_steps=1))


def test_a_frozen_classifier_follows_its_parameters():
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.5).eval().requires_grad_(False)
    x = torch.rand(5, 1, 8, 8)
    classifier(x)
    classifier.log_std.fill_(-18.0)
    torch.testing.assert_close(classifier(x), classifier.mean_network()(x), rtol=1e-3, atol=1e-4)


def test_a_deep_copy_is_another_classifier():
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.01)
    other = copy.deepcopy(classifier)
    x, y = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    ab.train_step(other, torch.optim.Adam(other.parameters()), x, y, kl_weight=1e-3)
    assert not torch.equal(other.mean, classifier.mean)
    assert other._pyro_name != classifier._pyro_name


def test_a_noisy_draw_repeats_its_noise():
    classifier = ab.build_classifier("rse", ab.networks.convnet(width=4)).eval()
    x = torch.rand(3, 1, 8, 8)
    assert not torch.equal(classifier(x), classifier(x))
    draw = classifier.draw()
    assert torch.equal(draw(x), draw(x))
    assert not torch.equal(draw(x), classifier.draw()(x))


def test_defences_build_their_kind_of_classifier():
    network = ab.networks.convnet(width=4)
    kinds = {name: ab.build_classifier(name, network) for name in ab.DEFENSES}
    assert {name for name, c in kinds.items() if isinstance(c, ab.BayesianClassifier)} == {"bnn", "advbnn"}
    assert {name for name, d in ab.DEFENSES.items() if d.adversarial} == {"adv", "advbnn", "advrse"}
    noise = [m.std for m in kinds["rse"].modules() if isinstance(m, ab.AdditiveNoise)]
    assert noise == [0.2, 0.1, 0.1, 0.1]
    assert not any(isinstance(m, ab.AdditiveNoise) for m in network.modules())
    x = torch.rand(3, 1, 8, 8)
    expected = F.linear(network.pool(network.features(x)).flatten(1), network.classifier.weight, network.classifier.bias)
    kinds["adv"].network.classifier.bias.data.add_(1)    # is nobody else's
    assert torch.equal(kinds["none"](x), expected)
    with pytest.raises(ab.InputError, match="advbnn"):
        ab.build_classifier("madry", network)


def test_noise_is_active_in_training_and_in_testing_and_has_its_std():
    noise = ab.AdditiveNoise(0.2)
    x = torch.zeros(200, 500)
    for mode in (True, False):
        assert noise.train(mode)(x).std().item() == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize(("network", "match"), [(3, "nn.Module"), (ab.Classifier(nn.Linear(2, 2)), "classifier already")])
def test_what_is_no_plain_network_is_refused(network, match):
    with pytest.raises(ab.InputError, match=match):
        ab.BayesianClassifier(network)


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a
        self.end = nn.Linear(4, 3)

    def forward(self, x):
        return self.end(self.b(self.a(x.flatten(1)).relu()))


def test_a_layer_under_two_names_is_drawn_once_and_left_as_it_was():
    torch.manual_seed(0)
    network, x, y = Twice(), torch.rand(5, 1, 2, 2), torch.arange(5) % 3
    classifier = ab.BayesianClassifier(network, init_std=1e-8)
    names = [name for name, _ in classifier.named_parameters()]
    for _ in range(2):
        ab.negative_elbo(classifier, x, y, kl_weight=0.1).backward()
        with ab.eval_mode(classifier):
            torch.testing.assert_close(classifier(x), network(x))
    assert [name for name, _ in classifier.named_parameters()] == names == ["mean", "log_std"]
    assert len(classifier.mean) == sum(p.numel() for p in network.parameters())
    torch.testing.assert_close(classifier.draw()(x), network(x))
    assert ab.pgd(classifier, x, y, epsilon=0.1, step_size=0.1, num_steps=1).shape == x.shape


class ReadsOutside(nn.Module):
    """One layer is used as it should be, the other's weights are read from outside the module, or not at all."""

    def __init__(self, uses):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
        outside = self.first
        self.first.forward = {"a closure": lambda x: F.linear(x, outside.weight, outside.bias), "nothing": lambda x: x,
                              "what is cut off": torch.no_grad()(self.first.forward)}[uses]

    def forward(self, x):
        return self.second(self.first(x.flatten(1)))


OUTSIDE = ["a tensor (4, 4) from outside", "a tensor (4,) from outside"]


@pytest.mark.parametrize("deterministic", [(), ("first.*",), ("second.*",)])
@pytest.mark.parametrize("uses", ["a closure", "nothing", "what is cut off"])
def test_weights_that_are_not_drawn_and_trained_are_named_at_the_first_step(uses, deterministic):
    network, x, y = ReadsOutside(uses), torch.rand(4, 1, 2, 2), torch.arange(4) % 3
    classifier = ab.BayesianClassifier(network, deterministic=deterministic)
    optimizer = torch.optim.Adam(classifier.parameters())
    with pytest.warns(Note, match=r"training leaves out first\.weight, first\.bias.*requires_grad_\(False\)"):
        ab.train_step(classifier, optimizer, x, y, kl_weight=0.1)
    assert classifier.unreached[:2] == ["first.weight", "first.bias"]
    assert sorted(classifier.unreached[2:]) == (OUTSIDE if uses == "a closure" else [])
    ab.train_step(classifier, optimizer, x, y, kl_weight=0.1)
    network.first.requires_grad_(False)
    ab.negative_elbo(ab.BayesianClassifier(network), x, y, kl_weight=0.1).backward()


class Hidden(nn.Module):
    """One layer is in the network's list, or is called and read from outside too."""

    def __init__(self, where):
        super().__init__()
        layer, self.end = nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
        self.layers = [layer] if where == "a list" else nn.ModuleList([layer])
        self.also = (lambda x: layer(x)) if where == "a closure" else nn.Identity()

    def forward(self, x):
        x = x.flatten(1)
        return self.end(self.layers[0](x) + self.also(x))


@pytest.mark.parametrize(("where", "defense"), [
    ("a list", "bnn"), ("a closure", "bnn"), ("a list", "adv"), ("a closure", "rse")])
def test_weights_that_no_parameter_holds_are_told_of_by_their_shape(where, defense):
    classifier, x, y = ab.build_classifier(defense, Hidden(where)), torch.rand(4, 1, 2, 2), torch.arange(4) % 3
    with pytest.warns(Note, match=r"training leaves out a tensor \(4, 4\) from outside"):
        ab.train_step(classifier, torch.optim.Adam(classifier.parameters()), x, y, kl_weight=0.0)


@pytest.mark.parametrize("parts", [1, 2])
def test_of_a_graph_that_is_made_later_nothing_is_told(parts):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    inner = network[2:4]
    network.forward = lambda x: network[4](checkpoint_sequential(inner, parts, network[1](network[0](x)), use_reentrant=True))
    classifier = ab.Classifier(network)
    before = inner[0].weight.detach().clone()
    ab.train_step(classifier, torch.optim.SGD(classifier.parameters(), 1.0), torch.rand(4, 1, 2, 2), torch.arange(4) % 3,
                  kl_weight=0.0)
    assert (inner[0].weight != before).any()


@pytest.mark.parametrize("wrap", [lambda forward: lambda x: forward(x * 2), torch.no_grad()])
def test_a_network_of_which_no_weight_is_drawn_is_told_too(wrap):
    network, x, y = nn.Linear(4, 3), torch.rand(4, 4), torch.arange(4) % 3
    network.forward = wrap(network.forward)
    for classifier in (ab.BayesianClassifier(network), ab.BayesianClassifier(network, deterministic="bias")):
        with pytest.warns(Note, match=r"training leaves out weight, bias[:,]"):
            ab.negative_elbo(classifier, x, y, kl_weight=0.1).backward()


@pytest.mark.parametrize("defense", ["advbnn", "rse", "adv"])
def test_a_network_that_uses_all_its_weights_is_told_of_nothing(defense):
    classifier, x = ab.build_classifier(defense, ab.networks.convnet(width=4)), torch.rand(4, 1, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam(classifier.parameters())
    assert ab.train_step(classifier, optimizer, x, torch.arange(4), kl_weight=0.0).loss.isfinite()
    assert classifier.unreached == []
    classifier.network.named_parameters = None                       # later steps do not look again
    assert ab.train_step(classifier, optimizer, x, torch.arange(4), kl_weight=0.0).loss.isfinite()


def test_a_kept_std_is_that_of_the_parameter_that_is_there():
    x = torch.rand(2, 1, 4, 4)
    classifier, other = (ab.BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), init_std=std).eval()
                         for std in (0.01, 1.0))
    classifier.requires_grad_(False)(x)
    classifier.load_state_dict(other.state_dict(), assign=True)
    torch.manual_seed(0)
    drawn = classifier(x)
    torch.manual_seed(0)
    torch.testing.assert_close(drawn, other(x).detach())


def spread(classifier, log_std):
    """How far the answers to one image lie apart with a log_std that is made for this call and gone after it."""
    x, state = torch.ones(1, 16), {"log_std": torch.full_like(classifier.log_std, log_std)}
    with torch.no_grad():
        return torch.func.functional_call(classifier, state, (x.expand(500, 16),)).std().item()


def test_a_log_std_that_comes_to_lie_where_another_was_is_not_taken_for_it():
    classifier = ab.BayesianClassifier(nn.Linear(16, 3)).eval().requires_grad_(False)
    widths = [statistics.mean(spread(classifier, log_std) for _ in range(20)) for log_std in (-9.0, 1.0)]
    assert widths[1] > 5 and widths[0] < widths[1] / 2   # the bulk of both is how far the three logits lie apart


@pytest.mark.parametrize("build", [ab.Classifier, lambda network: ab.BayesianClassifier(network, init_std=1e-7)])
def test_threads_that_share_a_classifier_get_its_answers_its_copies_and_its_weights(build):
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten(),
                            nn.Linear(128, 10))
    network.train()(3 * torch.rand(64, 1, 8, 8))
    classifier, x = build(network).eval(), torch.rand(64, 1, 8, 8)
    expected, before = network.eval()(x).softmax(-1).detach(), copy.deepcopy(classifier.state_dict())

    def answer(number):
        copied = [classifier.mean_network, classifier.draw, lambda: copy.deepcopy(classifier)][number % 3]
        return ab.predict(classifier, x, num_samples=3), copied(), dict(classifier.state_dict())

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(answer, range(60)))     # it has not been called before
    for answered, copied, state in found:
        torch.testing.assert_close(answered, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(ab.predict(copied.eval(), x, num_samples=1), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(state, dict(before), rtol=0, atol=0)


def test_a_std_that_another_thread_unfreezes_while_it_is_kept_can_still_be_copied(monkeypatch):
    classifier, x = ab.BayesianClassifier(nn.Linear(16, 3)).eval().requires_grad_(False), torch.rand(2, 16)
    log_std = classifier.log_std
    monkeypatch.setattr(log_std, "exp", lambda: torch.exp(log_std.requires_grad_()))     # as where its prediction ends now
    classifier(x)
    torch.testing.assert_close(copy.deepcopy(classifier).log_std, log_std)


def test_the_slope_of_an_estimated_kl_is_the_mean_of_all_processes(monkeypatch):
    classifier = ab.BayesianClassifier(nn.Linear(4, 3), prior="scale_mixture", prior_std=0.1)
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(distributed, "sum_", lambda tensor: tensor.fill_(8.0))
    assert (classifier.kl_by_log_std() == 2).all()
