"""Tests of uncertainty: its measures are those of their equations, and an attacker who hides leaves less doubt behind."""
import copy
import math

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.bayes.averaging import log_mean_probability
from pyro_advbnn.evaluation import uncertainty
from pyro_advbnn.evaluation.accuracy import predict, robust_accuracy
from pyro_advbnn.evaluation.intervals import auroc_interval
from pyro_advbnn.evaluation.uncertainty import ConfidentError
from pyro_advbnn.system.errors import InputError, Note
from pyro_advbnn.system.random_streams import own_stream, separate_randomness, undisturbed

LOG2 = math.log(2)


@pytest.fixture(scope="module")
def draws():
    """(7, 50, 4): between certain and undecided."""
    torch.manual_seed(2)
    return (3 * torch.randn(7, 50, 4, dtype=torch.float64)).log_softmax(-1)


def log(*draws):
    """Draws for one image from their probabilities."""
    return torch.tensor(draws, dtype=torch.float64)[:, None].log()


@pytest.mark.parametrize(("probabilities", "entropy", "expected", "ratio"), [
    ([[1, 0], [0, 1]], LOG2, 0, 0.5),                    # each draw is sure, of another class
    ([[0.5, 0.5], [0.5, 0.5]], LOG2, LOG2, 0),           # all agree that nothing is known
    ([[1, 0], [1, 0]], 0, 0, 0),
    ([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], -0.75 * math.log(0.375) + 0.5 * LOG2, 1.5 * LOG2, 0.5),
])
def test_entropies_of_draws_that_can_be_computed_by_hand(probabilities, entropy, expected, ratio):
    draws = log(*probabilities)
    assert uncertainty.predictive_entropy(draws).item() == pytest.approx(entropy, abs=1e-12)
    assert uncertainty.expected_entropy(draws).item() == pytest.approx(expected, abs=1e-12)
    assert uncertainty.mutual_information(draws).item() == pytest.approx(entropy - expected, abs=1e-12)
    assert uncertainty.variation_ratio(draws).item() == pytest.approx(ratio)


def test_mutual_information_is_never_below_0_nor_above_the_entropy_or_the_log_of_the_draws(draws):
    information = uncertainty.mutual_information(draws)
    assert (information > 0).all() and information.max() > 0.5
    assert (information <= uncertainty.predictive_entropy(draws)).all()
    assert (uncertainty.mutual_information(draws[:2]) <= LOG2).all()
    assert uncertainty.mutual_information(draws[:1].expand(5, -1, -1)).abs().max() == 0


def test_likelihood_and_brier_score_are_those_of_the_averaged_prediction():
    draws, y = log([0.8, 0.1, 0.1], [0.2, 0.5, 0.3]), torch.tensor([1], dtype=torch.uint8)     # averaged: 0.5, 0.3, 0.2
    assert uncertainty.negative_log_likelihood(draws, y).item() == pytest.approx(-math.log(0.3))
    assert uncertainty.brier_score(draws, y).item() == pytest.approx(0.25 + 0.49 + 0.04)
    assert uncertainty.brier_score(log([1.0, 0.0]), torch.tensor([1])).item() == 2


def test_huge_logits_leave_every_measure_finite():
    logits = torch.tensor([[[1e4, 0.0, -1e4]], [[-1e4, 0.0, 1e4]]])
    with pytest.warns(Note, match="generators are set back"):   # answers in turn are no draws of torch's
        found = uncertainty.scores(Fixed(logits), [(torch.rand(1, 1, 2, 2), torch.tensor([1]))], num_samples=2)
    assert all(values.isfinite().all() for values in found.values())
    assert found["nll"].item() == 1e4 and found["mutual_information"].item() == pytest.approx(LOG2)


