"""Tests of attacks by name, and of what all attacks have: settings that are refused out of their range, a name, a row."""
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.attacks.balls import BALLS
from pyro_advbnn.attacks.catalogue import Strength, build, default_names, spelled_out
from pyro_advbnn.evaluation.accuracy import attack_fields
from pyro_advbnn.system.errors import InputError

STRENGTH = Strength(0.1, num_steps=2, attack_samples=3, num_queries=4)


def test_names_build_their_attacks_in_order_with_the_shared_settings():
    attacks = build(["square", "apgd-dlr", "pgd-margin"], STRENGTH)
    assert list(attacks) == ["square", "apgd-dlr", "pgd-margin"]
    assert [attack.attack_samples for attack in attacks.values()] == [3, 3, 3]
    assert (attacks["apgd-dlr"].loss, attacks["pgd-margin"].loss, attacks["square"].num_queries) == ("dlr", "margin", 4)
    assert all(attack.epsilon == 0.1 for attack in attacks.values())


def test_each_name_is_the_attack_that_it_says():
    pgd = ab.PGD(0.1, None, 2, 3, random_start=True)
    expected = {"noise": ab.RandomNoise(0.1, num_tries=10, attack_samples=3), "fgsm": ab.PGD(0.1, 0.1, 1, 3), "pgd": pgd,
                "pgd-margin": replace(pgd, loss="margin"), "apgd-margin": ab.APGD(0.1, 2, "margin", 3),
                "pgd-momentum": replace(pgd, momentum=0.9),
                "pgd-probability": replace(pgd, average="probability"), "square": ab.Square(0.1, 4, 3)}
    assert build([*expected, "pgd"], STRENGTH) == expected           # a name that comes twice counts once


def test_what_a_row_says_of_an_ensemble_holds_for_each_of_its_attacks():
    strength = Strength(0.1, num_steps=7, attack_samples=3, average="probability")
    attacks = build(["noise", "fgsm", "pgd", "apgd-ce", "square"], strength)
    assert {(attack.attack_samples, attack.average, attack.norm) for attack in attacks.values()} == {(3, "probability", "linf")}
    assert (attacks["pgd"].num_steps, attacks["apgd-ce"].num_steps) == (7, 7)
    cw, = build(["cw"], Strength(0.5, num_steps=7, attack_samples=3, norm="l2")).values()
    assert (cw.num_steps, cw.attack_samples, cw.num_samples, cw.norm) == (5 * 7, 3, 3, "l2")


def test_an_attack_on_a_stand_in_takes_one_draw_for_the_stand_in_has_nothing_to_draw():
    attack = build(["apgd-ce@pool:2"], STRENGTH)["apgd-ce@pool:2"]
    assert attack.attack_samples == 1 and attack.source == "pool:2"


OF_POSTERIOR = ["noise", "apgd-ce@mean", "apgd-ce@pool:10", "pgd", "apgd-ce", "apgd-dlr", "apgd-t@mean", "square"]
LINF = [*OF_POSTERIOR[:-2], "apgd-t2@mean", "apgd-t3", "square", "fgsm", "pgd-margin", "pgd-momentum", "pgd-probability"]


@pytest.mark.parametrize(("name", "norm"), [*((name, "linf") for name in LINF),
                                            *((name, "l2") for name in ("noise", "fgsm", "pgd", "apgd-ce", "cw"))])
def test_every_attack_stays_in_its_ball_and_leaves_a_bayesian_network_as_it_was(batch, name, norm):
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=2), init_std=0.01).train()
    x, y = batch[0], ab.predict(classifier, batch[0]).argmax(1)          # right, as cw leaves what is wrong as it is
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    epsilon = {"linf": 0.1, "l2": 3.0}[norm]
    with torch.no_grad():                                                # a caller need not think of it
        x_adv = build([name], Strength(epsilon, 2, 3, 4, norm))[name](classifier, x, y)
    assert BALLS[norm].size(x_adv - x).max() <= epsilon * (1 + 1e-5) and 0 <= x_adv.min() and x_adv.max() <= 1
    assert not torch.equal(x, x_adv) and not x_adv.requires_grad
    assert all(torch.equal(value, state[name]) for name, value in classifier.state_dict().items())
    assert classifier.training and all(p.grad is None and p.requires_grad for p in classifier.parameters())


@pytest.mark.parametrize("attack", [ab.PGD(0.0, 0.1, 3), ab.PGD(0.0, 0.1, 0, random_start=True), ab.APGD(0.0),
                                    ab.CarliniWagner(0), ab.RandomNoise(0.0)])
def test_nothing_changes_in_a_ball_of_no_size(batch, attack):
    x_adv = attack(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), *batch)
    assert torch.equal(x_adv, batch[0]) and x_adv is not batch[0]


@pytest.mark.parametrize("attack", [ab.PGD(0.1, num_steps=0, random_start=True), ab.APGD(0.1, 2), ab.Square(0.1, 20),
                                    ab.RandomNoise(0.1, num_tries=2)])
