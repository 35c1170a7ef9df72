"""Averaged predictions and accuracy under attack, for any module that maps images to logits."""
import itertools
from collections import deque
from collections.abc import Callable, Iterable

import torch
from torch import nn

from pyro_advbnn.attacks.attack import check_images
from pyro_advbnn.attacks.modes import eval_mode, frozen
from pyro_advbnn.evaluation.inputs import check_attacked, check_finite, check_probabilities, checked_batches, logits_of
from pyro_advbnn.evaluation.intervals import wilson_interval
from pyro_advbnn.system.errors import check_at_least


def predict(classifier: nn.Module, x: torch.Tensor, *, num_samples: int = 20) -> torch.Tensor:
    """Class probabilities (B, classes): the mean softmax over num_samples >= 1 forward calls, in eval mode, float32.

    Raises InputError for images x that are none in [0, 1], for what is not logits (B, classes), and for predictions that are
    NaN.
    """
    check_images(x)
    return mean_probabilities(classifier, x, num_samples)


def mean_probabilities(classifier, x, num_samples):
    """`predict` for images that are known to be fit: it reads none of their pixels."""
    check_at_least("num_samples", num_samples, 1)
    total, = deque(sums_of_draws(classifier, x, num_samples), maxlen=1)
    check_probabilities(total)
    return total / num_samples


@torch.no_grad()
def sums_of_draws(classifier, x, num_samples):
    """A generator of the sums (B, classes) of the softmax of the first 1, 2, ..., num_samples forward calls."""
    with eval_mode(classifier), frozen(classifier):      # frozen: exp(log_std) is computed once for all draws
        yield from itertools.accumulate(logits_of(classifier, x).softmax(-1) for _ in range(num_samples))


@torch.no_grad()
def logits_of_draws(classifier, x, num_samples):
    """The logits of each of num_samples >= 1 forward calls in eval mode: (num_samples, B, classes), float32.

    Raises InputError for what is not logits (B, classes), and where they are not finite.
    """
    check_at_least("num_samples", num_samples, 1)
    with eval_mode(classifier), frozen(classifier):
        logits = torch.stack([logits_of(classifier, x) for _ in range(num_samples)])
    check_finite(logits)
    return logits


def robust_accuracy(target: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], attack: Callable | None = None, *,
                    source: nn.Module | None = None, num_samples: int = 20, progress: Callable | None = None) -> dict:
    """One row: the accuracy of target's averaged prediction on images attacked through `source` (default: target).

    batches: an iterable of (x (B, C, H, W) in [0, 1], y (B,)). attack: a callable (classifier, x, y) -> x_adv such as
    `PGD(...)`, or None for clean images. progress: called with the number of images done and of those correct.
    Returns the columns of `csv_tables.ROW_FIELDS` that are known here; accuracy in [0, 1] with its 95% Wilson interval.

    Raises InputError where batches is empty, and for images, labels, attacked images and modules that are not fit; see
    `inputs`. Modules are tried on at most the first 16 images, which draws nothing from torch's global generators.
    """
    check_at_least("num_samples", num_samples, 1)
    batches = checked_batches(batches, [target if source is None else source, target])
    correct, total = count_correct(target, batches, attack, source=source, num_samples=num_samples, progress=progress)
    return {**attack_fields(attack), "num_samples": num_samples, **accuracy_fields(correct, total)}


def count_correct(target, batches, attack=None, *, source=None, num_samples=20, progress=None, class_weights=None):
    """(correct, total): the counts behind `robust_accuracy`, also of no images.

    class_weights: (classes,), how much an image counts, by its class; the counts are then sums of weights.
    """
    correct = total = 0
    for x, y in batches:
        x_adv = attack_images(attack, target if source is None else source, x, y)
        right = mean_probabilities(target, x_adv, num_samples).argmax(-1) == y
        counts = torch.ones_like(y) if class_weights is None else class_weights.double()[y.long()]
        correct += (right * counts).sum().item()
        total += counts.sum().item()
        if progress:
            progress(total, correct)
    return correct, total


def attack_images(attack, classifier, x, y):
    """The images that `attack` makes of x (B, C, H, W) through the classifier; x itself where it is None.

    Raises InputError for what is not fit, or too far from x; see `inputs.check_attacked`.
    """
    if attack is None:
        return x
    x_adv = attack(classifier, x.clone(), y.clone())     # it may work in place
    check_attacked(x_adv, x, attack)
    return x_adv


def accuracy_fields(correct, total):
    """The columns of a row that come out: the share of `correct` in `total` >= 1 with its 95% Wilson interval."""
    low, high = wilson_interval(correct, total)
    return {"num_examples": total, "accuracy": correct / total, "accuracy_low": low, "accuracy_high": high}


def attack_fields(attack):
    """The columns of a row that describe an attack, as far as it tells them."""
    if attack is None:
        return {"attack": "none", "epsilon": 0.0}
    names = ("epsilon", "num_steps", "step_size", "attack_samples", "reaches_ball")
    return {"attack": getattr(attack, "name", getattr(attack, "__name__", type(attack).__name__)),
            **{name: getattr(attack, name) for name in names if hasattr(attack, name)}}
