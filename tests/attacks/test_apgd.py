"""Tests of Auto-PGD: its schedule, known answers, random classifiers, and the same strength as another implementation."""
import itertools

import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.attacks.apgd import APGD, _Steps, checkpoints
from pyro_advbnn.attacks.balls import BALLS
from pyro_advbnn.attacks.losses import AVERAGES, expected_loss, loss_and_gradient, targeted_dlr
from pyro_advbnn.attacks.modes import frozen
from pyro_advbnn.attacks.noise import RandomNoise


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))


class Counting(nn.Module):
    """Counts the images of its calls, those with and those without a gradient."""

    def __init__(self, network):
        super().__init__()
        self.network, self.with_gradient, self.without = network, 0, 0

    def forward(self, x):
        if x.requires_grad:
            self.with_gradient += len(x)
        else:
            self.without += len(x)
        return self.network(x)


@pytest.fixture(scope="module")
def trained():
    """(a small network that knows the digits, test images, labels)."""
    torch.manual_seed(0)
    train, test = (ab.datasets.load("digits", split) for split in ("train", "test"))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    x, y = train.images.float() / 255, train.labels
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.eval(), test.images.float() / 255, test.labels


def accuracy(network, x, y):
    return (network(x).argmax(1) == y).float().mean().item()


def test_the_checkpoints_are_those_of_the_paper():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(20) == [5, 9, 12, 14, 16, 18, 19, 20]
    assert checkpoints(1) == [1]


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("defense", ["adv", "advbnn", "rse"])
def test_the_images_stay_in_the_ball_and_the_classifier_as_it_was(batch, defense, norm):
    x, y = batch
    classifier = ab.build_classifier(defense, ab.networks.convnet(width=4), init_std=0.1).train()
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    for loss in ("ce", "margin", "dlr"):
        x_adv = APGD(0.1, num_steps=9, loss=loss, norm=norm, attack_samples=2)(classifier, x, y)
        assert (BALLS[norm].size(x_adv - x) <= 0.1 * (1 + 1e-5)).all() and not torch.equal(x_adv, x)
        assert x_adv.min() >= 0 and x_adv.max() <= 1 and not x_adv.requires_grad
    assert all(torch.equal(value, state[name]) for name, value in classifier.state_dict().items())
    assert classifier.training and all(p.requires_grad and p.grad is None for p in classifier.parameters())


@pytest.mark.parametrize("norm", BALLS)
def test_the_worst_point_of_a_linear_network_of_two_classes_is_found(norm):
    x, y = torch.full((5, 1, 8, 8), 0.5), torch.tensor([0, 1, 0, 1, 0])
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))
    x_adv = APGD(0.2, num_steps=30, loss="margin", norm=norm)(network, x, y)
    slope = (network[1].weight[1 - y] - network[1].weight[y]).detach().view(x.shape)
    torch.testing.assert_close(x_adv, x + 0.2 * BALLS[norm].ascent(slope), rtol=0, atol=1e-4)


class Turncoat(nn.Module):
    """Its answers are wrong just where the pixels are near 0.5, and there their losses are smaller than anywhere else."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        near = (mean - 0.5).abs() < 0.1
        true = torch.where(near, 0.0, 0.1) + 0 * mean
        other = torch.where(near, 0.1, 0.0) + 0 * mean
        return torch.stack([true, other, *12 * [torch.where(near, -5.0, 0.0) + mean - 1]], 1)


def test_a_point_where_the_answer_is_wrong_is_kept_however_large_the_loss_of_right_ones():
    x, y = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.long)
    network = Turncoat()
    x_adv = APGD(0.4, num_steps=20)(network, x, y)
    assert expected_loss(network, x + 0.4, y).mean() > expected_loss(network, x_adv, y).mean() + 1
    assert accuracy(network, x_adv, y) == 0 and accuracy(network, x + 0.4, y) == 1


class Valley(nn.Module):
    """The margin is largest at `summit`, from where it falls in some pixels a thousand times as steeply as in others."""

    def __init__(self, summit):
        super().__init__()
        self.summit, self.steepness = summit, torch.logspace(0, 3, summit.numel()).view(summit.shape)

    def forward(self, x):
        margin = -(self.steepness * (x - self.summit) ** 2).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(margin), margin], 1)


def test_the_steps_shrink_to_reach_what_steps_as_long_as_the_first_pass_by():
    x, y = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.long)
    summit = x[:1] + 0.1 * (torch.rand(1, 1, 4, 4) - 0.5)
    distances = [(attack(Valley(summit), x, y) - summit).abs().amax().item()
                 for attack in (ab.PGD(0.1, 0.2, 100, loss="margin"), APGD(0.1, 100, loss="margin"))]
    assert distances[1] < distances[0] / 10


@pytest.mark.parametrize("scale", [1, 1e4])
def test_a_huge_scale_of_the_logits_does_not_help_against_dlr(trained, scale):
    """The cross-entropy's gradient vanishes there."""
    network, x, y = trained

    class Scaled(nn.Module):
        def forward(self, x):
            return scale * network(x)

    x, y = x[:100], y[:100]
    assert accuracy(network, APGD(0.1, 20, loss="dlr")(Scaled(), x, y), y) < 0.5 < accuracy(network, x, y)


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_more_restarts_never_lower_the_loss(trained, loss):
    network, x, y = trained
    losses = []
    for restarts in (1, 3):
        torch.manual_seed(1)
        x_adv = APGD(0.1, 5, loss=loss, restarts=restarts)(network, x, y)
        losses.append(expected_loss(network, x_adv, y, loss=loss))
    assert (losses[1] >= losses[0]).all() and (losses[1] > losses[0]).any()


