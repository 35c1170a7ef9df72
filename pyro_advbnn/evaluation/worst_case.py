"""Accuracy in the worst case over several attacks, image by image, for classifiers that may be random.

An image counts as broken only where the averaged prediction over fresh draws is wrong on it. Which of its attacked images
stands for it is judged on one set of draws, and whether that one is broken is counted on another. So no attack gains by
trying often on lucky draws, which is how AutoAttack's version for random networks errs. An image is
removed from later attacks once the judging draws find it broken by SURE standard errors: to remove it on a toss-up, which the
counting draws may call standing, would favour the defender. Less than ENOUGH_DRAWS draws of a random classifier are never sure.
"""
import hashlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from pyro_advbnn.attacks.attack import kind
from pyro_advbnn.attacks.modes import draws_anew
from pyro_advbnn.evaluation.accuracy import accuracy_fields, attack_images, logits_of_draws
from pyro_advbnn.evaluation.inputs import RepeatableBatches
from pyro_advbnn.evaluation.intervals import paired_difference_interval
from pyro_advbnn.system.errors import InputError, check_at_least
from pyro_advbnn.system.random_streams import separate_randomness

CLEAN = "none"
ENOUGH_DRAWS, SURE = 5, 4


def worst_case_accuracy(classifier: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
                        attacks: Mapping[str, Callable], *, num_samples: int = 20, seed: int = 0) -> dict:
    """The share of images that no attack breaks, as a row: accuracy in [0, 1] with its 95% Wilson interval, and the spread.

    batches: an iterable of (x (B, C, H, W) in [0, 1], y (B,)) that can be gone through again, in the same order. attacks:
    {name: callable (classifier, x, y) -> x_adv}, tried in this order on what is left; clean images come first of themselves.
    The columns are those of `summary`.

    Raises InputError for images, labels, attacked images and modules that are not fit (see `inputs`), attacks without names
    or with the name none, and num_samples below 1.
    """
    rows = [row for _, found in attacked(classifier, batches, attacks, num_samples=num_samples, seed=seed) for row in found]
    return summary(rows)


def attacked(classifier, batches, attacks, *, num_samples=20, seed=0, known=None, stop=None):
    """A generator of (name of the attack, its rows on one batch), attack by attack, batch by batch, empty batches left out.

    A row: attack, index of the image, label, and what `judge` says of the attacked image by the draws that judge
    (judged_margin; leaves: whether they are sure) and by those that count (margin, broken, wrong_draws, predicted), seconds.
    Each attack on each batch draws from a stream of its own, so that what is known need not be computed again.
    known: a callable (name, indices) that gives those of these rows that there are. stop: a callable that is asked
    before each batch of an attack is computed, and ends it all where it says True; clean images are always finished.
    """
    check_at_least("num_samples", num_samples, 1)
    if not isinstance(attacks, Mapping):
        raise InputError(f"attacks must be a mapping, {{name: attack}}, got {kind(attacks)}")
    if CLEAN in attacks:
        raise InputError(f"an attack must have another name than {CLEAN!r}, which means clean images")
    batches, removed = RepeatableBatches(classifier, batches), set()
    may_remove = num_samples >= ENOUGH_DRAWS or not draws_anew(classifier, batches.some_images(16))
    for name, attack in {CLEAN: None, **attacks}.items():
        first = 0
        for number, (x, y) in enumerate(batches):
            begin, first = first, first + len(y)
            indices = [index for index in range(begin, first) if index not in removed]
            if not indices:
                continue
            rows = list(known(name, indices)) if known else []
            told = {row["index"] for row in rows}
            new = [index - begin for index in indices if index not in told]
            if new:
                if attack is not None and stop and stop():
                    return
                with separate_randomness(_stream(seed, name, number)):
                    rows += _rows(classifier, name, attack, x[new], y[new], [begin + i for i in new], num_samples, may_remove)
            removed |= {row["index"] for row in rows if row["leaves"]}
            yield name, rows


def judge(classifier, x, y, num_samples):
    """What num_samples >= 1 fresh draws say of images x (B, C, H, W) of labels y, each (B,).

    margin: the mean softmax's lead of the label over the best other class, in [-1, 1]. broken: whether the averaged
    prediction is wrong. sure: broken by SURE standard errors of the margin, which one draw alone does not tell.
    wrong_draws: the share of draws that are wrong by themselves. predicted: the class of the averaged prediction.

    Raises InputError for num_samples below 1, and for what is not logits.
    """
    draws = logits_of_draws(classifier, x, num_samples).softmax(-1)
    mean = draws.mean(0)
    best_other = mean.scatter(1, y[:, None], -1.0).argmax(-1)
    leads = _of_class(draws, y) - _of_class(draws, best_other)
    margin, error = leads.mean(0), leads.std(0, correction=min(1, num_samples - 1)) / math.sqrt(num_samples)
    predicted = mean.argmax(-1)
    return {"margin": margin, "broken": predicted != y, "sure": (predicted != y) & (margin + SURE * error <= 0),
            "wrong_draws": (draws.argmax(-1) != y).double().mean(0), "predicted": predicted}


