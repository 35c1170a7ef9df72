import copy
import math

import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.attacks.carlini_wagner import CarliniWagner

QUICK = {"num_steps": 60, "binary_search_steps": 5, "num_samples": 1}


@pytest.fixture
def batch():
    x = 0.2 + 0.6 * torch.rand(8, 1, 8, 8)
    return x, Halfspace()(x).argmax(1)


class Halfspace(nn.Module):
    """Two classes, divided by a plane through the middle of the images; the share `flips` of all calls answers the opposite."""

    def __init__(self, flips=0.0):
        super().__init__()
        self.normal = nn.Parameter(torch.randn(64, generator=torch.Generator().manual_seed(7)))
        self.flips, self.calls = flips, 0

    def forward(self, x):
        self.calls += 1
        z = (x.flatten(1) - 0.5) @ self.normal
        z = -z if torch.rand(()) < self.flips else z
        return torch.stack([z, -z], 1)

    def distances(self, x):
        return ((x.flatten(1) - 0.5) @ self.normal).abs() / self.normal.norm()


def norms(x, x_adv):
    return (x_adv - x).flatten(1).norm(dim=1)


def test_the_change_is_as_small_as_the_distance_to_the_plane(batch):
    x, y = batch
    network = Halfspace()
    x_adv = CarliniWagner(math.inf, 150, 7, step_size=0.03, num_samples=1)(network, x, y)
    assert (network(x_adv).argmax(1) != y).all()
    torch.testing.assert_close(norms(x, x_adv), network.distances(x).detach(), rtol=0.05, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_of_half_precision_with_pixels_at_the_border_are_moved_as_far(batch, dtype):
    x = batch[0].to(dtype)
    x[:, :, 0] = 0
    network = Halfspace()
    attack = CarliniWagner(math.inf, 150, 7, step_size=0.03, num_samples=1)
    y = network(x.float()).argmax(1)
    of_half, of_float = (norms(images.float(), attack(each, images, y).float()) for each, images in (
        (copy.deepcopy(network).to(dtype), x), (network, x.float())))
    torch.testing.assert_close(of_half, of_float, rtol=0.1, atol=0.03)
    assert (of_half > 0).all()


def test_a_confidence_takes_the_image_past_the_plane(batch):
    x, y = batch
    network = Halfspace()
    x_adv = CarliniWagner(math.inf, 150, 9, step_size=0.03, confidence=1.0, num_samples=1)(network, x, y)
    logits = network(x_adv).detach()
    gap = logits.gather(1, 1 - y[:, None]) - logits.gather(1, y[:, None])
    assert (gap > 1.0).all() and (gap < 1.2).all()


def test_images_stay_in_the_unit_range_and_in_the_ball_or_come_back_clean(batch):
    x, y = batch
    network, distances = Halfspace(), Halfspace().distances(batch[0])
    epsilon = distances.median().item() + 0.02
    x_adv = CarliniWagner(epsilon, 100, 9, num_samples=1)(network, x, y)
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and norms(x, x_adv).max() <= epsilon
    far = distances > epsilon
    assert 0 < far.sum() < 8 and torch.equal(x_adv[far], x[far])
    near = distances < 0.9 * epsilon
    assert near.any() and (network(x_adv[near]).argmax(1) != y[near]).all()


def test_an_image_that_is_wrong_already_comes_back_clean(batch):
    x, y = batch
    y = torch.where(torch.arange(8) < 4, 1 - y, y)
    x_adv = CarliniWagner(math.inf, **QUICK)(Halfspace(), x, y)
    assert torch.equal(x_adv[:4], x[:4]) and (norms(x, x_adv)[4:] > 0).all()


def test_borders_of_the_range_are_no_obstacle():
    x, network = torch.cat([torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)]), Halfspace()
    y = network(x).argmax(1)
    x_adv = CarliniWagner(math.inf, 150, 4, step_size=0.1, initial_const=1.0, num_samples=1)(network, x, y)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert (network(x_adv).argmax(1) != y).all()


def test_objective_and_judge_both_ask_for_the_confidence(batch):
    x, y = batch[0][:1], torch.zeros(1, dtype=torch.long)
    logits = torch.tensor([[0.0, 0.5, -1.0]])            # broken, by a margin of 0.5
    for confidence, missing in ((0.4, 0.0), (0.8, -0.3)):
        attack = CarliniWagner(1.0, confidence=confidence, num_samples=2)
        torch.testing.assert_close(attack._shortfall(logits, y), torch.tensor([missing]))
        assert attack._breaks(lambda x: logits, x, y).item() is (missing == 0)