def test_more_restarts_never_put_an_answer_right(trained):
    network, x, y = trained
    right = []
    for restarts in (1, 3):
        torch.manual_seed(1)
        right.append(network(APGD(0.1, 5, restarts=restarts)(network, x, y)).argmax(1) == y)
    assert (right[1] <= right[0]).all() and right[1].sum() < right[0].sum()


def test_a_run_costs_what_it_says(batch):
    x, y = batch
    counting = Counting(linear())
    APGD(0.1, num_steps=7, attack_samples=3)(counting, x, y)
    assert (counting.with_gradient, counting.without) == (8 * 3 * 6, 2 * 6)   # two calls ask whether it is random
    counting = Counting(ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.1))
    APGD(0.1, num_steps=7, attack_samples=3)(counting, x, y)
    assert (counting.with_gradient, counting.without) == (8 * 3 * 6, (2 + 7 * 3 * 2) * 6)


class Lucky(nn.Module):
    """The brighter the image, the nearer its answer is to being wrong, which it is in the first call with a gradient alone."""

    def __init__(self, luck):
        super().__init__()
        self.calls, self.luck = 0, luck

    def forward(self, x):
        self.calls += x.requires_grad
        noise = self.luck if x.requires_grad and self.calls == 1 else 0.01 * torch.randn(())
        margin = 10 * x.flatten(1).mean(1) - 100 + noise
        return torch.stack([-margin, margin], 1)


def test_a_lucky_old_value_does_not_stick():
    """Seen once as good as nothing will ever be, the start is left all the same; without a new measurement it would stay."""
    x, y = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.long)
    x_adv = APGD(0.2, num_steps=10, loss="margin")(Lucky(1000.0), x, y)
    torch.testing.assert_close(x_adv, x + 0.2, rtol=0, atol=0.01)


def test_weights_are_drawn_anew_in_every_step(batch):
    class Noting(nn.Module):
        def __init__(self):
            super().__init__()
            self.drawn = []

        def forward(self, x):
            self.drawn.append(torch.randn(10, 64))
            return x.flatten(1) @ self.drawn[-1].T

    network = Noting()
    APGD(0.1, num_steps=5, attack_samples=2)(network, *batch)
    assert len(network.drawn) == 2 + 2 * 6 + 2 * 2 * 5
    assert len({w.sum().item() for w in network.drawn}) == 2 + 2 * 6 + 2 * 5         # the new point and the best share theirs


@pytest.mark.filterwarnings("ignore")                    # the other library's own
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("norm", BALLS)
def test_it_breaks_as_many_images_from_the_same_start_as_another_implementation(trained, loss, norm):
    base = pytest.importorskip("pyautoattack.autopgd_base")
    network, x, y = trained
    epsilon = {"linf": 0.1, "l2": 0.6}[norm]
    start = BALLS[norm](x, epsilon).random_point(torch.Generator().manual_seed(1))
    other = base.APGDAttack(network, n_iter=100, norm={"linf": "Linf", "l2": "L2"}[norm], eps=epsilon, loss=loss)
    other.init_hyperparam(x)
    _, right, losses, _ = other.attack_single_run(x, y, x_init=start)
    theirs = right.float().mean().item()
    ours = APGD(epsilon, loss=loss, norm=norm, generator=torch.Generator().manual_seed(1))(network, x, y)
    assert 0.05 < theirs < 0.5
    assert accuracy(network, ours, y) == pytest.approx(theirs, abs=1.5 / len(y))
    same = (expected_loss(network, ours, y, loss=loss) - losses).abs() < 1e-3
    assert same.float().mean() > 0.75


@pytest.mark.parametrize(("margins", "wrong"), [((0.1, -3), False), ((2, 2, -7), True)])    # the second's mean logit is right
@pytest.mark.parametrize("average", ["gradient", "probability"])
def test_an_answer_is_wrong_where_the_mean_probability_of_the_draws_is(margins, wrong, average):
    class InTurn(nn.Module):
        """By how much its draws are wrong, one after the other."""

        turn = itertools.cycle(margins)

        def forward(self, x):
            margin = next(self.turn) + 0 * x.flatten(1).mean(1)
            return torch.stack([torch.zeros_like(margin), margin], 1)

    x, y = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.long)
    points = APGD(0.1, attack_samples=len(margins), average=average)._at(InTurn(), x, y)
    assert points.succeeded.tolist() == [wrong, wrong]


