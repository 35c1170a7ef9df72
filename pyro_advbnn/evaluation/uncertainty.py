"""How uncertain a classifier is, whether it is right to be, and an attack that leaves no doubt behind. Any module with logits.

Everything is computed from the log-probabilities (n, B, K) of n draws, so that a saturated softmax loses nothing. Entropies
are in nats. Detection and rejection ask whether doubt tells wrong, attacked or foreign images from clean ones.
"""
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pyro_advbnn.attacks.attack import check_images
from pyro_advbnn.attacks.losses import true_and_other
from pyro_advbnn.bayes.averaging import log_mean_probability
from pyro_advbnn.evaluation.accuracy import accuracy_fields, attack_images, logits_of_draws
from pyro_advbnn.evaluation.inputs import checked_batches
from pyro_advbnn.evaluation.intervals import auroc_interval
from pyro_advbnn.system.errors import check_number
from pyro_advbnn.system.random_streams import own_stream, undisturbed

SCORES = ("entropy", "mutual_information")               # by which images are told apart, or rejected
NUM_BINS = 15
_ROUNDING = 1e-12                                       # of an entropy in float64, with room
_MEANS = ("nll", "brier", "entropy", "expected_entropy", "mutual_information", "variation_ratio")


def log_probabilities(classifier: nn.Module, x: torch.Tensor, *, num_samples: int = 20) -> torch.Tensor:
    """The log softmax of each of num_samples >= 1 forward calls in eval mode: (num_samples, B, K), float64.

    Raises InputError for images that are not fit; see `accuracy.logits_of_draws`.
    """
    check_images(x)
    return logits_of_draws(classifier, x, num_samples).double().log_softmax(-1)


def predictive_entropy(draws: torch.Tensor) -> torch.Tensor:
    """H[mean_i p_i], (B,) in [0, log K]: all doubt about the label (Depeweg et al. 2018)."""
    return _entropy(log_mean_probability(draws))


def expected_entropy(draws: torch.Tensor) -> torch.Tensor:
    """mean_i H[p_i], (B,): the doubt that is left when the weights are known, called aleatoric."""
    return _entropy(draws).mean(0)


def mutual_information(draws: torch.Tensor) -> torch.Tensor:
    """H[mean_i p_i] - mean_i H[p_i], (B,) in [0, log n]: the doubt that comes from the weights, called epistemic.

    0 where all draws agree, so for every deterministic network. Never above the predictive entropy.
    """
    information = predictive_entropy(draws) - expected_entropy(draws)
    return torch.where(information < _ROUNDING, 0.0, information)    # or images would be ranked by rounding


def variation_ratio(draws: torch.Tensor) -> torch.Tensor:
    """1 - the share of the draws that vote for their most frequent class, (B,)."""
    votes = F.one_hot(draws.argmax(-1), draws.shape[-1])
    return 1 - votes.double().mean(0).amax(-1)


def negative_log_likelihood(draws: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """-log of the averaged probability of the label, (B,)."""
    return -log_mean_probability(draws).gather(1, y.long()[:, None]).squeeze(1)


def brier_score(draws: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The squared distance of the averaged prediction from the label's one-hot vector, (B,) in [0, 2] (Brier 1950)."""
    probabilities = log_mean_probability(draws).exp()
    return (probabilities - F.one_hot(y.long(), probabilities.shape[-1])).square().sum(-1)


def scores(classifier: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], attack: Callable | None = None, *,
           num_samples: int = 20, progress: Callable | None = None) -> dict:
    """{name: float64 (N,) on the CPU} of all images: what is told of each.

    batches, attack, progress: as in `accuracy.robust_accuracy`. The names: correct,
    confidence (the largest averaged probability), nll, brier, entropy, expected_entropy, mutual_information,
    variation_ratio. Predictions draw from torch's generators as if nothing had been attacked: called from the same state, clean
    and attacked images meet the same draws. The attack has a stream of its own, or it would know them.

    Raises InputError where batches is empty, and for images, labels, attacked images and modules that are not fit (see
    `inputs`).
    """
    parts, total, correct = [], 0, 0
    for x, y in checked_batches(batches, [classifier]):
        with undisturbed(), own_stream():                # the prediction's draws are those of clean images
            x_adv = attack_images(attack, classifier, x, y)
        parts.append(_scores(log_probabilities(classifier, x_adv, num_samples=num_samples), y))
        total, correct = total + len(y), correct + int(parts[-1]["correct"].sum())
        if progress:
            progress(total, correct)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _scores(draws, y):
    log_p = log_mean_probability(draws)
    found = {
        "correct": (log_p.argmax(-1) == y).double(), "confidence": log_p.amax(-1).exp(),
        "nll": negative_log_likelihood(draws, y), "brier": brier_score(draws, y),
        "entropy": _entropy(log_p), "expected_entropy": expected_entropy(draws),
        "mutual_information": mutual_information(draws), "variation_ratio": variation_ratio(draws),
    }
    return {name: values.cpu() for name, values in found.items()}


def summary(scores: dict[str, torch.Tensor]) -> dict:
    """The means over images of what `scores` tells, as columns of a row, with the accuracy and the calibration error."""
    accuracy = accuracy_fields(int(scores["correct"].sum()), len(scores["correct"]))
    return accuracy | {name: scores[name].mean().item() for name in _MEANS} | {
        "calibration_error": calibration_error(reliability(scores["confidence"], scores["correct"]))}


def reliability(confidence: torch.Tensor, correct: torch.Tensor, num_bins: int = NUM_BINS) -> list[dict]:
    """The bins of a reliability diagram that hold images: rows of left, right, num_in_bin, confidence and accuracy (Guo et
    al. 2017).

    confidence (N,) in [0, 1], correct (N,) of 0 and 1. The bins (left, right] are of equal width; confidence and accuracy
    are the means in the bin, the accuracy with its 95% Wilson interval.
    """
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)
    places, rows = torch.bucketize(confidence.double(), edges[1:-1]), []
    for place in places.unique().tolist():
        here = places == place
        fields = accuracy_fields(int(correct[here].sum()), int(here.sum()))
        rows.append({"left": edges[place].item(), "right": edges[place + 1].item(), "num_in_bin": fields.pop("num_examples"),
                     "confidence": confidence[here].mean().item(), **fields})
    return rows


