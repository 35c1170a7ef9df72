
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.attacks.balls import BALLS
from pyro_advbnn.attacks.losses import LOSSES, expected_loss, keep_worse, loss_and_gradient
from pyro_advbnn.attacks.noise import RandomNoise
from pyro_advbnn.attacks.pgd import auto_step_size
from pyro_advbnn.bayes.guide import MeanFieldNormal

SETTINGS = {"epsilon": 0.1, "step_size": 0.03, "num_steps": 5}


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
    still = next(classifier.parameters()).requires_grad_(False)
    modes = [module.training for module in classifier.modules()]
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    x_adv = ab.pgd(classifier, *batch, **SETTINGS)
    assert all(torch.equal(value, state[name]) for name, value in classifier.state_dict().items())
    assert [module.training for module in classifier.modules()] == modes
    assert all(p.grad is None and p.requires_grad == (p is not still) for p in classifier.parameters())
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
    with pytest.raises(ab.InputError):
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
            signal, noise = x.flatten(1).sum(1), (x.flatten(1) * 10 * torch.randn(64)).sum(1)
            margin = signal + noise - noise.detach() - 30
            return torch.stack([margin, -margin], 1)

    x, y = torch.full((8, 1, 8, 8), 0.6), torch.zeros(8, dtype=torch.long)
    drop = [(x - ab.pgd(Drowned(), x, y, epsilon=0.2, step_size=0.2, num_steps=1, attack_samples=m)).mean()
            for m in (1, 500)]
    assert drop[0] < 0.12 and drop[1] > 0.17        # each by four standard errors


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


def test_a_network_that_works_in_place_on_its_input_can_be_attacked(batch):
    x, y = batch
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 10))
    plain = nn.Sequential(nn.ReLU(), *network[1:])
    assert torch.equal(ab.pgd(network, x, y, **SETTINGS), ab.pgd(plain, x, y, **SETTINGS))


def test_pgd_equals_that_of_another_library(batch):
    foolbox = pytest.importorskip("foolbox")
    x, y = batch
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).eval()
    model = foolbox.PyTorchModel(network, bounds=(0, 1))
    for norm, theirs in (("linf", foolbox.attacks.LinfPGD), ("l2", foolbox.attacks.L2PGD)):
        theirs = theirs(abs_stepsize=0.03, steps=8, random_start=False)
        _, expected, _ = theirs(model, x, y, epsilons=0.1)
        torch.testing.assert_close(ab.PGD(0.1, 0.03, 8, norm=norm)(network, x, y), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_pgd_climbs_the_loss_that_it_is_given(batch, loss):
    x, y = batch
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    losses = {name: expected_loss(network, ab.PGD(0.1, loss=name)(network, x, y), y, loss=loss).mean() for name in LOSSES}
    assert losses[loss] > losses["ce"] > expected_loss(network, x, y, loss=loss).mean()


def test_a_huge_scale_of_the_logits_stops_the_cross_entropy_but_not_the_margin(batch):
    x = batch[0]
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    network[1].weight.data *= 1e5
    y = network(x).argmax(1)
    unmoved = ab.PGD(0.1)(network, x, y)
    assert torch.equal(unmoved, x)
    for average in ("gradient", "probability"):
        moved = ab.PGD(0.3, loss="margin", average=average, attack_samples=2)(network, x, y)
        assert (expected_loss(network, moved, y, loss="margin") > expected_loss(network, x, y, loss="margin")).all()


def test_momentum_sums_normalised_gradients_as_in_numpy(batch):
    x, y = batch
    network = Linear()
    weight, X, Y = network.weight.detach().double().numpy(), x.flatten(1).double().numpy(), y.numpy()
    x_adv, velocity = X.copy(), 0
    for _ in range(6):
        logits = x_adv @ weight.T
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(6), Y] -= 1
        gradient = p @ weight
        velocity = 0.9 * velocity + gradient / np.abs(gradient).sum(1, keepdims=True)
        x_adv = np.clip(np.clip(x_adv + 0.04 * np.sign(velocity), X - 0.1, X + 0.1), 0, 1)
    got = ab.PGD(0.1, 0.04, 6, momentum=0.9)(network, x, y)
    np.testing.assert_allclose(got.flatten(1), x_adv, atol=1e-6)
    assert not torch.equal(got, ab.PGD(0.1, 0.04, 6)(network, x, y))


def test_steps_in_the_l2_ball_go_along_the_gradient_and_stay_in_it(classifier, batch):
    x, y = batch
    for random_start in (False, True):
        x_adv = ab.PGD(0.5, num_steps=6, norm="l2", random_start=random_start)(classifier, x, y)
        sizes = (x_adv - x).flatten(1).norm(dim=1)
        assert (sizes <= 0.5 * (1 + 1e-5)).all() and (sizes > 0.1).all()
        assert x_adv.min() >= 0 and x_adv.max() <= 1
    x = torch.full_like(x, 0.5)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))
    step = ab.PGD(0.5, 0.25, 1, norm="l2")(network, x, y % 2) - x
    rows = network[1].weight.detach()
    expected = F.normalize(rows[1 - y % 2] - rows[y % 2]) * 0.25
    torch.testing.assert_close(step.flatten(1), expected, rtol=1e-4, atol=1e-6)


