"""Many accuracies from one pass: over the draws of a prediction, over the steps of an attack, over targets of an attack.

Each batch draws from a stream of its own, and what is read off on the way leaves that stream where it was: a row is the same
whichever others are asked for with it.
"""
import copy
import math
from dataclasses import replace

import torch

from pyro_advbnn.attacks.losses import loss_and_gradient
from pyro_advbnn.attacks.modes import eval_mode, frozen
from pyro_advbnn.bayes.mixture import Mixture
from pyro_advbnn.evaluation.accuracy import accuracy_fields, attack_fields, attack_images, predict, sums_of_draws
from pyro_advbnn.evaluation.inputs import check_attacked, check_probabilities, checked_batches
from pyro_advbnn.evaluation.intervals import Z95
from pyro_advbnn.system.random_streams import own_stream, undisturbed


def ensemble_accuracies(target, batches, attack, counts, *, progress=None):
    """Rows of accuracy of predictions averaged over each number of draws in `counts`: one attack, max(counts) forwards.

    Fig. 5 (left). batches, attack, progress: as in `accuracy.robust_accuracy`. One row per distinct count, ascending;
    that of n averages the first n draws of the others.
    """
    counts = sorted(set(counts))

    def predictions(x, y):
        sums = sums_of_draws(target, attack_images(attack, target, x, y), counts[-1])
        for count, probabilities in enumerate(sums, 1):
            if count in counts:
                check_probabilities(probabilities)
                yield count, probabilities

    return list(_rows({count: (attack, count) for count in counts}, predictions, batches, [target], progress).values())


def steps_accuracies(target, batches, attack, counts, *, num_samples=20, progress=None):
    """Rows of accuracy after each number of steps in `counts`, all read off one run of the attack.

    Fig. 5 (right). attack: a `PGD` without restarts, whose own num_steps is not looked at; step_size stays as it is.
    One row per distinct count, ascending.
    """
    counts = sorted(set(counts))
    attacks = {count: replace(attack, num_steps=count) for count in counts}
    reader = copy.copy(target) if isinstance(target, Mixture) else target      # a mixture remembers whom the attack has visited

    def predictions(x, y):
        for count, x_adv in enumerate(attacks[counts[-1]].iterates(target, x, y)):
            if count in attacks:
                check_attacked(x_adv, x, attack)
                with undisturbed():
                    yield count, predict(reader, x_adv, num_samples=num_samples)

    asked = {count: (attacks[count], num_samples) for count in counts}
    return list(_rows(asked, predictions, batches, [target], progress).values())


def transfer_accuracies(source, targets, batches, attack, *, num_samples=20, progress=None):
    """{name: row of accuracy Acc[B|A]} of each target B on images attacked through source A, attacked once for all.

    targets: {name: classifier}. num_samples: draws averaged in a prediction, one number or {name: number}.
    """
    draws = num_samples if isinstance(num_samples, dict) else dict.fromkeys(targets, num_samples)

    def predictions(x, y):
        x_adv = attack_images(attack, source, x, y)
        for name, target in targets.items():
            with undisturbed():
                yield name, predict(target, x_adv, num_samples=draws[name])

    asked = {name: (attack, draws[name]) for name in targets}
    return _rows(asked, predictions, batches, [source, *targets.values()], progress)


def gradient_norms(classifier, batches, *, num_samples=1, progress=None):
    """The mean over images of the l_1 norm of the gradient of the loss by the image, with its 95% normal interval.

    What adversarial training regularises (Eq. 13): gamma times this is the loss that an l_inf attack of radius gamma can
    add, to first order. Of a random network the gradient is averaged over num_samples draws, before the norm.
    Returns num_samples, num_examples, l1_norm, l1_norm_low, l1_norm_high; nats per unit of brightness in [0, 1]. One image
    alone tells of no spread: its interval has no width.
    """
    norms = []
    for x, y in checked_batches(batches, [classifier]):
        with eval_mode(classifier), frozen(classifier):
            _, gradient = loss_and_gradient(classifier, x, y, attack_samples=num_samples)
            norms.append(gradient.double().abs().flatten(1).sum(1))
        if progress:
            progress(sum(map(len, norms)))
    norms = torch.cat(norms)
    mean, std = norms.mean().item(), norms.std(correction=min(1, len(norms) - 1)).item()
    half = Z95 * std / math.sqrt(len(norms))
    return {"num_samples": num_samples, "num_examples": len(norms), "l1_norm": mean, "l1_norm_low": mean - half,
            "l1_norm_high": mean + half}


def _rows(asked, predictions, batches, classifiers, progress):
    """{name: row} for asked {name: (attack, number of draws)}; predictions(x, y): a generator of (name, probabilities)."""
    correct, total = dict.fromkeys(asked, 0), 0
    for x, y in checked_batches(batches, classifiers):
        with own_stream():
            for name, probabilities in predictions(x, y):
                correct[name] += int((probabilities.argmax(-1) == y).sum())
        total += len(y)
        if progress:
            progress(total, sum(correct.values()) / len(correct))
    return {name: {**attack_fields(attack), "num_samples": num_samples, **accuracy_fields(correct[name], total)}
            for name, (attack, num_samples) in asked.items()}