def calibration_error(bins: list[dict]) -> float:
    """The expected calibration error of the bins of `reliability`: mean |accuracy - confidence|, by images, in [0, 1]."""
    total = sum(row["num_in_bin"] for row in bins)
    return sum(row["num_in_bin"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / total


def detection(clean: torch.Tensor, other: torch.Tensor) -> dict:
    """How well a score tells `other` images, where it should be higher, from `clean` ones; both (N,).

    auroc: the chance that one of `other` has the higher score, ties as a half, with its 95% interval (`intervals`), as
    if the images were different ones. aupr: the average precision, `other` as positives; by chance it is their
    share. Numbers that are not defined, for want of images, are None.
    """
    means = {f"mean_{name}": each.mean().item() if len(each) else None for name, each in (("clean", clean), ("other", other))}
    found = {"num_positives": len(other), **means}
    if not len(clean) or not len(other):
        return found | dict.fromkeys(("auroc", "auroc_low", "auroc_high", "aupr"))
    from sklearn.metrics import average_precision_score, roc_auc_score  # here: other verbs need not wait for it
    labels = torch.cat([torch.zeros(len(clean)), torch.ones(len(other))]).numpy()
    values = torch.cat([clean, other]).numpy()
    auroc = float(roc_auc_score(labels, values))
    low, high = auroc_interval(auroc, len(other), len(clean))
    return found | {"auroc": auroc, "auroc_low": low, "auroc_high": high,
                    "aupr": float(average_precision_score(labels, values))}


def rejection(score: torch.Tensor, correct: torch.Tensor, rejected: Iterable[float]) -> list[dict]:
    """Rows of the accuracy on what is kept when the share `rejected` in [0, 1) of the highest scores is refused an answer.

    score, correct (N,). At least one image is kept. Where images tie at the border, the
    accuracy is the mean over which of them are kept.
    """
    return [{"rejected": share, **_kept(score, correct, max(1, round((1 - share) * len(score))))} for share in rejected]


def _kept(score, correct, num_kept):
    border = score.sort().values[num_kept - 1]
    below, tied = score < border, score == border
    num_tied = num_kept - int(below.sum())
    fields = accuracy_fields((correct[below].sum() + num_tied * correct[tied].double().mean()).item(), num_kept)
    return {"num_kept": fields.pop("num_examples"), **fields}


@dataclass(frozen=True)
class ConfidentError:
    """The loss of an attacker who must not be seen: -log p_y + confidence_weight * log max_{j != y} p_j, (B, K), (B,) -> (B,).

    Wrong, and sure of the wrong class. As that class's probability nears 1, the entropy nears 0, and with it the mutual
    information, which is never above it. 0 gives the cross-entropy, 1 the margin of the logits. For `PGD` with
    average="probability", so that p is the averaged prediction, whose entropy the defender looks at.

    Raises InputError for a negative or infinite confidence_weight.
    """

    confidence_weight: float = 3.0

    def __post_init__(self) -> None:
        check_number("confidence_weight", self.confidence_weight)

    def __call__(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        of_label, of_wrong = true_and_other(logits.log_softmax(-1), y)
        return self.confidence_weight * of_wrong - of_label


def _entropy(log_p):
    return torch.special.entr(log_p.exp()).sum(-1)