def test_an_attacks_own_randomness_comes_from_its_generator_alone(batch, attack):
    network, found = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), []
    for seed, own in ((0, 5), (1, 5), (1, 6)):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(replace(attack, generator=torch.Generator().manual_seed(own))(network, *batch))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0], found[1]) and (found[0] - batch[0]).abs().max() > 0.09 and not torch.equal(found[1], found[2])


def test_what_makes_no_sense_for_a_classifier_is_left_out():
    assert default_names(True, True, 10, "linf") == OF_POSTERIOR
    assert default_names(True, False, 10, "linf") == [
        "noise", "apgd-ce@pool:10", "pgd", "apgd-ce", "apgd-dlr", "apgd-t", "square"]
    assert default_names(False, False, 2, "linf") == ["noise", "pgd", "apgd-ce", "apgd-margin", "square"]
    assert default_names(False, False, 3, "linf") == ["noise", "pgd", "apgd-ce", "apgd-dlr", "square"]
    assert default_names(False, True, 10, "l2") == ["noise", "pgd", "apgd-ce", "apgd-dlr", "apgd-t"]
    for num_classes in (2, 3, 4, 10):
        for norm in BALLS:
            names = spelled_out(default_names(True, True, num_classes, norm), num_classes)
            assert list(build(names, Strength(0.1, norm=norm))) == names


@pytest.mark.parametrize(("names", "norm", "message"), [
    (["pdg"], "linf", "must be of noise, fgsm"),
    (["pgd@"], "linf", "--attacks pgd@: source must be"), (["pgd@self"], "linf", "as NAME@mean or NAME@pool:M, got 'pgd@self'"),
    (["pgd@pool:0"], "linf", "source must be"), (["cw"], "linf", "cw is an attack in the norm l2"),
    (["square"], "l2", "square is an attack in the norm linf"),
])
def test_wrong_names_are_refused(names, norm, message):
    with pytest.raises(InputError, match=message):
        build(names, Strength(0.1, norm=norm))


_AVERAGED = {"loss": ["hinge"], "average": ["mode"], "attack_samples": [0]}
_WRONG = {
    ab.PGD: _AVERAGED | {"epsilon": [-0.1, math.nan, 8], "step_size": [-1, math.inf], "num_steps": [-1], "norm": ["l1"],
                         "momentum": [-0.1, 1.1, math.nan], "restarts": [0]},
    ab.APGD: _AVERAGED | {"epsilon": [-0.1, math.nan], "num_steps": [0], "restarts": [0], "norm": ["l1"]},
    ab.RandomNoise: _AVERAGED | {"epsilon": [2], "norm": ["l1"], "num_tries": [0]},
    ab.Square: _AVERAGED | {"epsilon": [-0.1, 8, math.nan], "num_queries": [-1], "p_init": [0.0, 1.1, math.nan]},
    ab.CarliniWagner: {"epsilon": [-0.1, math.nan], "num_steps": [0], "binary_search_steps": [0], "attack_samples": [0],
                       "num_samples": [0], "confidence": [-1.0, math.inf], "step_size": [0.0], "initial_const": [math.nan]},
}


@pytest.mark.parametrize(("attack", "name", "value"), [
    (attack, name, value) for attack, wrong in _WRONG.items() for name, values in wrong.items() for value in values])
def test_settings_out_of_range_are_refused_by_name(attack, name, value):
    with pytest.raises(InputError, match=f"^{name} must"):
        attack(**({"epsilon": 0.1} | {name: value}))


@pytest.mark.parametrize(("attack", "name"), [
    (ab.PGD(0.1), "pgd"), (ab.PGD(0.1, random_start=True, restarts=3), "pgd-random-x3"), (ab.RandomNoise(0.1), "noise"),
    (ab.PGD(0.1, loss="dlr", average="probability", momentum=1.0, norm="l2"), "pgd-dlr-probability-momentum-l2"),
    (ab.APGD(0.1), "apgd-ce"), (ab.APGD(0.1, loss="dlr", average="probability", norm="l2"), "apgd-dlr-probability-l2"),
])
def test_a_name_tells_what_is_not_as_usual(attack, name):
    assert attack.name == name


def test_a_row_says_what_the_attack_was():
    assert attack_fields(ab.Square(0.1, attack_samples=4)) == {"attack": "square", "epsilon": 0.1, "attack_samples": 4}
    assert attack_fields(ab.CarliniWagner(0.5, 100)) == {
        "attack": "cw", "epsilon": 0.5, "num_steps": 100, "step_size": 0.01, "attack_samples": 1}
    assert attack_fields(ab.PGD(0.1, 0.03, 5)) == {
        "attack": "pgd", "epsilon": 0.1, "num_steps": 5, "step_size": 0.03, "attack_samples": 1, "reaches_ball": True}
