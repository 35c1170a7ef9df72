"""Tests of attack losses: known answers, and that both averages are those of their equations."""
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import pyro_advbnn as ab
from pyro_advbnn.attacks.losses import (
    AVERAGES,
    LOSSES,
    Towards,
    check_loss,
    expected_loss,
    loss_and_gradient,
    loss_name,
    margin,
    outcomes_together,
)
from pyro_advbnn.attacks.modes import eval_mode, frozen
from pyro_advbnn.system.random_streams import separate_randomness


@pytest.fixture
def batch():
    return torch.rand(6, 1, 4, 4), torch.randint(5, (6,))


class Linear(nn.Module):
    def __init__(self, num_classes=5, scale=1.0):
        super().__init__()
        self.weight = scale * torch.randn(num_classes, 16)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


class RandomLinear(nn.Module):
    """Draws its weights anew in each call and remembers them."""

    def __init__(self, std=0.5):
        super().__init__()
        self.mean, self.std, self.drawn = torch.randn(5, 16), std, []

    def forward(self, x):
        self.drawn.append(self.mean + self.std * torch.randn(5, 16))
        return x.flatten(1) @ self.drawn[-1].T


def test_the_losses_are_those_of_their_equations_in_numpy():
    z, y = 3 * torch.randn(50, 7), torch.randint(7, (50,))
    rows, Z, Y = np.arange(50), z.double().numpy(), y.numpy()
    others = np.where(np.eye(7, dtype=bool)[Y], -np.inf, Z).max(1)
    ordered = np.sort(Z, 1)
    expected = {"ce": np.log(np.exp(Z).sum(1)) - Z[rows, Y], "margin": others - Z[rows, Y],
                "dlr": -(Z[rows, Y] - others) / (ordered[:, -1] - ordered[:, -3])}
    for name, function in LOSSES.items():
        np.testing.assert_allclose(function(z, y), expected[name], rtol=1e-4, atol=1e-5)


def test_margin_and_dlr_are_positive_just_where_another_class_wins():
    z, y = torch.randn(200, 4), torch.randint(4, (200,))
    wrong = z.argmax(1) != y
    assert 0 < wrong.sum() < 200
    for name in ("margin", "dlr"):
        assert torch.equal(LOSSES[name](z, y) > 0, wrong)


def test_dlr_towards_a_target_is_that_of_its_equation_and_above_0_just_where_the_target_wins():
    z, target = 3 * torch.randn(200, 7), torch.randint(7, (200,))
    rows, Z, T = np.arange(200), z.double().numpy(), target.numpy()
    others = np.where(np.eye(7, dtype=bool)[T], -np.inf, Z).max(1)
    first, _, third, fourth = np.sort(Z, 1)[:, :-5:-1].T
    losses = Towards("dlr")(z, target)
    np.testing.assert_allclose(losses, (Z[rows, T] - others) / (first - (third + fourth) / 2), rtol=1e-4, atol=1e-5)
    assert torch.equal(losses > 0, z.argmax(1) == target)
    with pytest.raises(ab.InputError, match="dlr needs at least 4 classes where there is a target, the classifier has 3"):
        Towards("dlr")(z[:, :3], target % 3)


def test_dlr_draws_a_target_of_the_third_rank_nearer():
    z = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]], requires_grad=True)
    gradient, = torch.autograd.grad(Towards("dlr")(z, torch.tensor([2])).sum(), z)
    assert gradient[0, 2] > 0.05 > -0.05 > gradient[0, 0]


def test_dlr_changes_with_neither_a_shift_nor_a_scale_of_the_logits():
    z, y = torch.randn(20, 6), torch.randint(6, (20,))
    torch.testing.assert_close(LOSSES["dlr"](1e4 * z + 3, y), LOSSES["dlr"](z, y), rtol=1e-3, atol=1e-3)


def test_dlr_of_equal_logits_is_a_number():
    assert LOSSES["dlr"](torch.ones(2, 4), torch.tensor([0, 1])).tolist() == [0, 0]


def test_the_gradient_of_the_margin_of_a_linear_network_is_a_difference_of_its_rows(batch):
    x, y = batch
    network = Linear()
    z = network(x)
    other = z.scatter(1, y[:, None], -math.inf).argmax(1)
    for average in AVERAGES:
        losses, gradient = loss_and_gradient(network, x, y, loss="margin", average=average)
        torch.testing.assert_close(losses, (z[range(6), other] - z[range(6), y]))
        torch.testing.assert_close(gradient.flatten(1), network.weight[other] - network.weight[y])


def test_the_gradient_of_the_cross_entropy_of_a_linear_network_is_the_known_one(batch):
    x, y = batch
    network = Linear()
    expected = (network(x).softmax(1) - F.one_hot(y, 5)) @ network.weight
    for average in AVERAGES:
        _, gradient = loss_and_gradient(network, x, y, attack_samples=3, average=average)
        torch.testing.assert_close(gradient.flatten(1), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_average_is_the_mean_of_the_losses_of_fresh_draws(batch, loss):
    x, y = batch
    network = RandomLinear()
    losses, gradient = loss_and_gradient(network, x, y, loss=loss, attack_samples=4)
    assert len(network.drawn) == 4
    leaf = x.clone().requires_grad_()
    expected = torch.stack([LOSSES[loss](leaf.flatten(1) @ w.T, y) for w in network.drawn]).mean(0)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), leaf)[0])