class Fixed(nn.Module):
    """A classifier whose answers are given: logits (n, B, K), one of the n after another."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.calls = logits, 0

    def forward(self, x):
        self.calls += 1
        return self.logits[(self.calls - 1) % len(self.logits)] + 0 * x.sum()


def by_draws_of_its_own(classifier, x, y):
    with undisturbed(), own_stream():
        return ab.PGD(0.1, num_steps=3)(classifier, x, y)


def test_scores_hold_the_accuracy_of_robust_accuracy_and_every_image_in_its_order(classifier, batch):
    batches = [(batch[0][:40], batch[1][:40]), (batch[0][40:], batch[1][40:])]
    seen = []
    with separate_randomness(3):
        found = uncertainty.scores(classifier, batches, ab.PGD(0.1, num_steps=3), num_samples=5,
                                   progress=lambda *done: seen.append(done))
    with separate_randomness(3):
        row = robust_accuracy(classifier, batches, by_draws_of_its_own, num_samples=5)
    assert found["correct"].mean().item() == row["accuracy"] and seen[-1] == (60, round(60 * row["accuracy"]))
    with separate_randomness(3):
        found = uncertainty.scores(classifier, [batch], num_samples=5)
    with separate_randomness(3):
        probabilities = predict(classifier, batch[0], num_samples=5)
    torch.testing.assert_close(found["confidence"], probabilities.amax(-1).double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["nll"].exp(), 1 / probabilities[range(60), batch[1]].double(), rtol=1e-5, atol=1e-6)


def test_clean_and_attacked_images_meet_the_same_draws(classifier, batch):
    def in_vain(classifier, x, y):
        classifier(x)
        return x + torch.randn(()) * 0

    clean, attacked = [], []
    for found, attack in ((clean, None), (attacked, in_vain)):
        with separate_randomness(3):
            found.append(uncertainty.scores(classifier, [batch, batch], attack, num_samples=3)["mutual_information"])
    assert torch.equal(clean[0], attacked[0]) and not torch.equal(*clean[0].chunk(2))


def test_a_deterministic_network_has_no_mutual_information(classifier, batch):
    found = uncertainty.scores(classifier.mean_network(), [batch], num_samples=4)
    assert found["mutual_information"].max() == 0 == found["variation_ratio"].max() and found["entropy"].min() > 0


def test_what_cannot_be_measured_is_refused(classifier, batch):
    with pytest.raises(InputError, match="logits must be finite"):
        uncertainty.log_probabilities(Fixed(torch.full((1, 60, 3), math.nan)), batch[0])
    with pytest.raises(InputError, match="labels must lie between 0 and 2"):
        uncertainty.scores(classifier, [(batch[0], batch[1] + 7)])
    with pytest.raises(InputError, match="no images"):
        uncertainty.scores(classifier, [])
    with pytest.raises(InputError, match="in \\[0, 1\\]"):
        uncertainty.scores(classifier, [(2 * batch[0], batch[1])])
    with pytest.raises(InputError, match="num_samples"):
        uncertainty.scores(classifier, [batch], num_samples=0)
    with pytest.raises(InputError, match="confidence_weight"):
        ConfidentError(-1.0)


def test_bins_and_calibration_error_that_can_be_computed_by_hand():
    confidence = torch.tensor([0.1, 0.2, 0.5, 0.7, 0.8, 1.0], dtype=torch.float64)
    correct = torch.tensor([1.0, 0, 0, 1, 1, 0])
    rows = uncertainty.reliability(confidence, correct, 4)
    assert [(row["left"], row["right"], row["num_in_bin"], row["accuracy"]) for row in rows] == [
        (0, 0.25, 2, 0.5), (0.25, 0.5, 1, 0), (0.5, 0.75, 1, 1), (0.75, 1, 2, 0.5)]      # (left, right]; 1 is in the last
    assert [row["confidence"] for row in rows] == pytest.approx([0.15, 0.5, 0.7, 0.9])
    assert uncertainty.calibration_error(rows) == pytest.approx((2 * 0.35 + 0.5 + 0.3 + 2 * 0.4) / 6)
    assert all(row["accuracy_low"] < row["accuracy_high"] for row in rows)


def test_the_calibration_error_is_that_of_torchmetrics(draws):
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    torch.manual_seed(4)
    y = torch.randint(4, (50,))
    probabilities = log_mean_probability(draws).exp()
    rows = uncertainty.reliability(probabilities.amax(-1), (probabilities.argmax(-1) == y).double())
    known = metrics.multiclass_calibration_error(probabilities, y, 4, n_bins=15)
    assert uncertainty.calibration_error(rows) == pytest.approx(known.item(), abs=1e-6) and known > 0.1


def test_detection_of_scores_that_can_be_ranked_by_hand():
    clean, other = torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), torch.tensor([0.35, 0.3, 0.5]).double()
    found = uncertainty.detection(clean, other)
    assert found["auroc"] == pytest.approx((3 + 2.5 + 4) / 12)                           # a tie is half a point
    assert (found["num_positives"], found["mean_other"]) == (3, pytest.approx(1.15 / 3))
    assert uncertainty.detection(clean, clean + 1)["auroc"] == 1 == uncertainty.detection(clean, clean + 1)["aupr"]
    assert uncertainty.detection(clean + 1, clean)["auroc"] == 0
    alike = uncertainty.detection(torch.zeros(9), torch.zeros(3))
    assert (alike["auroc"], alike["aupr"]) == (0.5, 0.25)
    nothing = uncertainty.detection(clean, clean[:0])
    assert nothing["auroc"] is None and nothing["num_positives"] == 0 and nothing["mean_other"] is None


def test_detection_is_that_of_torchmetrics():
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    torch.manual_seed(5)
    clean, other = torch.rand(200).double().square(), torch.rand(150).double()
    found = uncertainty.detection(clean, other)
    scores, labels = torch.cat([clean, other]), torch.cat([torch.zeros(200), torch.ones(150)]).long()
    assert found["auroc"] == pytest.approx(metrics.binary_auroc(scores, labels).item(), abs=1e-6)
    assert found["aupr"] == pytest.approx(metrics.binary_average_precision(scores, labels).item(), abs=1e-6)


def test_the_interval_of_the_auroc_holds_the_true_one_as_often_as_it_says():
    torch.manual_seed(6)
    true, hits = 0.5 * (1 + math.erf(0.5)), 0                                            # of N(0, 1) against N(1, 1)
    for _ in range(300):
        found = uncertainty.detection(torch.randn(60), 1 + torch.randn(40))
        hits += found["auroc_low"] <= true <= found["auroc_high"]
    assert 0.92 <= hits / 300 <= 0.98


@pytest.mark.parametrize(("shift", "num_clean", "num_other"), [(0.0, 20, 20), (1.5, 20, 20), (2.5, 20, 20), (2.5, 30, 5)])
def test_the_interval_of_the_auroc_holds_the_true_one_also_of_few_images_and_near_1(shift, num_clean, num_other):
    torch.manual_seed(7)
    true, hits = 0.5 * (1 + math.erf(shift / 2)), 0
    for _ in range(400):
        auroc = (shift + torch.randn(num_other, 1) > torch.randn(num_clean)).float().mean().item()
        low, high = auroc_interval(auroc, num_other, num_clean)
        hits += low <= true <= high
    assert hits / 400 >= 0.92


def test_rejection_keeps_the_images_of_least_doubt():
    score = torch.tensor([0.4, 0.1, 0.3, 0.2]).double()
    right = torch.tensor([0, 1, 0, 1])
    rows = uncertainty.rejection(score, right.float(), [0, 0.25, 0.5, 0.99])
    assert rows == uncertainty.rejection(score, right.bool(), [0, 0.25, 0.5, 0.99])
    assert [(row["rejected"], row["num_kept"], row["accuracy"]) for row in rows] == [
        (0, 4, 0.5), (0.25, 3, pytest.approx(2 / 3)), (0.5, 2, 1), (0.99, 1, 1)]


def test_images_that_tie_at_the_border_count_by_their_mean_whatever_their_order():
    score, correct = torch.tensor([0.1, 0.2, 0.2, 0.2, 0.9]), torch.tensor([1.0, 1, 0, 0, 1])
    for order in (torch.arange(5), torch.tensor([4, 3, 2, 1, 0])):
        row, = uncertainty.rejection(score[order], correct[order], [0.4])
        assert row["num_kept"] == 3 and row["accuracy"] == pytest.approx((1 + 2 / 3) / 3)


def test_the_confident_error_is_its_equation():
    p, y = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]), torch.tensor([0, 1])
    found = ConfidentError(3.0)(p.log(), y)
    assert found.tolist() == pytest.approx([3 * math.log(0.2) - math.log(0.7), 3 * math.log(0.6) - math.log(0.3)])
    torch.testing.assert_close(ConfidentError(0.0)(p.log(), y), nn.functional.cross_entropy(p.log(), y, reduction="none"))
    logits = 1e4 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert ConfidentError()(logits.requires_grad_(), torch.zeros(5, dtype=torch.int64)).isfinite().all()


def test_the_confident_error_still_has_a_gradient_where_the_cross_entropy_has_none():
    logits, y = torch.tensor([[60.0, 0.0, -5.0]], requires_grad=True), torch.tensor([0])
    blind, = torch.autograd.grad(ConfidentError(0.0)(logits, y).sum(), logits)
    sharp, = torch.autograd.grad(ConfidentError(1.0)(logits, y).sum(), logits)
    assert blind[0, 0] == 0 and sharp[0].tolist() == pytest.approx([-1, 1, 0])


def test_an_attacker_who_hides_leaves_less_doubt_and_is_wrong_as_often(classifier, batch):
    """The blind attacker's images have more entropy than clean ones; the hiding one's have as little as he can reach."""
    found, classifier = {}, copy.deepcopy(classifier)
    classifier.mean.data.mul_(3)                         # so that images tell it more than its draws do
    for name, settings in {"blind": {}, "hiding": {"loss": ConfidentError(), "average": "probability"}}.items():
        attack = ab.PGD(0.3, num_steps=20, attack_samples=5, **settings)
        with separate_randomness(7):
            found[name] = uncertainty.scores(classifier, [batch], attack, num_samples=50)
    with separate_randomness(7):
        clean = uncertainty.scores(classifier, [batch], num_samples=50)
    assert found["hiding"]["correct"].mean() <= found["blind"]["correct"].mean() + 0.05 < clean["correct"].mean()
    for score in uncertainty.SCORES:
        assert found["hiding"][score].mean() < found["blind"][score].mean()
        auroc = {name: uncertainty.detection(clean[score], each[score])["auroc"] for name, each in found.items()}
        assert auroc["hiding"] < auroc["blind"] == pytest.approx(
            roc_auc_score([0] * 60 + [1] * 60, torch.cat([clean[score], found["blind"][score]])))


def test_images_that_are_none_are_refused(batch):
    with pytest.raises(InputError, match=r"images must lie in \[0, 1\]"):
        uncertainty.log_probabilities(nn.Flatten(), 255 * batch[0])


def test_the_number_that_is_kept_is_rounded():
    rows = uncertainty.rejection(torch.arange(10.0), torch.ones(10), [0.0, 0.1, 0.3, 0.7, 0.8, 0.9])
    assert [row["num_kept"] for row in rows] == [10, 9, 7, 3, 2, 1]         # (1 - 0.8) * 10 is a little less than 2
