"""Tests of the checks of an evaluation: on a network whose answer is known, on one that hides gradients, and on masked ones."""
import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn import datasets
from pyro_advbnn.attacks import catalogue
from pyro_advbnn.evaluation import checks, examination
from pyro_advbnn.evaluation.checks import FAILED, HELD, UNFIT, UNKNOWN, no_loss, verdict
from pyro_advbnn.evaluation.examination import Examination
from pyro_advbnn.evaluation.worst_case import worst_case_accuracy
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.precision import autocast
from pyro_advbnn.training.algorithm1 import train_step
from pyro_advbnn.training.recipes import build_optimizer

EPSILON = 0.1
pytestmark = pytest.mark.usefixtures("one_thread")


class Drowned(nn.Module):
    """Answers as `network` does, but the gradient of each call is drowned in noise of its own, whose mean is zero."""

    def __init__(self, network, scale):
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x):
        logits = self.network(x)
        noise = ((x - x.detach()) * torch.randn_like(x)).flatten(1).sum(1, keepdim=True)
        return logits + self.scale * noise * torch.randn(1, logits.shape[1])


class Quantised(nn.Module):
    """The network on pixels of 16 levels, whose gradient is zero everywhere."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network((15 * x).round() / 15)


class Saturated(nn.Module):
    """The network with logits so large that the softmax has no gradient."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return 1e4 * self.network(x)


def train(adversarial, width):
    """A small convnet on digits, 1,000 images, trained by the package itself."""
    torch.manual_seed(0)
    images = datasets.load("digits", "train")
    classifier = ab.Classifier(ab.networks.convnet(width=width))
    optimizer = build_optimizer(classifier, {"optimizer": "adam", "learning_rate": 0.01, "weight_decay": 0.0})
    attack = ab.PGD(0.15, None, 5) if adversarial else None
    for _ in range(12 if adversarial else 4):
        for x, y in datasets.batches(images, 100, shuffle_with=torch.Generator().manual_seed(0)):
            train_step(classifier.train(), optimizer, x, y, kl_weight=0.0, attack=attack)
    return classifier.eval()


@pytest.fixture(scope="module")
def robust():
    return train(adversarial=True, width=8)


@pytest.fixture(scope="module")
def fragile():
    return train(adversarial=False, width=16)


@pytest.fixture(scope="module")
def batches():
    return list(datasets.batches(datasets.balanced_subset(datasets.load("digits", "test"), 300, 0), 150))


def examine(classifier, batches, names=tuple(checks.CHECKS), **more):
    exam = Examination(classifier, batches, **{"epsilon": EPSILON, "num_samples": 5, "num_queries": 100} | more)
    return {name: checks.CHECKS[name](exam) for name in names}


def verdicts(*arguments, **more):
    return {name: finding.verdict for name, finding in examine(*arguments, **more).items()}


def test_on_an_adversarially_trained_network_no_check_fails(robust, fragile):
    images = datasets.balanced_subset(datasets.load("digits", "train"), 600, 0)
    batches = list(datasets.batches(images, 300))
    exam = Examination(robust, batches, epsilon=EPSILON)
    assert exam.accuracy(exam.attack)["accuracy"] > 0.6
    found = verdicts(robust, batches)
    without = {name for name, verdict in found.items() if verdict == UNFIT}
    assert without == {"beats transfer", "one draw", "enough draws", "fixed draw"}     # nothing to transfer from, or to draw
    assert FAILED not in found.values() and list(found.values()).count(HELD) >= 8    # of ten; rounding may leave doubts
    assert found["gradients"] == found["beats noise"] == HELD
    assert verdicts(robust, batches, ["beats transfer"], transfer=fragile) == {"beats transfer": HELD}


FINDS_MORE = {                                           # calls of `correct` after which half of the images are broken
    "twice the steps": lambda exam, attack, **_: attack.num_steps == 2 * exam.attack.num_steps,
    "random starts": lambda exam, attack, **_: attack.random_start,
    "bigger radius": lambda exam, attack, **_: attack.epsilon == exam.epsilon / 2,
    "beats transfer": lambda exam, attack, through=None, **_: through is not None,
    "fixed draw": lambda exam, attack, judge=None, **_: judge is None,
}


