import math

import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.attacks.losses import expected_loss
from pyro_advbnn.attacks.square import Square

ZEROS = torch.zeros(6, dtype=torch.long)


@pytest.fixture
def batch():
    x = torch.rand(6, 2, 8, 8)
    x[:, :, 0], x[:, :, 1] = 0, 1                        # pixels at both borders of [0, 1]
    return x, torch.randint(10, (6,))


class Bright(nn.Module):
    """Label 0 loses to label 1 by the sum of the image; what `noise` gives is added to the margin, anew in every call."""

    def __init__(self, noise=lambda n: 0.0):
        super().__init__()
        self.noise, self.seen = noise, []

    def forward(self, x):
        self.seen.append(x.clone())
        margin = x.flatten(1).sum(1) + self.noise(len(x))
        return torch.stack([torch.zeros_like(margin), margin], 1)


def linear(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(128, num_classes))


def test_feature_vectors_have_no_squares():
    with pytest.raises(ab.InputError, match=r"squares of images \(B, C, H, W\), got a tensor \(5, 4\)"):
        Square(0.1)(nn.Linear(4, 3), torch.rand(5, 4), torch.zeros(5, dtype=torch.long))


def margins(network, x, y):
    return expected_loss(network, x, y, loss="margin")


def test_every_iterate_stays_in_the_ball_and_in_the_unit_range(batch):
    x, y = batch
    network = ab.BayesianClassifier(ab.networks.convnet(width=4, in_channels=2), init_std=0.2)
    iterates = list(Square(0.1, 30).iterates(network, x, y))
    assert len(iterates) == 31 and torch.equal(iterates[0], x)
    for x_adv in iterates:
        assert (x_adv - x).abs().max() <= 0.1 + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
    assert not torch.equal(iterates[-1], x)


def test_the_loss_of_a_deterministic_network_never_falls(batch):
    x, y = batch
    network = linear()
    for loss in ("margin", "ce"):
        iterates = Square(0.1, 60, loss=loss).iterates(network, x, y)
        losses = torch.stack([expected_loss(network, z, y, loss=loss) for z in iterates])
        assert (losses.diff(dim=0) >= -1e-5).all() and (losses[-1] > losses[0] + 0.05).all()


def test_many_queries_come_close_to_the_optimum_of_a_linear_network(batch):
    """The largest margin of two classes over the l_inf ball is known: every pixel at the border that its weight names."""
    x, y = batch[0], ZEROS
    network = linear(2)
    difference = (network[1].weight[1] - network[1].weight[0]).detach().view(1, 2, 8, 8)
    optimum = margins(network, (x + 0.1 * difference.sign()).clamp(0, 1), y)
    start, found = margins(network, x, y), margins(network, Square(0.1, 3000)(network, x, y), y)
    assert ((found - start) > 0.9 * (optimum - start)).all() and (found <= optimum + 1e-5).all()


def test_the_first_proposal_is_vertical_stripes_at_the_border_of_the_ball(batch):
    x = torch.full((6, 2, 8, 8), 0.5)
    network = Bright()
    list(Square(0.1, 1).iterates(network, x, ZEROS))
    change = network.seen[1] - x
    assert torch.allclose(change.abs(), torch.tensor(0.1)) and torch.equal(change, change[:, :, :1].expand(-1, -1, 8, -1))
    assert len({tuple(signs.flatten().tolist()) for signs in change[:, :, 0].sign()}) == 6
    assert (change[:, 0] != change[:, 1]).any()          # each channel has stripes of its own
    assert 0.3 < (change > 0).float().mean() < 0.7


def test_every_further_proposal_sets_one_square_per_image_to_the_border(batch):
    x = torch.full((6, 2, 8, 8), 0.5)
    attack, network = Square(0.1, 200), Bright()
    iterates, places = list(attack.iterates(network, x, ZEROS)), set()
    for query in (1, 3, 20, 199):
        change = network.seen[2 * query + 1] - iterates[query]
        proposed = network.seen[2 * query + 1] - x
        side = attack.side(query, 8, 8)
        for one, whole in zip(change, proposed, strict=True):
            rows, columns = (one != 0).any(0).any(1).nonzero(), (one != 0).any(0).any(0).nonzero()
            if len(rows):
                assert rows.max() - rows.min() < side and columns.max() - columns.min() < side
                places.add((int(rows.min()), int(columns.min())))
                inside = whole[:, rows.min():rows.max() + 1, columns.min():columns.max() + 1]
                assert torch.allclose(inside.abs(), torch.tensor(0.1))
    assert len(places) > 6


def test_a_square_reaches_every_place_of_an_image_that_is_not_square():
    attack, touched = Square(0.1, 400), torch.zeros(5, 9, dtype=torch.bool)
    x = torch.full((4, 1, 5, 9), 0.5)
    network = Bright()
    for query, iterate in enumerate(attack.iterates(network, x, torch.ones(4, dtype=torch.long))):    # nothing is accepted
        if query > 1:
            touched |= (network.seen[2 * query - 1] != iterate).any(0).any(0)
    assert touched.all()