@pytest.mark.parametrize("attack_samples", [1, 4])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_probability_average_is_the_loss_of_the_mean_softmax_of_the_draws(batch, loss, attack_samples):
    x, y = batch
    network = RandomLinear()
    losses, gradient = loss_and_gradient(network, x, y, loss=loss, attack_samples=attack_samples, average="probability")
    drawn = network.drawn[:attack_samples]               # what follows are the same again, on the way back
    leaf = x.clone().requires_grad_()
    answer = torch.stack([(leaf.flatten(1) @ w.T).softmax(1) for w in drawn]).mean(0).log()
    expected = LOSSES[loss](answer, y)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), leaf)[0])


@pytest.mark.parametrize("average", AVERAGES)
def test_the_losses_alone_are_those_beside_the_gradient_and_the_random_state_moves_on_alike(batch, average):
    classifier = ab.BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), init_std=0.5)
    with eval_mode(classifier), frozen(classifier):
        with separate_randomness(1):
            alone = expected_loss(classifier, *batch, loss="margin", attack_samples=3, average=average)
            after = torch.rand(3)
        with separate_randomness(1):
            beside, _ = loss_and_gradient(classifier, *batch, loss="margin", attack_samples=3, average=average)
            assert torch.equal(after, torch.rand(3))
    torch.testing.assert_close(alone, beside)
    assert not alone.requires_grad and not beside.requires_grad


def test_the_probability_average_of_a_bayesian_network_keeps_its_draws_on_the_way_back(batch):
    """Its draws lie in memory that is used again, its BatchNorms are folded: the second call must make the same of both."""
    x, y = torch.rand(6, 1, 8, 8), batch[1]
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.3)
    with eval_mode(classifier), frozen(classifier):
        with separate_randomness(1):
            _, gradient = loss_and_gradient(classifier, x, y, attack_samples=3, average="probability")
        leaf = x.clone().requires_grad_()
        with separate_randomness(1):
            answer = torch.stack([classifier(leaf).softmax(1) for _ in range(3)]).mean(0).log()
    torch.testing.assert_close(gradient, torch.autograd.grad(F.nll_loss(answer, y, reduction="sum"), leaf)[0])


class Holding(nn.Module):
    """Notes the activation that each call's way back needs."""

    def __init__(self):
        super().__init__()
        self.activations = []

    def forward(self, x):
        hidden = (x.flatten(1) * torch.randn(16)).exp()
        self.activations.append(StorageWeakRef(hidden.untyped_storage()))
        return hidden[:, :5]

    def num_held(self):
        return sum(not activation.expired() for activation in self.activations)


def test_the_probability_average_holds_no_draws_activations(batch):
    network, held = Holding(), []

    def noting(logits, y):
        held.append(network.num_held())
        return margin(logits, y)

    for attack_samples in (1, 8):
        network.activations.clear()
        loss_and_gradient(network, *batch, loss=noting, attack_samples=attack_samples, average="probability")
    assert held == [1, 0]


@pytest.mark.parametrize("average", AVERAGES)
def test_consecutive_calls_draw_fresh_weights(batch, average):
    network = RandomLinear()
    for function in (loss_and_gradient, expected_loss):
        network.drawn.clear()
        for _ in range(2):
            function(network, *batch, attack_samples=2, average=average)
        assert len({w.sum().item() for w in network.drawn}) == 4


def test_the_averaged_gradient_of_a_random_linear_network_is_that_of_its_mean():
    """With two classes the margin is linear in the weights: E[gradient] = E[w_1] - E[w_0]."""
    mean = torch.randn(2, 16)

    class TwoClasses(nn.Module):
        def forward(self, x):
            return x.flatten(1) @ (mean + 0.5 * torch.randn(2, 16)).T

    _, gradient = loss_and_gradient(TwoClasses(), torch.rand(1, 1, 4, 4), torch.tensor([0]), loss="margin",
                                    attack_samples=2000)
    error = 0.5 * math.sqrt(2 / 2000)                    # of a difference of two means over the draws
    assert ((gradient.flatten() - (mean[1] - mean[0])).abs() < 4.5 * error).all()


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_a_huge_scale_of_the_logits_stops_neither_margin_nor_dlr(batch, loss, average):
    network, x = Linear(scale=1e4), batch[0]
    losses, gradient = loss_and_gradient(network, x, network(x).argmax(1), loss=loss, attack_samples=2, average=average)
    assert losses.isfinite().all() and gradient.isfinite().all()
    assert (losses < 0).all() and (gradient != 0).all()