@pytest.mark.parametrize("name", FINDS_MORE)
def test_a_check_fails_where_what_it_compares_with_the_attack_is_better(name, monkeypatch):
    classifier = ab.BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 0.1, 0.1)
    exam = Examination(classifier, [(torch.rand(200, 1, 4, 4), torch.zeros(200, dtype=torch.int64))], epsilon=EPSILON,
                       num_steps=3, attack_samples=2, num_samples=2)
    half = torch.arange(200) < 100
    monkeypatch.setattr(exam, "correct", lambda attack, *how, **more: half | (not FINDS_MORE[name](exam, attack, *how, **more)))
    assert checks.CHECKS[name](exam).verdict == FAILED


def test_an_attack_is_made_through_one_classifier_and_judged_by_another(batches):
    one, other = (ab.Classifier(ab.networks.convnet(width=2)) for _ in "ab")
    seen, exam = [], Examination(one, batches[:1], epsilon=EPSILON)
    found = exam.correct(lambda classifier, x, y: (seen.append(classifier), x)[1], through=other, judge=one)
    assert seen == [other] and torch.equal(found, ab.predict(one, batches[0][0]).argmax(-1) == batches[0][1])


def test_each_batch_has_a_stream_of_its_own_and_predictions_average_the_draws_asked_for(monkeypatch):
    classifier = ab.BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 0.1, 0.1)
    x, drawn, asked = torch.rand(8, 1, 4, 4), [], []
    batches = [(x, torch.zeros(8, dtype=torch.int64))] * 2
    exam, other = (Examination(classifier, batches, epsilon=EPSILON, num_samples=7, seed=seed) for seed in (0, 1))
    monkeypatch.setattr(examination, "predict",
                        lambda judge, x, num_samples: asked.append(num_samples) or torch.zeros(len(x), 3))
    exam.correct(lambda classifier, x, y: (drawn.append(torch.rand(()).item()), x)[1])
    assert len(set(drawn)) == 2 and asked == [7, 7]
    assert torch.equal(exam.stand_in()(x), classifier.mean_network()(x))
    assert torch.equal(exam.draw()(x), exam.draw()(x)) and not torch.equal(exam.draw()(x), other.draw()(x))


def test_the_papers_attack_takes_20_steps_with_one_draw_whatever_the_attack_under_test_takes():
    classifier = ab.BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 0.1, 0.1)
    exam = Examination(classifier, [(torch.rand(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64))], epsilon=EPSILON, num_steps=3,
                       attack_samples=2, paper_step=0.007)
    assert (exam.attack, exam.papers_attack) == (ab.PGD(EPSILON, None, 3, 2), ab.PGD(EPSILON, 0.007, 20, 1))


def test_what_two_attacks_differ_on_is_told_with_the_verdict():
    base, other = torch.tensor([True] * 6 + [False] * 4), torch.tensor([True] * 3 + [False] * 5 + [True] * 2)
    finding = no_loss(base, other, "60.0 %, with other 50.0 %")
    assert finding.measured == "60.0 %, with other 50.0 %; they differ on 3 + 2 of 10 images"


def test_on_a_network_that_hides_its_gradients_one_draw_looks_robust_and_the_checks_expose_it(fragile, batches, monkeypatch):
    monkeypatch.setattr(checks, "COUNTS", (1, 50))
    exam = Examination(Drowned(fragile.network, 30.0), batches[:1], epsilon=0.2, num_steps=8, num_samples=5)
    clean, weak, strong = (exam.accuracy(attack)["accuracy"] for attack in (None, *checks.many_draws(exam)))
    assert clean > 0.9 and weak > 0.6 and strong < weak - 0.25
    found = {name: checks.CHECKS[name](exam) for name in ("one draw", "enough draws", "paper's attack")}
    assert found["paper's attack"].verdict == FAILED
    assert found["one draw"].verdict == FAILED and "50 draws" in found["one draw"].measured
    assert found["enough draws"].verdict == FAILED and verdicts(fragile, batches, ["one draw"]) == {"one draw": UNFIT}


@pytest.mark.parametrize(("masked", "failing"), [
    (Quantised, ["gradients", "loss goes up", "large radius", "beats noise", "beats Square"]),
    (Saturated, ["gradients", "large radius", "beats Square", "stronger attack"]),
])
def test_on_a_masked_network_the_checks_do_not_hold(fragile, batches, masked, failing):
    found = verdicts(masked(fragile.network), batches, failing)
    assert found == dict.fromkeys(failing, FAILED)