def test_more_restarts_never_mend_an_image_nor_lower_its_loss(batch):
    x, y = batch
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    network[1].weight.data *= 20                         # many summits
    losses, wrong = [], []
    for restarts in (1, 4, 8):
        attack = ab.PGD(0.2, 0.05, 4, restarts=restarts, generator=torch.Generator().manual_seed(2))
        x_adv = attack(network, x, y)
        losses.append(expected_loss(network, x_adv, y))
        wrong.append(network(x_adv).argmax(1) != y)
    for fewer, more in ((0, 1), (1, 2)):
        assert (wrong[more] >= wrong[fewer]).all()
        assert ((losses[more] >= losses[fewer]) | (wrong[more] > wrong[fewer])).all()
    assert (losses[2] > losses[0]).any()


def test_restarts_begin_at_points_of_their_own_and_the_first_where_a_single_run_does(batch):
    x, y = batch
    starts = []

    class Noting(Linear):
        def forward(self, x):
            if x.requires_grad:
                starts.append(x.detach().clone())
            return super().forward(x)

    ab.PGD(0.2, 0.05, 1, restarts=3)(Noting(), x, y)
    assert torch.equal(starts[0], x)
    assert all((one - other).abs().max() > 0.1 for one, other in zip(starts, [*starts[1:], x], strict=True))


class LuckyOnce(nn.Module):
    """Pixels weigh little, the noise of a draw much: which of two images is worse shows under the same draw alone."""

    def forward(self, x):
        margin = x.flatten(1).mean(1) + 1000 * torch.randn(())
        return torch.stack([torch.zeros_like(margin), margin], 1)


def test_two_versions_of_an_image_are_measured_under_the_same_draws():
    low, high, y = torch.full((3, 1, 4, 4), 0.2), torch.full((3, 1, 4, 4), 0.9), torch.zeros(3, dtype=torch.long)
    low[1], high[1] = 0.9, 0.2
    worse = keep_worse(LuckyOnce(), low, high, y, loss="margin")
    assert torch.equal(worse, torch.maximum(low, high))


def test_a_wrong_answer_is_worse_than_a_right_one_of_a_larger_loss():
    class Two(nn.Module):                                # of dark images wrong with loss 1.05, of bright ones right with 1.20
        def forward(self, x):
            dark, bright = torch.tensor([0.35, 0.4, 0.15, 0.1]).log(), torch.tensor([0.3, 0.25, 0.25, 0.2]).log()
            return torch.where((x.flatten(1).mean(1) < 0.5)[:, None], dark, bright)

    dark, bright, y = torch.full((2, 1, 4, 4), 0.2), torch.full((2, 1, 4, 4), 0.9), torch.zeros(2, dtype=torch.long)
    assert torch.equal(keep_worse(Two(), dark, bright, y), dark)
    assert torch.equal(keep_worse(Two(), bright, dark, y), dark)


@pytest.mark.parametrize("norm", BALLS)
def test_random_noise_stays_in_the_ball_and_touches_no_classifier_for_one_try(batch, norm):
    x, y = batch
    x_adv = RandomNoise(0.2, norm).run(None, x, y)
    assert (BALLS[norm].size(x_adv - x) <= 0.2 * (1 + 1e-5)).all() and not torch.equal(x_adv, x)
    assert x_adv.min() >= 0 and x_adv.max() <= 1


def test_of_more_tries_of_random_noise_the_worst_is_kept_for_each_image(batch):
    x, y = batch
    network, losses = Linear(), []
    for num_tries in (1, 10):
        attack = RandomNoise(0.2, num_tries=num_tries, generator=torch.Generator().manual_seed(3))
        losses.append(expected_loss(network, attack(network, x, y), y))
    generator = torch.Generator().manual_seed(3)
    points = [BALLS["linf"](x, 0.2).random_border_point(generator) for _ in range(10)]
    best = torch.stack([expected_loss(network, point, y) for point in points]).amax(0)
    torch.testing.assert_close(losses[1], best)
    assert (losses[1] > losses[0]).any()


def test_an_attack_on_the_averaged_probability_breaks_a_random_network(batch):
    x, y = batch
    classifier = ab.BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), init_std=0.1)
    attack = ab.PGD(0.2, num_steps=5, loss="margin", average="probability", attack_samples=4)
    with ab.eval_mode(classifier):
        before, after = (expected_loss(classifier, images, y, loss="margin", attack_samples=100, average="probability")
                         for images in (x, attack(classifier, x, y)))
    assert (after > before).all()


def test_the_average_is_that_of_the_settings(batch):
    x, y = torch.full((20, 1, 8, 8), 0.5), torch.zeros(20, dtype=torch.long)
    classifier = ab.BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), init_std=1.0)
    moved = {}
    for average in ("gradient", "probability"):
        torch.manual_seed(1)
        moved[average] = ab.PGD(0.1, 0.1, 1, 4, average=average)(classifier, x, y) - x
        torch.manual_seed(1)
        with ab.eval_mode(classifier):
            _, gradient = loss_and_gradient(classifier, x, y, attack_samples=4, average=average)
        torch.testing.assert_close(moved[average], 0.1 * gradient.sign())
    assert not torch.equal(moved["gradient"], moved["probability"])


def test_restarts_are_compared_by_the_loss_average_and_draws_of_the_attack(batch, monkeypatch):
    asked = []
    monkeypatch.setattr("pyro_advbnn.attacks.pgd.keep_worse", lambda classifier, x_adv, other, y, **averaging: (
        asked.append(averaging) or other))
    ab.PGD(0.2, 0.05, 1, 3, loss="margin", average="probability", restarts=2)(ab.networks.convnet(width=4), *batch)
    assert asked == [{"loss": "margin", "attack_samples": 3, "average": "probability"}]