@pytest.mark.parametrize(("num_queries", "query", "share"), [
    (10_000, 1, 0.8), (10_000, 10, 0.8), (10_000, 11, 0.4), (10_000, 51, 0.2), (10_000, 501, 0.05), (10_000, 9999, 0.8 / 512),
    (1000, 1, 0.8), (1000, 2, 0.4), (1000, 801, 0.8 / 512), (100_000, 100, 0.8), (100_000, 101, 0.4),
])
def test_the_squares_shrink_on_the_authors_schedule(num_queries, query, share):
    side = Square(0.1, num_queries).side(query, 200, 200)
    assert side == round(math.sqrt(share * 200 * 200))


def test_a_square_is_at_least_one_pixel_and_fits_into_the_image():
    assert Square(0.1, 1000).side(999, 8, 8) == 1
    assert Square(0.1, 1000, p_init=1.0).side(1, 4, 30) == 4


def test_both_losses_are_measured_anew_under_the_same_draws_for_every_proposal(batch):
    drawn = []

    def noise(n):
        drawn.append(torch.randn(n))
        return drawn[-1]

    network = Bright(noise)
    iterates = list(Square(0.1, 5, attack_samples=3).iterates(network, batch[0], ZEROS))
    assert len(network.seen) == 30
    for query in range(5):
        first, last = slice(6 * query, 6 * query + 3), slice(6 * query + 3, 6 * query + 6)
        assert all(torch.equal(seen, iterates[query]) for seen in network.seen[first])
        assert not any(torch.equal(seen, iterates[query]) for seen in network.seen[last])
        assert torch.equal(torch.stack(drawn[first]), torch.stack(drawn[last]))
    assert len({noise.sum().item() for noise in drawn}) == 15


def test_a_lucky_value_does_not_stick(batch):
    """The noise of a call, common to both points, drowns every honest step; a kept lucky loss would end the search."""
    x = batch[0]
    x_adv = Square(0.1, 400)(Bright(lambda n: 1000 * torch.randn(())), x, ZEROS)
    gained = (x + 0.1).clamp(0, 1).sum((1, 2, 3)) - x.sum((1, 2, 3))
    assert ((x_adv - x).sum((1, 2, 3)) > 0.8 * gained).all()


def test_the_averaged_loss_decides_where_single_draws_mislead(batch):
    """What a draw takes for brightness is mostly chance: many draws find what one does not."""
    class Chance(Bright):
        def forward(self, x):
            return super().forward(x * (1 + 5 * torch.randn(x[:1].shape)))

    x, y = batch[0], ZEROS
    one, many = (Square(0.1, 100, attack_samples=m, average="gradient")(Chance(), x, y) for m in (1, 200))
    assert (many - x).sum() > 1.5 * (one - x).sum() and ((many - x).sum((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("attack", [Square(0.0, 5), Square(0.1, 0)])
def test_nothing_changes_without_a_ball_or_without_queries(attack, batch):
    network = Bright()
    x_adv = attack(network, batch[0], ZEROS)
    assert torch.equal(x_adv, batch[0]) and x_adv is not batch[0] and not network.seen


def test_it_breaks_a_network_whose_gradient_is_zero(batch):
    """Rounded images give no gradient, so that PGD stands still."""

    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = linear()

        def forward(self, x):
            return self.network((20 * x).round() / 20)

    network = Rounded()
    x, y = batch[0], network(batch[0]).argmax(1)
    assert torch.equal(ab.PGD(0.3, num_steps=10)(network, x, y), x)
    assert (network(Square(0.3, 300)(network, x, y)).argmax(1) != y).all()


@pytest.mark.parametrize("loss", ["ce", "dlr", lambda logits, y: logits[:, 3]])
def test_any_loss_can_be_raised(batch, loss):
    x, y = batch
    network = linear()
    before, after = (expected_loss(network, images, y, loss=loss, average="probability")
                     for images in (x, Square(0.2, 200, loss=loss)(network, x, y)))
    assert (after > before + 0.01).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_breaks_a_bayesian_classifier_on_a_gpu(batch):
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4, in_channels=2), init_std=1e-3).cuda()
    x = batch[0].cuda()
    y = ab.predict(classifier, x).argmax(1)
    attack = Square(0.3, 200, attack_samples=2, generator=torch.Generator("cuda").manual_seed(0))
    x_adv = attack(classifier, x, y)
    assert (x_adv - x).abs().max() <= 0.3 + 1e-6 and 0 <= x_adv.min() and x_adv.max() <= 1 and x_adv.is_cuda
    before, after = (ab.predict(classifier, images).gather(1, y[:, None]) for images in (x, x_adv))
    assert (after < before).all()


@pytest.mark.slow
def test_it_is_at_least_as_strong_as_autoattacks_square(trained_on_digits):
    """Theirs never reaches the last row and column, which costs it a few points on images as small as these."""
    pyautoattack = pytest.importorskip("pyautoattack.square")
    network, x, y = trained_on_digits(200)
    x, y = x[:300], y[:300]
    theirs = [pyautoattack.SquareAttack(network, norm="Linf", eps=0.1, n_queries=200, seed=seed, device="cpu").perturb(x, y)
              for seed in (0, 1)]
    ours = Square(0.1, 200)(network, x, y)
    right = [(network(images).argmax(1) == y).float().mean().item() for images in (x, *theirs, ours)]
    assert right[0] > 0.95 and 0.2 < right[3] < 0.8
    assert right[3] <= sum(right[1:3]) / 2 + 0.015