def test_a_large_scale_of_the_logits_or_rounded_pixels_do_not_stop_the_ensemble(fragile, batches):
    attacks = catalogue.build(["pgd", "apgd-dlr", "square"], catalogue.Strength(EPSILON, 20, 1, num_queries=150))
    bare, saturated, quantised = (
        worst_case_accuracy(network, batches[:1], attacks, num_samples=1)["accuracy"]
        for network in (fragile, Saturated(fragile.network), Quantised(fragile.network)))
    blind = worst_case_accuracy(Saturated(fragile.network), batches[:1], {"pgd": attacks["pgd"]}, num_samples=1)["accuracy"]
    assert blind > bare + 0.3 and saturated <= bare + 0.08     # half an interval of 150 images
    assert bare < 0.7 and quantised < 0.8                # only the black-box search finds these


def test_too_few_images_cannot_tell(robust, batches):
    few = [(x[:20], y[:20]) for x, y in batches[:1]]
    assert verdicts(robust, few, ["twice the steps", "random starts"]) == {"twice the steps": UNKNOWN, "random starts": UNKNOWN}


@pytest.mark.parametrize(("settings", "message"), [({"epsilon": 0}, "epsilon must lie"), ({"num_steps": 0}, "num_steps"),
                                                   ({"batches": iter([])}, "gone through again")])
def test_what_cannot_be_examined_is_refused(fragile, batches, settings, message):
    with pytest.raises(InputError, match=message):
        Examination(fragile, **{"batches": batches, "epsilon": EPSILON} | settings)


def test_a_difference_is_judged_by_the_images_on_which_two_attacks_differ():
    assert [verdict(*pair, 0.02) for pair in ((0.0, 0.01), (0.03, 0.1), (0.01, 0.03))] == [HELD, FAILED, UNKNOWN]
    base = torch.ones(1000, dtype=torch.bool)
    for lost, loss, gain in ((0, HELD, HELD), (100, FAILED, HELD), (25, UNKNOWN, HELD)):
        other = torch.arange(1000) >= lost
        assert no_loss(base, other, "").verdict == no_loss(other, base, "", reverse=True).verdict == loss
        assert no_loss(other, base, "").verdict == no_loss(base, other, "", reverse=True).verdict == gain


def test_one_draw_is_compared_with_more_than_one_also_where_these_find_no_more(monkeypatch):
    """All numbers of draws break the same images: the strongest is another one than one draw all the same."""
    monkeypatch.setattr(checks, "COUNTS", (1, 2, 5))
    classifier = ab.BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 0.1, 0.01)
    exam = Examination(classifier, [(torch.rand(10, 1, 4, 4), torch.zeros(10, dtype=torch.int64))], epsilon=EPSILON,
                       attack_samples=2, num_samples=2, num_queries=1)
    monkeypatch.setattr(exam, "correct", lambda *_, **__: torch.tensor([True] + [False] * 9))
    assert checks.CHECKS["one draw"](exam).measured.startswith(
        "1 draw per gradient 10.0 %, 2 draws 10.0 %, the strongest of 2, 5; they differ on 0 + 0")
    assert "by 1 query of Square 10.0 %" in checks.CHECKS["beats Square"](exam).measured
    exam.attack = exam.papers_attack
    assert "with 1 draw per gradient 10.0 %" in checks.CHECKS["paper's attack"](exam).measured
    assert "with 2 draws per gradient 10.0 %" in checks.CHECKS["enough draws"](exam).measured


def test_gradients_that_are_alike_for_all_images_are_found(batches):
    class Constant(nn.Module):
        def forward(self, x):
            return torch.stack([x.mean((1, 2, 3)), torch.zeros(len(x))], 1)
    alike = [(x, torch.zeros_like(y)) for x, y in batches]
    found = examine(Constant(), alike, ["gradients"])["gradients"]
    assert found.verdict == FAILED
    assert found.measured == "zero in every pixel, or no number, for 0.0 % of the images, zero in 0.0 % of all pixels; the " \
                             "same as another image's for 100.0 %"
    with autocast(torch.device("cpu"), "bf16"):
        assert examine(Constant(), alike, ["gradients"])["gradients"].verdict == FAILED
    single = [(x[:1], y[:1]) for x, y in alike]
    assert "another image's for 0.0 %" in examine(Constant(), single, ["gradients"])["gradients"].measured


