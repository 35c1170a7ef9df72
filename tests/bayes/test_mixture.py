"""Tests of mixtures: calls visit the components in turn, averages are stratified, and a repeated call is the same call."""
import copy
from collections import Counter

import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.attacks.losses import AVERAGES, loss_and_gradient
from pyro_advbnn.attacks.modes import is_random
from pyro_advbnn.evaluation.checks import CHECKS


def component(defense, seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(108, 4))
    return ab.build_classifier(defense, network, init_std=0.05).eval()


@pytest.fixture
def mixture():
    """Of three networks that draw nothing."""
    return ab.Mixture(component("adv", seed) for seed in range(3)).eval()


@pytest.fixture
def batch():
    torch.manual_seed(5)
    return torch.rand(6, 1, 8, 8), torch.arange(6) % 4


def visited(mixture, x, count):
    answers = [classifier(x) for classifier in mixture.classifiers]
    return [next(i for i, answer in enumerate(answers) if torch.equal(answer, found))
            for found in (mixture(x) for _ in range(count))]


def test_calls_in_a_row_visit_each_component_once_in_random_order_that_begins_anew_with_eval(mixture, batch):
    orders, x = Counter(), batch[0]
    for _ in range(60):
        first, second = (tuple(visited(mixture, x, 3)) for _ in range(2))
        assert sorted(first) == sorted(second) == [0, 1, 2]
        orders += Counter([first, second])
        visited(mixture, x, 1)
        mixture.eval()
    assert len(orders) == 6 and max(orders.values()) < 40


def test_an_average_over_as_many_draws_as_components_weighs_them_alike(mixture, batch):
    expected = torch.stack([classifier(batch[0]).softmax(-1) for classifier in mixture.classifiers]).mean(0)
    mixture(batch[0])                                    # whatever was called before
    torch.testing.assert_close(ab.predict(mixture, batch[0], num_samples=6), expected)
    mixture(batch[0])
    torch.testing.assert_close(mixture.averaged(3)(batch[0]).exp(), expected)
    torch.testing.assert_close(mixture.mean_network()(batch[0]).exp(), expected)


def test_a_mixture_is_in_the_mode_of_its_components():
    for mode in (True, False):
        assert ab.Mixture(component("adv", seed).train(mode) for seed in range(2)).training == mode


def test_the_mean_network_averages_the_answers_at_the_posteriors_means(batch):
    components = [component("bnn", seed) for seed in range(2)]
    expected = torch.stack([each.mean_network().eval()(batch[0]).softmax(-1) for each in components]).mean(0)
    torch.testing.assert_close(ab.Mixture(components).mean_network()(batch[0]).exp(), expected)


@pytest.mark.parametrize("defenses", [("adv", "adv"), ("advbnn", "adv", "rse"), ("bnn", "advbnn")], ids="+".join)
def test_equal_seeds_give_equal_answers_and_attacks_whatever_was_called_before(defenses, batch):
    mixture, found = ab.Mixture(component(*each) for each in zip(defenses, range(9))), []
    for calls in (0, 1):
        for _ in range(calls):
            mixture(batch[0])
        torch.manual_seed(3)
        x_adv = ab.PGD(0.1, 0.05, 3, attack_samples=3)(mixture, *batch)
        found.append((x_adv, ab.predict(mixture, x_adv, num_samples=3)))
    assert all(map(torch.equal, *found))
    assert not torch.equal(found[0][0], batch[0]) and is_random(mixture, batch[0])


@pytest.mark.parametrize("average", AVERAGES)
def test_a_gradient_over_as_many_draws_as_components_is_that_of_all_of_them(mixture, batch, average):
    x, y = batch
    inputs = x.clone().requires_grad_()
    logits = torch.stack([classifier(inputs) for classifier in mixture.classifiers])
    together = [logits.softmax(-1).mean(0).log()] if average == "probability" else logits
    loss = torch.stack([nn.functional.cross_entropy(each, y, reduction="sum") for each in together]).mean()
    expected, = torch.autograd.grad(loss, inputs)
    mixture.requires_grad_(False)
    found = loss_and_gradient(mixture, x, y, attack_samples=3, average=average)[1]
    torch.testing.assert_close(found, expected)


def test_draws_in_a_row_are_of_each_component_once_and_fixed(batch):
    mixture, x = ab.Mixture([component("adv", 0), component("advbnn", 1)]).eval(), batch[0]
    of_network = [torch.equal(draw(x), mixture.classifiers[0](x)) for draw in (mixture.draw().eval() for _ in range(2))]
    assert sorted(of_network) == [False, True]
    draw = mixture.draw().eval()
    assert torch.equal(draw(x), draw(x)) and not isinstance(draw, ab.Classifier)


def test_a_copy_is_a_mixture_of_its_own(mixture, batch):
    other = copy.deepcopy(mixture)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert mixture(batch[0]).abs().max() > 0 == other(batch[0]).abs().max()


def test_a_mixture_is_evaluated_and_examined_as_any_random_classifier(mixture, batch):
    x = batch[0]
    batches = [(x, mixture.mean_network()(x).argmax(-1))]
    assert ab.robust_accuracy(mixture, batches, num_samples=3)["accuracy"] == 1
    assert ab.robust_accuracy(mixture, batches, ab.PGD(0.5, None, 20, 3), num_samples=3)["accuracy"] < 1
    exam = ab.Examination(mixture, batches, epsilon=0.1, num_steps=2, attack_samples=3, num_samples=3, num_queries=5)
    assert exam.is_random
    assert "a fixed draw" in CHECKS["fixed draw"](exam).measured and "transferred" in CHECKS["beats transfer"](exam).measured


def test_what_is_no_mixture_is_refused(batch):
    network, classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), component("adv", 0)
    for given in ([], [classifier], [classifier, network], [classifier, ab.Classifier(network, likelihood=lambda out: out)]):
        with pytest.raises(ab.InputError, match="a mixture needs two or more of this package's classifiers"):
            ab.Mixture(given)
    mixture = ab.Mixture([classifier, ab.Classifier(network)])
    with pytest.raises(ab.InputError, match=r"must return one tensor of logits \(B, classes\)"):
        ab.predict(mixture, batch[0], num_samples=2)