def test_a_step_size_is_halved_after_too_few_rises_or_where_neither_it_nor_the_best_loss_has_changed():
    steps, seen = _Steps(3, 1.0, 20, torch.zeros(())), []
    for k in range(1, 13):                               # the second rises in 3 of the first 5, the third finds nothing better
        halved = steps.count(k, torch.tensor([True, k not in (4, 5), True]), torch.tensor([True, True, False]))
        seen += [] if halved is None else [(k, halved.tolist(), steps.sizes.tolist())]
    assert seen == [(5, [False, True, False], [1, 0.5, 1]), (9, [False, False, True], [1, 0.5, 0.5]),
                    (12, [False, False, False], [1, 0.5, 0.5])]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("average", AVERAGES)
def test_on_a_gpu_attacks_stay_in_the_ball_and_draw_their_starts_from_its_generator(batch, norm, average):
    x, y = (part.cuda() for part in batch)
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.1).cuda()
    generator = torch.Generator("cuda").manual_seed(1)
    settings = {"loss": "margin", "average": average, "attack_samples": 2, "norm": norm, "generator": generator}
    for attack in (APGD(0.1, 5, restarts=2, **settings), ab.PGD(0.1, num_steps=3, momentum=1.0, restarts=2, **settings),
                   RandomNoise(0.1, num_tries=2, **settings)):
        x_adv = attack(classifier, x, y)
        assert x_adv.device == x.device and (BALLS[norm].size(x_adv - x) <= 0.1 * (1 + 1e-5)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_probability_average_keeps_its_draws_on_the_way_back():
    x, y = torch.rand(6, 1, 8, 8, device="cuda"), torch.randint(10, (6,), device="cuda")
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.3).cuda()
    with ab.eval_mode(classifier), frozen(classifier):
        torch.manual_seed(1)
        _, gradient = loss_and_gradient(classifier, x, y, attack_samples=3, average="probability")
        leaf = x.clone().requires_grad_()
        torch.manual_seed(1)
        answer = torch.stack([classifier(leaf).softmax(1) for _ in range(3)]).mean(0).log()
    expected, = torch.autograd.grad(nn.functional.nll_loss(answer, y, reduction="sum"), leaf)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_just_enough_rises_and_one_better_point_since_the_last_checkpoint_leave_a_step_size_as_it_is():
    steps = _Steps(2, 1.0, 20, torch.zeros(()))
    for k in range(1, 10):                               # the first rises in 3 of the last 4, the second is better at 1 and 6
        halved = steps.count(k, torch.tensor([k != 7, True]), torch.tensor([True, k in (1, 6)]))
    assert halved.tolist() == [False, False] and steps.sizes.tolist() == [1, 1]


def test_an_attack_of_a_rank_raises_the_targeted_loss_of_that_wrong_class(trained):
    network, x, y = trained[0], trained[1][:40], trained[2][:40].clone()
    y[0] = network(x[:1]).argsort(descending=True)[0, 3]         # a label that ranks fourth
    order = [[label for label in row.argsort(descending=True).tolist() if label != truth]
             for row, truth in zip(network(x), y.tolist(), strict=True)]

    def generator():
        return torch.Generator().manual_seed(0)

    for rank in (1, 3, 9):
        target = torch.tensor([labels[rank - 1] for labels in order])
        attack = APGD(0.15, 5, lambda logits, y, t=target: targeted_dlr(logits, t, y), generator=generator())
        found = APGD(0.15, 5, "dlr", target_rank=rank, generator=generator())(network, x, y)
        assert torch.equal(found, attack(network, x, y))
        assert (network(found).argmax(1) == target).sum() > (network(x).argmax(1) == target).sum()


def test_the_targeted_loss_sets_the_target_against_the_true_class():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]])
    target, y = torch.tensor([2]), torch.tensor([1])
    torch.testing.assert_close(targeted_dlr(logits, target, y), torch.tensor([-1 / 2.5]))        # 1 - 2, and 3 - 1 / 2
    torch.testing.assert_close(targeted_dlr(logits, target), torch.tensor([-2 / 2.5]))


def test_the_nine_ranks_break_images_that_apgd_leaves(trained):
    network, x, y = trained[0], trained[1][:300], trained[2][:300]

    def broken(attack):
        return network(attack(network, x, y)).argmax(1) != y

    torch.manual_seed(0)
    alone = broken(APGD(0.08, 40)) | broken(APGD(0.08, 40, "dlr"))
    assert torch.stack([broken(APGD(0.08, 40, "dlr", target_rank=rank)) for rank in range(1, 10)]).any(0).sum() >= alone.sum()


@pytest.mark.parametrize(("rank", "message"), [(10, "less than the number of classes, 10, got 10"), (-1, "at least 0")])
def test_a_rank_that_there_is_not_is_refused(trained, rank, message):
    with pytest.raises(ab.InputError, match=f"target_rank must be {message}"):
        APGD(0.1, 2, "dlr", target_rank=rank)(trained[0], trained[1][:2], trained[2][:2])
    with pytest.raises(ab.InputError, match="finds its targets itself"):
        APGD(0.1, 2, "dlr", target_rank=1)(trained[0], trained[1][:2], trained[2][:2], target=trained[2][:2])
    with pytest.raises(ab.InputError, match="has the loss dlr"):
        APGD(0.1, 2, target_rank=1)
