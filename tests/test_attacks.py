import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.attacks import auto_step_size
from pyro_advbnn.posteriors import MeanFieldNormal

SETTINGS = {"epsilon": 0.1, "step_size": 0.03, "num_steps": 5}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def batch():
    x = torch.rand(6, 1, 8, 8)
    x[:, :, 0], x[:, :, 1] = 0, 1                        # pixels at both borders of [0, 1]
    return x, torch.randint(10, (6,))


@pytest.fixture(params=["deterministic", "bayesian", "noisy"])
def classifier(request):
    defense = {"deterministic": "adv", "bayesian": "advbnn", "noisy": "rse"}[request.param]
    return ab.build_classifier(defense, ab.networks.convnet(width=4), init_std=0.1)


class Linear(nn.Module):
    """A linear classifier whose gradient NumPy can compute: (p - onehot(y)) W."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 64))

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


def numpy_pgd(weight, x, y, epsilon, step_size, num_steps):
    """Eq. (2) in NumPy, float32 throughout."""
    epsilon, step_size = np.float32(epsilon), np.float32(step_size)
    x_adv = x.copy()
    for _ in range(num_steps):
        logits = x_adv @ weight.T
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        x_adv = x_adv + step_size * np.sign(p @ weight)
        x_adv = np.minimum(np.maximum(x_adv, x - epsilon), x + epsilon)
        x_adv = np.clip(x_adv, 0, 1)
    return x_adv


@pytest.mark.parametrize(("epsilon", "step_size"), [(0.1, 0.03), (8 / 256, 0.007), (0.3, 1.0)])
def test_pgd_equals_a_numpy_reference_bit_for_bit(batch, epsilon, step_size):
    x, y = batch
    network = Linear()
    got = ab.pgd(network, x, y, epsilon=epsilon, step_size=step_size, num_steps=10)
    expected = numpy_pgd(network.weight.detach().numpy(), x.flatten(1).numpy(), y.numpy(), epsilon, step_size, 10)
    assert np.array_equal(got.flatten(1).numpy(), expected)


def test_pgd_stays_in_the_ball_and_in_the_unit_range(classifier, batch):
    x, y = batch
    for random_start in (False, True):
        x_adv = ab.pgd(classifier, x, y, random_start=random_start, **SETTINGS)
        assert (x_adv - x).abs().max() <= 0.1 + 1e-6
        assert x_adv.min() >= 0 and x_adv.max() <= 1
        assert not torch.equal(x_adv, x)


def test_pgd_leaves_the_classifier_as_it_was(classifier, batch):
    classifier.train()
    classifier.network.features[1].eval()                # one module in another mode
    modes = [module.training for module in classifier.modules()]
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    x_adv = ab.pgd(classifier, *batch, **SETTINGS)
    assert all(torch.equal(value, state[name]) for name, value in classifier.state_dict().items())
    assert [module.training for module in classifier.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in classifier.parameters())
    assert not x_adv.requires_grad


def test_no_parameter_gradient_is_computed(classifier, batch):
    seen = []
    hook = classifier.network.features[0].register_forward_hook(
        lambda module, inputs, output: seen.extend(p.requires_grad for p in module.parameters()))
    ab.pgd(classifier, *batch, **SETTINGS)
    hook.remove()
    assert seen and not any(seen)


def test_pgd_restores_the_classifier_after_an_error(classifier, batch):
    x, y = batch
    classifier.train()
    with pytest.raises(IndexError):
        ab.pgd(classifier, x, y + 10, **SETTINGS)
    assert classifier.training and all(p.requires_grad for p in classifier.parameters())


def test_pgd_raises_the_loss(classifier, batch):
    x, y = batch
    x_adv = ab.pgd(classifier, x, y, attack_samples=20, **SETTINGS)
    losses = []
    for images in (x, x_adv):
        torch.manual_seed(1)                             # the same draws for both
        with ab.eval_mode(classifier):
            losses.append(sum(F.cross_entropy(classifier(images), y).item() for _ in range(50)))
    assert losses[1] > losses[0]


@pytest.mark.parametrize("num_steps", [0, 3])
def test_epsilon_zero_returns_the_images_unchanged(classifier, batch, num_steps):
    x, y = batch
    x_adv = ab.pgd(classifier, x, y, epsilon=0, step_size=0.1, num_steps=num_steps, random_start=True)
    assert torch.equal(x_adv, x) and x_adv is not x


class Counting(nn.Module):
    """Draws one weight per call and remembers it."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def forward(self, x):
        self.weights.append(torch.randn(()))
        return torch.stack([x.flatten(1).sum(1) * self.weights[-1], torch.zeros(len(x))], 1)