def test_gradients_that_are_all_but_zero_are_not_taken_for_alike(batches):
    """Those of a cross-entropy that is nearly certain: the squares in their norm are no float32 numbers."""
    class Certain(nn.Module):
        def forward(self, x):
            brightness = (x.flatten(1) * torch.linspace(0, 1, x[0].numel())).square().sum(1)
            return torch.stack([torch.full((len(x),), 55.0), brightness / 10], 1)
    found = examine(Certain(), [(x, torch.zeros_like(y)) for x, y in batches], ["gradients"])["gradients"]
    assert found.verdict != FAILED and "the same as another image's for 0.0 %" in found.measured


def test_gradients_that_are_no_numbers_are_found(batches):
    """As behind a division by the std of an image, where that is 0."""
    class ByStd(nn.Module):
        def forward(self, x):
            scaled = x / x.flatten(1).std(1).clamp_min(1e-5)[:, None, None, None]
            return torch.stack([scaled.mean((1, 2, 3)), torch.zeros(len(x))], 1)
    (x, y), = batches[:1]
    x = x.clone()
    x[20:] = 0.5                                         # the first are fine
    found = examine(ByStd(), [(x, torch.zeros_like(y))], ["gradients"])["gradients"]
    assert found.verdict == FAILED and found.measured.startswith(
        f"zero in every pixel, or no number, for {100 * (len(x) - 20) / len(x):.1f} %")


def test_the_curve_over_draws_is_measured_for_random_networks_alone(fragile, batches):
    exam = Examination(fragile, batches[:1], epsilon=EPSILON)
    assert not exam.is_random and [attack.attack_samples for attack in (exam.attack, *checks.many_draws(exam))] == [1, 1]
    assert Examination(Drowned(fragile.network, 1e-3), batches[:1], epsilon=EPSILON).is_random       # its gradients are
    assert Examination(ab.build_classifier("rse", ab.networks.convnet()), batches[:1], epsilon=EPSILON).is_random


def test_a_classifier_that_answers_by_one_of_two_members_is_random_in_every_state_of_the_generator(fragile, batches):
    class OneOfTwo(nn.Module):
        def __init__(self):
            super().__init__()
            self.members = nn.ModuleList([fragile, nn.Linear(64, 10)])

        def forward(self, x):
            return self.members[0](x) if torch.rand(()) < 0.5 else self.members[1](x.flatten(1))

    either = OneOfTwo()
    for seed in range(8):
        torch.manual_seed(seed)
        assert Examination(either, batches[:1], epsilon=EPSILON, attack_samples=3).attack.attack_samples == 3


def test_a_draw_that_fixes_nothing_is_no_fixed_draw(batches):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), AlwaysDropout())
    found = examine(ab.Classifier(network), batches[:1], ["fixed draw"])["fixed draw"]
    assert (found.verdict, found.measured) == (checks.UNFIT, "a draw of it is random still")


class AlwaysDropout(nn.Module):
    """Monte Carlo dropout: random in eval mode, too."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


def test_feature_vectors_have_no_squares_and_every_other_check(batches):
    flat = [(x.flatten(1), y) for x, y in batches[:1]]
    found = examine(nn.Linear(64, 10), flat, list(checks.CHECKS))
    assert {name for name, finding in found.items() if finding.verdict == UNFIT} == {
        "beats Square", "beats transfer", "one draw", "enough draws", "fixed draw"}      # all but the first: nothing is random


@pytest.mark.parametrize(("broken", "verdict"), [(100, FAILED), (12, UNKNOWN)])     # 12 would fail were 5 draws the one rival
def test_one_draw_is_held_against_the_strongest_number_of_draws_at_a_level_for_all_of_them(broken, verdict, monkeypatch):
    classifier = ab.BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 0.1, 0.1)
    batches = [(torch.rand(200, 1, 4, 4), torch.zeros(200, dtype=torch.int64))]
    exam = Examination(classifier, batches, epsilon=0.1, num_samples=2)
    monkeypatch.setattr(exam, "correct", lambda attack: torch.arange(200) >= (broken if attack.attack_samples == 5 else 0))
    finding = checks.one_draw(exam)
    assert finding.verdict == verdict and "5 draws" in finding.measured
