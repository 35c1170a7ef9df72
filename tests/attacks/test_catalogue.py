"""Tests of attacks by name."""
import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.attacks.catalogue import OF_RANDOM, Strength, build, default_names
from pyro_advbnn.system.errors import InputError

STRENGTH = Strength(0.1, num_steps=2, attack_samples=3, num_queries=4)


def test_names_build_their_attacks_in_order_with_the_shared_settings():
    attacks = build(["square", "apgd-dlr", "pgd-margin"], STRENGTH)
    assert list(attacks) == ["square", "apgd-dlr", "pgd-margin"]
    assert [attack.attack_samples for attack in attacks.values()] == [3, 3, 3]
    assert (attacks["apgd-dlr"].loss, attacks["pgd-margin"].loss, attacks["square"].num_queries) == ("dlr", "margin", 4)
    assert all(attack.epsilon == 0.1 for attack in attacks.values())


def test_what_a_row_says_of_an_ensemble_holds_for_each_of_its_attacks():
    strength = Strength(0.1, num_steps=7, attack_samples=3, average="probability")
    attacks = build(["noise", "pgd", "apgd-ce", "square"], strength)
    assert {(attack.attack_samples, attack.average, attack.norm) for attack in attacks.values()} == {(3, "probability", "linf")}
    assert (attacks["pgd"].num_steps, attacks["apgd-ce"].num_steps) == (7, 7)
    cw, = build(["cw"], Strength(0.5, num_steps=7, attack_samples=3, norm="l2")).values()
    assert (cw.num_steps, cw.attack_samples, cw.norm) == (5 * 7, 3, "l2")


def test_an_attack_on_a_stand_in_takes_one_draw_for_the_stand_in_has_nothing_to_draw():
    attack = build(["apgd-ce@pool:2"], STRENGTH)["apgd-ce@pool:2"]
    assert attack.attack_samples == 1 and attack.source == "pool:2"


@pytest.mark.parametrize("name", [*OF_RANDOM, "fgsm", "pgd-margin", "pgd-momentum", "pgd-probability"])
def test_every_attack_of_the_maximum_norm_stays_in_the_ball_of_a_bayesian_network(name):
    torch.manual_seed(0)
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=2), init_std=0.05)
    x, y = torch.rand(3, 1, 8, 8), torch.tensor([1, 2, 3])
    x_adv = build([name], STRENGTH)[name](classifier, x, y)
    assert (x_adv - x).abs().max() <= 0.1 + 1e-6 and 0 <= x_adv.min() and x_adv.max() <= 1 and not torch.equal(x, x_adv)


@pytest.mark.parametrize("name", ["noise", "fgsm", "pgd", "apgd-ce", "cw"])
def test_every_attack_of_the_euclidean_norm_changes_images_and_stays_in_the_ball(name):
    torch.manual_seed(0)
    classifier, x = ab.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), torch.rand(3, 1, 8, 8)
    attack = build([name], Strength(0.5, num_steps=2, attack_samples=1, norm="l2"))[name]
    x_adv = attack(classifier, x, classifier(x).argmax(1))     # images that are right, as cw leaves the others as they are
    sizes = (x_adv - x).flatten(1).norm(dim=1)
    assert sizes.max() > 0.01 and sizes.max() <= 0.5 + 1e-5 and 0 <= x_adv.min() and x_adv.max() <= 1


def test_what_makes_no_sense_for_a_classifier_is_left_out():
    assert default_names(True, True, 10, "linf") == list(OF_RANDOM)
    assert default_names(True, False, 10, "linf") == [name for name in OF_RANDOM if name != "apgd-ce@mean"]
    assert default_names(False, False, 2, "linf") == ["noise", "pgd", "apgd-ce", "square"]
    assert default_names(False, False, 10, "l2") == ["noise", "pgd", "apgd-ce", "apgd-dlr"]


@pytest.mark.parametrize(("names", "norm", "message"), [
    (["pdg"], "linf", "must be of noise, fgsm"), (["pgd", "pgd"], "linf", "comes twice"),
    (["pgd@"], "linf", "--attacks pgd@: source must be"),
    (["pgd@pool:0"], "linf", "source must be"), (["cw"], "linf", "cw is an attack in the norm l2"),
    (["square"], "l2", "square is an attack in the norm linf"), ([], "linf", "at least one attack"),
])
def test_wrong_names_are_refused(names, norm, message):
    with pytest.raises(InputError, match=message):
        build(names, Strength(0.1, norm=norm))
