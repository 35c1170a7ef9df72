"""Averaged predictions and accuracy under attack, for any module that maps images to logits."""
from contextlib import contextmanager

import torch

from pyro_advbnn.arguments import check_at_least
from pyro_advbnn.attacks import eval_mode, frozen
from pyro_advbnn.errors import InputError
from pyro_advbnn.inputs import (
    check_attacked,
    check_classifier,
    check_images,
    check_labels,
    check_probabilities,
    logits_of,
    pair,
)
from pyro_advbnn.intervals import wilson_interval


@torch.no_grad()
def predict(classifier, x, *, num_samples=20):
    """Class probabilities (B, classes): the mean softmax over num_samples >= 1 forward calls, in eval mode, float32.

    Raises InputError for what is not logits (B, classes), and for predictions that are NaN.
    """
    check_at_least("num_samples", num_samples, 1)
    with eval_mode(classifier), frozen(classifier):      # frozen: exp(log_std) is computed once for all draws
        total = logits_of(classifier, x).softmax(-1)
        for _ in range(num_samples - 1):
            total += logits_of(classifier, x).softmax(-1)
    check_probabilities(total)
    return total / num_samples


def robust_accuracy(target, batches, attack=None, *, source=None, num_samples=20, progress=None):
    """One row: the accuracy of target's averaged prediction on images attacked through `source` (default: target).

    batches: an iterable of (x (B, C, H, W) in [0, 1], y (B,)). attack: a callable (classifier, x, y) -> x_adv such as
    `attacks.PGD(...)`, or None for clean images. progress: called with the number of images done and of those correct.
    Returns the columns of `tables.ROW_FIELDS` that are known here; accuracy in [0, 1] with its 95% Wilson interval.

    Raises InputError where batches is empty, and for images, labels, attacked images and modules that are not fit; see
    `inputs`. Modules are tried on the first two images, which draws nothing from torch's global generators.
    """
    batches = _fit(batches, target, target if source is None else source, attack)
    correct, total = count_correct(target, batches, attack, source=source, num_samples=num_samples, progress=progress)
    return {**attack_fields(attack), "num_samples": num_samples, **accuracy_fields(correct, total)}


def count_correct(target, batches, attack=None, *, source=None, num_samples=20, progress=None):
    """(correct, total): the counts behind `robust_accuracy`, also of no images."""
    correct = total = 0
    for x, y in batches:
        x_adv = x
        if attack is not None:
            x_adv = attack(target if source is None else source, x.clone(), y.clone())   # it may work in place
            check_attacked(x_adv, x, attack)
        correct += int((predict(target, x_adv, num_samples=num_samples).argmax(-1) == y).sum())
        total += len(y)
        if progress:
            progress(total, correct)
    return correct, total


def _fit(batches, target, source, attack):
    """The batches, each once it is found fit for the two modules, and they for it."""
    num_classes = None
    for x, y in map(pair, batches):
        check_images(x)
        if num_classes is None:
            num_classes = check_classifier(source, x[:2], gradient=getattr(attack, "uses_gradient", False))
            if target is not source:
                num_classes = min(num_classes, check_classifier(target, x[:2], gradient=False))
        check_labels(y, num_classes, x)
        yield x, y


def accuracy_fields(correct, total):
    """The columns of a row that come out: the share of `correct` in `total` >= 1 with its 95% Wilson interval.

    Raises InputError where total is 0.
    """
    if not total:
        raise InputError("there are no images to evaluate on")
    low, high = wilson_interval(correct, total)
    return {"num_examples": total, "accuracy": correct / total, "accuracy_low": low, "accuracy_high": high}


def attack_fields(attack):
    """The columns of a row that describe an attack, as far as it tells them."""
    if attack is None:
        return {"attack": "none", "epsilon": 0.0}
    names = ("epsilon", "num_steps", "step_size", "attack_samples", "reaches_ball")
    return {"attack": getattr(attack, "name", getattr(attack, "__name__", type(attack).__name__)),
            **{name: getattr(attack, name) for name in names if hasattr(attack, name)}}


@contextmanager
def own_stream():
    """torch's global generators inside begin anew from one draw of the stream outside, which moves on by that draw alone.

    What is drawn inside, however much, then changes nothing that comes after.
    """
    with separate_randomness(int(torch.randint(2**63 - 1, ()))):
        yield


@contextmanager
def undisturbed():
    """torch's global generators afterwards stand where they stood before."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        yield


@contextmanager
def separate_randomness(seed):
    """torch's global generators seeded inside, and back where they were afterwards: measuring changes no training."""
    with undisturbed():
        torch.manual_seed(seed)
        yield