def test_the_constant_of_each_image_is_searched_up_tenfold_then_between_failure_and_success(batch, monkeypatch):
    seen, needed = [], torch.tensor([0.7] + 7 * [math.inf])
    monkeypatch.setattr(CarliniWagner, "_descend", lambda self, classifier, x, y, constants, best: (
        seen.append(constants), constants >= needed)[1])
    CarliniWagner(1.0, binary_search_steps=6, num_samples=1)(Halfspace(), *batch)
    assert [c[0].item() for c in seen] == pytest.approx([0.01, 0.1, 1.0, 0.55, 0.775, 0.6625])
    assert [c[1].item() for c in seen] == pytest.approx([0.01, 0.1, 1.0, 10.0, 100.0, 1000.0])


def test_a_random_classifier_is_judged_by_the_average_of_fresh_draws_not_by_lucky_ones(batch):
    """Every fourth draw is wrong on all images, yet their average changes its mind at the plane alone."""
    x, y = batch
    network, distances = Halfspace(flips=0.25), Halfspace().distances(x).detach()
    averaged, lucky = (CarliniWagner(math.inf, 60, 6, step_size=0.03, attack_samples=5, num_samples=n)(network, x, y)
                       for n in (60, 1))
    torch.testing.assert_close(norms(x, averaged), distances, rtol=0.1, atol=0.02)
    assert (Halfspace()(averaged).argmax(1) != y).all()
    assert (norms(x, lucky) < 0.5 * distances).all()


def test_the_averaged_prediction_of_a_bayesian_classifier_is_broken(trained_on_digits):
    network, x, y = trained_on_digits(150, bayesian=True)
    x, y = x[:10], y[:10]
    x_adv = CarliniWagner(math.inf, 40, 4, attack_samples=2, confidence=0.5, step_size=0.1,
                          num_samples=10)(network, x, y)
    with torch.no_grad():
        before, after = ((ab.predict(network, z, num_samples=100).argmax(1) == y).float().mean() for z in (x, x_adv))
    assert before > 0.9 and after < 0.15


def test_fresh_draws_judge_only_steps_that_promise_a_smaller_change(batch):
    network = Halfspace()
    CarliniWagner(math.inf, 10, 1, initial_const=1e-9, num_samples=7)(network, *batch)
    assert network.calls == 7 + 11                       # the clean images, then one per step and at the end: all hold


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_change_is_as_small_as_the_distance_to_the_plane_on_a_gpu(batch):
    x, y, network = batch[0].cuda(), batch[1].cuda(), Halfspace().cuda()
    x_adv = CarliniWagner(math.inf, 150, 7, step_size=0.03, num_samples=1)(network, x, y)
    assert (network(x_adv).argmax(1) != y).all()
    torch.testing.assert_close(norms(x, x_adv), network.distances(x).detach(), rtol=0.05, atol=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")                   # the other library's
def test_the_changes_are_as_small_as_foolboxs(trained_on_digits):
    foolbox = pytest.importorskip("foolbox")
    network, x, y = trained_on_digits(200)
    x, y = x[:20], y[:20]
    settings = {"steps": 100, "binary_search_steps": 5, "stepsize": 0.03, "initial_const": 0.01}
    theirs = foolbox.attacks.L2CarliniWagnerAttack(**settings, abort_early=False)
    _, (x_theirs,), (broken,) = theirs(foolbox.PyTorchModel(network, (0, 1), device="cpu"), x, y, epsilons=[None])
    x_adv = CarliniWagner(math.inf, 100, 5, step_size=0.03, num_samples=1)(network, x, y)
    assert broken.all() and (network(x_adv).argmax(1) != y).all()
    assert norms(x, x_adv).mean() == pytest.approx(norms(x, x_theirs).mean().item(), rel=0.03)
    torch.testing.assert_close(norms(x, x_adv), norms(x, x_theirs), rtol=0.1, atol=0.02)


def test_a_search_that_breaks_an_image_has_found_it_also_where_an_earlier_one_came_closer():
    x = 0.2 + 0.6 * torch.rand(8, 1, 8, 8)
    network, best = Halfspace(), (x.clone(), torch.zeros(8))
    found = CarliniWagner(math.inf, **QUICK)._descend(network, x, network(x).argmax(1), torch.full((8,), 100.0), best)
    assert found.all() and torch.equal(best[0], x) and not best[1].any()