def _of_class(draws, classes):
    """The probability (n, B) of one class per image in draws (n, B, classes)."""
    return torch.take_along_dim(draws, classes[None, :, None], 2)[..., 0]


def worst_rows(rows):
    """{index: the row that stands for an image}: that of the lowest margin by the draws that judge."""
    by_image = defaultdict(list)
    for row in rows:
        by_image[row["index"]].append(row)
    return {index: min(found, key=lambda row: row["judged_margin"]) for index, found in by_image.items()}


def summary(rows):
    """The row of the worst case from `attacked`'s: accuracy with its interval, beside it what the draws say by themselves.

    unbroken: the share of images that none of their rows breaks by the draws that count. It errs against a random
    classifier, as many rows have many unlucky draws; the accuracy errs for it, as the draws that judge may choose another row
    than the worst. single_draw_accuracy: the mean accuracy of one draw on the rows that the accuracy counts; undecided: the
    share of these on which the draws that count do not agree.
    """
    found = list(worst_rows(rows).values())
    correct = sum(not row["broken"] for row in found)
    broken = {row["index"] for row in rows if row["broken"]}
    return accuracy_fields(correct, len(found)) | {
        "unbroken": (len(found) - len(broken)) / len(found),
        "single_draw_accuracy": 1 - sum(row["wrong_draws"] for row in found) / len(found),
        "undecided": sum(0 < row["wrong_draws"] < 1 for row in found) / len(found)}


def gain(rows, control_rows, comparisons=1):
    """The row of a worst case beside a control's, from `attacked`'s rows of both on the same images.

    gain: the share of images that stand less that of the control, in [-1, 1], with its paired interval for `comparisons` at
    once.
    """
    own, control = ({index: not row["broken"] for index, row in worst_rows(each).items()} for each in (rows, control_rows))
    total, won = len(own), sum(own[index] > control[index] for index in own)
    lost = sum(own[index] < control[index] for index in own)
    low, high = paired_difference_interval(won, lost, total, comparisons)
    return {"comparisons": comparisons, "num_examples": total, "accuracy": sum(own.values()) / total,
            "control_accuracy": sum(control.values()) / total, "gain": (won - lost) / total, "gain_low": low, "gain_high": high}


def course(rows, names):
    """One row for each attack of `names`: images that it was tried on, those that left by it, and the accuracy in the worst
    case with all up to it."""
    found, tried = [], []
    for name in names:
        own = [row for row in rows if row["attack"] == name]
        tried += own
        found.append({"attack": name, "num_attacked": len(own), "num_removed": sum(bool(row["leaves"]) for row in own),
                      "seconds": sum(row["seconds"] for row in own), **(summary(tried) if tried else {})})
    return found


def unfinished(rows, names, num_images):
    """The attacks of `names`, in their order, that have not been tried on all of num_images that were left for them."""
    removed, found = set(), []
    for name in (CLEAN, *names):
        own = [row for row in rows if row["attack"] == name]
        found += [name] if len(own) < num_images - len(removed) else []
        removed |= {row["index"] for row in own if row["leaves"]}
    return found


def _rows(classifier, name, attack, x, y, indices, num_samples, may_remove):
    began = time.perf_counter()
    x_adv = attack_images(attack, classifier, x, y)
    judging = judge(classifier, x_adv, y, num_samples)
    counted = judge(classifier, x_adv, y, num_samples)   # by draws of its own
    seconds = (time.perf_counter() - began) / len(y)
    columns = {"index": indices, "label": y.tolist(), "judged_margin": judging["margin"].tolist(),
               "leaves": (judging["sure"] & may_remove).int().tolist(), "margin": counted["margin"].tolist(),
               "broken": counted["broken"].int().tolist(), "wrong_draws": counted["wrong_draws"].tolist(),
               "predicted": counted["predicted"].tolist(), "seconds": [seconds] * len(y)}
    return [{"attack": name, **dict(zip(columns, values))} for values in zip(*columns.values())]


def _stream(seed, name, number):
    """The seed of one attack's stream on one batch."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name} {number}".encode()).digest()[:7])