def test_every_step_averages_over_fresh_draws(batch):
    network = Counting()
    x = batch[0]
    ab.pgd(network, x, torch.zeros(6, dtype=torch.long), epsilon=0.1, step_size=0.1, num_steps=4, attack_samples=3)
    assert len(network.weights) == 12 and len({w.item() for w in network.weights}) == 12


def test_the_gradient_is_the_mean_over_the_draws(batch):
    """With draws of both signs a step goes where the mean goes, not where the last draw goes."""
    x, y = batch[0], torch.zeros(6, dtype=torch.long)
    network = Counting()
    x_adv = ab.pgd(network, x, y, epsilon=0.1, step_size=0.1, num_steps=1, attack_samples=9)
    slopes = torch.stack([w * (torch.sigmoid(w * x.flatten(1).sum(1)) - 1) for w in network.weights]).mean(0)
    expected = (x + 0.1 * slopes.sign()[:, None, None, None]).clamp(0, 1)
    torch.testing.assert_close(x_adv, expected)


def test_weights_of_a_bayesian_classifier_are_drawn_anew_in_every_step(batch, monkeypatch):
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.1)
    draws, rsample = [], MeanFieldNormal.rsample
    monkeypatch.setattr(MeanFieldNormal, "rsample", lambda self: (w := rsample(self), draws.append(w.clone()))[0])
    ab.pgd(classifier, *batch, **SETTINGS)
    assert len(draws) == 5
    assert all((one != other).float().mean() > 0.99 for one, other in zip(draws, draws[1:], strict=False))


def test_many_draws_per_gradient_break_what_one_draw_cannot(batch):
    """A network whose noise drowns the gradient: Zimmermann's point, in small."""

    class Drowned(nn.Module):
        def forward(self, x):
            signal, noise = x.flatten(1).sum(1), (x.flatten(1) * 30 * torch.randn(64)).sum(1)
            margin = signal + noise - noise.detach() - 30
            return torch.stack([margin, -margin], 1)

    x, y = torch.full((8, 1, 8, 8), 0.6), torch.zeros(8, dtype=torch.long)
    drop = [(x - ab.pgd(Drowned(), x, y, epsilon=0.2, step_size=0.2, num_steps=1, attack_samples=m)).mean()
            for m in (1, 500)]
    assert drop[0] < 0.08 and drop[1] > 0.09 and drop[1] > drop[0]


def test_random_start_uses_its_generator_alone(classifier, batch):
    starts = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(5)
        starts.append(ab.pgd(classifier, *batch, epsilon=0.1, step_size=0.1, num_steps=0, random_start=True,
                             generator=generator))
    assert torch.equal(*starts)
    assert (starts[0] - batch[0]).abs().max() > 0.09


def test_fgsm_is_one_step_of_length_epsilon(batch):
    x, y = batch
    network = Linear()
    expected = numpy_pgd(network.weight.detach().numpy(), x.flatten(1).numpy(), y.numpy(), 0.1, 0.1, 1)
    assert np.array_equal(ab.fgsm(network, x, y, epsilon=0.1).flatten(1).numpy(), expected)


def test_pgd_object_calls_pgd_and_chooses_its_step(batch):
    network = Linear()
    attack = ab.PGD(0.1, None, 20)
    assert attack.step_size == auto_step_size(0.1, 20) == pytest.approx(0.0125)
    assert torch.equal(attack(network, *batch), ab.pgd(network, *batch, epsilon=0.1, step_size=0.0125, num_steps=20))