def test_a_huge_scale_of_the_logits_leaves_the_averaged_probability_a_number(batch):
    """The softmax of a wrong class is 0 in float32, its log is not taken of that."""
    network, x = Linear(scale=1e4), batch[0]
    losses, gradient = loss_and_gradient(network, x, network(x).argmin(1), attack_samples=2, average="probability")
    assert losses.isfinite().all() and (losses > 1e3).all()
    assert gradient.isfinite().all() and (gradient != 0).all()


def test_logits_of_half_precision_are_brought_to_float32(batch):
    seen = []

    class Half(Linear):
        def forward(self, x):
            return super().forward(x).bfloat16()

    def noting(logits, y):
        seen.append(logits.dtype)
        return margin(logits, y)

    for average in AVERAGES:
        for function in (loss_and_gradient, expected_loss):
            function(Half(), *batch, loss=noting, average=average)
    assert seen == 4 * [torch.float32]


@pytest.mark.parametrize("average", AVERAGES)
def test_a_network_that_works_in_place_on_its_input_leaves_the_images_alone(batch, average):
    x, y = batch[0] - 0.5, batch[1]
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 5))
    before = x.clone()
    loss_and_gradient(network, x, y, attack_samples=2, average=average)
    losses = expected_loss(network, x, y, attack_samples=2, average=average)
    assert torch.equal(x, before)
    assert not losses.requires_grad                      # though that of the network's weights was there to take


@pytest.mark.parametrize(("wrong", "message"), [
    ({"loss": "hinge"}, "loss must be one of ce, margin, dlr or a function, got 'hinge'"),
    ({"average": "logit"}, "average must be one of gradient, probability, got 'logit'"),
    ({"attack_samples": 0}, "attack_samples must be at least 1, got 0"),
])
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ab.InputError, match=message):
        check_loss(**({"loss": "ce", "attack_samples": 1, "average": "gradient"} | wrong))


def test_dlr_of_two_classes_is_refused(batch):
    with pytest.raises(ab.InputError, match="dlr needs at least 3 classes, the classifier has 2"):
        expected_loss(Linear(2), batch[0], batch[1] % 2, loss="dlr")


@dataclass
class Doubled:
    loss: str

    def __call__(self, logits, y):
        return 2 * LOSSES[self.loss](logits, y)


def test_a_loss_need_not_be_hashable(batch):
    network = Linear(5)
    torch.testing.assert_close(expected_loss(network, *batch, loss=Doubled("ce")), 2 * expected_loss(network, *batch))


def test_a_loss_is_called_by_its_name():
    assert (loss_name("dlr"), loss_name(margin)) == ("dlr", "margin")


NOISY = {"weights": lambda: ab.BayesianClassifier(ab.networks.convnet(width=2), init_std=0.3),
         "noise": lambda: ab.build_classifier("rse", ab.networks.convnet(width=2)),
         "a mixture": lambda: ab.Mixture([NOISY["weights"](), NOISY["noise"]()])}


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("make", NOISY.values(), ids=NOISY)
def test_two_versions_of_an_image_are_compared_under_the_same_draws_and_the_stream_moves_on_once(make, average):
    classifier, x, y = make().eval(), torch.rand(6, 1, 8, 8), torch.randint(10, (6,))
    averaging = {"attack_samples": 3, "average": average}
    with frozen(classifier), separate_randomness(1):
        (losses, succeeded), (same, too) = outcomes_together(classifier, x, x.clone(), y, **averaging)
        after = torch.rand(1)
    assert torch.equal(losses, same) and torch.equal(succeeded, too)
    with frozen(classifier), separate_randomness(1):
        alone = expected_loss(classifier, x, y, **averaging)
        assert torch.equal(after, torch.rand(1))
        torch.testing.assert_close(alone, losses)
        assert not torch.equal(expected_loss(classifier, x, y, **averaging), alone)


class Uncoupled(nn.Module):
    """What stands between its answer and its images lets no gradient through."""

    def __init__(self, hide):
        super().__init__()
        self.linear, self.hide = nn.Linear(16, 5), hide

    def forward(self, x):
        return self.linear(self.hide(x).flatten(1))


@pytest.mark.parametrize("hide", [torch.no_grad()(lambda x: x - 0.5), torch.Tensor.detach, lambda x: (255 * x).long().float()])
@pytest.mark.parametrize("attack", [ab.PGD(0.1), ab.APGD(0.1), ab.PGD(0.1, average="probability", attack_samples=2)])
def test_an_answer_without_gradient_is_refused_in_a_line_and_attacked_by_square(batch, hide, attack):
    network = Uncoupled(hide)
    for attacked in (network, nn.Sequential(network, nn.Linear(5, 5).requires_grad_(False))):
        with pytest.raises(ab.InputError, match="answer has no gradient by its images: no_grad, detach or whole numbers"):
            ab.robust_accuracy(attacked, [batch], attack)
    assert ab.robust_accuracy(network, [batch], ab.Square(0.1, 3))["num_examples"] == 6
    with pytest.raises(ab.InputError, match="has no gradient by its images"):
        loss_and_gradient(network, *batch)               # whose weights have one