@pytest.mark.parametrize(("attack", "reaches"), [
    (ab.PGD(0.2, 0.007, 20), False), (ab.PGD(0.14, 0.007, 20), True), (ab.PGD(0.07, 0.007, 10), True), (ab.PGD(0.0), True),
])
def test_an_attack_knows_whether_it_reaches_the_border(attack, reaches):
    assert attack.reaches_ball is reaches


@pytest.mark.parametrize("wrong", [
    {"epsilon": -0.1}, {"epsilon": math.nan}, {"step_size": math.inf}, {"step_size": -1}, {"num_steps": -1},
    {"attack_samples": 0},
])
def test_settings_out_of_range_are_refused(batch, wrong):
    name, = wrong
    with pytest.raises(ab.InputError, match=name):
        ab.pgd(Linear(), *batch, **(SETTINGS | wrong))
    with pytest.raises(ab.InputError, match=name):
        ab.PGD(**(SETTINGS | wrong))


def test_predictions_average_probabilities_over_draws(batch):
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.3).train()
    torch.manual_seed(2)
    got = ab.predict(classifier, batch[0], num_samples=5)
    classifier.eval()
    torch.manual_seed(2)
    expected = sum(classifier(batch[0]).softmax(-1) for _ in range(5)) / 5
    torch.testing.assert_close(got, expected.detach())
    classifier.train()
    assert torch.equal(ab.predict(classifier, batch[0], num_samples=1).sum(1).round(decimals=4), torch.ones(6))
    assert classifier.training and not got.requires_grad
    with pytest.raises(ab.InputError, match="num_samples"):
        ab.predict(classifier, batch[0], num_samples=0)


def test_robust_accuracy_attacks_the_source_and_judges_the_target(batch):
    x, y = batch
    source, target = Linear(), Linear()
    attack = ab.PGD(0.1, 0.03, 5)
    attacked = []
    ab.robust_accuracy(target, [(x, y)], lambda c, x, y: (attacked.append(c), x)[1], source=source)
    ab.robust_accuracy(target, [(x, y)], lambda c, x, y: (attacked.append(c), x)[1])
    assert attacked == [source, target]
    row = ab.robust_accuracy(target, [(x, y)], attack, source=source, num_samples=1)
    expected = (target(attack(source, x, y)).argmax(-1) == y).float().mean().item()
    assert row["accuracy"] == pytest.approx(expected)
    assert (row["attack"], row["epsilon"], row["num_steps"], row["step_size"]) == ("pgd", 0.1, 5, 0.03)
    assert row["num_examples"] == 6 and row["reaches_ball"] is True
    clean = ab.robust_accuracy(target, [(x[:2], y[:2]), (x[2:], y[2:])], num_samples=1)
    assert clean["accuracy"] == pytest.approx((target(x).argmax(-1) == y).float().mean().item())
    with pytest.raises(ab.InputError, match="no images"):
        ab.robust_accuracy(target, [])


def test_a_network_that_works_in_place_on_its_input_can_be_attacked(batch):
    x, y = batch
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 10))
    plain = nn.Sequential(nn.ReLU(), *network[1:])
    assert torch.equal(ab.pgd(network, x, y, **SETTINGS), ab.pgd(plain, x, y, **SETTINGS))


@pytest.mark.parametrize("wrong", [lambda x: 255 * x, lambda x: x - 1, lambda x: x * math.nan])
def test_images_out_of_range_are_refused_in_evaluation(batch, wrong):
    x, y = batch
    with pytest.raises(ab.InputError, match=r"images must lie in \[0, 1\]"):
        ab.robust_accuracy(Linear(), [(wrong(x), y)])


def test_a_radius_beyond_the_range_of_images_is_refused():
    with pytest.raises(ab.InputError, match="epsilon"):
        ab.PGD(epsilon=8)
