"""What the checks of an evaluation look at, an `Examination`, and what each of them finds, a `Finding`.

A finding is judged by the 95% interval of the images on which two attacks differ: a claim such as "twice the steps changes
nothing" held where the interval of the difference stays within TOLERANCE; it did not where the interval lies beyond it.
"""
from dataclasses import dataclass

import torch

from pyro_advbnn.attacks.modes import is_random
from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.attacks.surrogates import surrogate
from pyro_advbnn.evaluation.accuracy import accuracy_fields, attack_images, predict
from pyro_advbnn.evaluation.inputs import RepeatableBatches, check_classifier
from pyro_advbnn.evaluation.intervals import half_width, paired_difference_interval
from pyro_advbnn.system.errors import check_at_least, check_number
from pyro_advbnn.system.random_streams import separate_randomness

HELD, FAILED, UNKNOWN, UNFIT = "held", "did not hold", "could not tell", "does not apply"
TOLERANCE, NEAR_ZERO = 0.02, 0.05                        # of all images


class Examination:
    """What the checks look at: a classifier, images, and the attack whose figure is to be trusted.

    batches: an iterable of (x (B, C, H, W) in [0, 1], y (B,)) that can be gone through again, in the same order. epsilon:
    l_inf radius > 0. The attack under test is PGD with num_steps steps of 2.5 epsilon / num_steps and attack_samples draws
    per gradient; predictions average num_samples draws. transfer: a module whose attacked images are tried on this one;
    default the network at the posterior's mean, for a random classifier without one a fixed draw. paper_step: that of the
    paper's attack, 20 steps with one draw per gradient; default epsilon / 8. Every attack on a batch has a random stream of
    its own, made from `seed`.

    Raises InputError for settings out of range, and for images, labels and modules that are not fit (see `inputs`).
    """

    def __init__(self, classifier, batches, *, epsilon, num_steps=20, attack_samples=20, num_samples=20, num_queries=500,
                 transfer=None, paper_step=None, seed=0):
        for name, value in (("num_steps", num_steps), ("attack_samples", attack_samples), ("num_samples", num_samples),
                            ("num_queries", num_queries)):
            check_at_least(name, value, 1)
        check_number("epsilon", epsilon, high=1, above=True)
        self.batches = RepeatableBatches(classifier, batches)
        self.classifier, self.epsilon, self.num_samples = classifier, epsilon, num_samples
        self.num_queries, self.transfer, self.seed = num_queries, transfer, seed
        some_images = self.batches.some_images(16)
        self.num_classes, self.is_random = check_classifier(classifier, some_images), is_random(classifier, some_images)
        self.attack = PGD(epsilon, None, num_steps, attack_samples if self.is_random else 1)
        self.papers_attack = PGD(epsilon, paper_step, 20)
        self._known = {}

    def correct(self, attack, through=None, judge=None):
        """Whether the averaged prediction is right on each attacked image, a tensor (N,) of booleans.

        through: the classifier that is attacked; judge: the one that predicts; default for both: the one examined.
        What was measured once is not measured again.
        """
        if (attack, through, judge) not in self._known:
            self._known[attack, through, judge] = self._measured(attack, through, judge)
        return self._known[attack, through, judge]

    def _measured(self, attack, through, judge):
        judge = self.classifier if judge is None else judge
        through = judge if through is None else through
        found = []
        for number, (x, y) in enumerate(self.batches):
            with separate_randomness(self.seed + number):
                x_adv = attack_images(attack, through, x, y)
                found.append(predict(judge, x_adv, num_samples=self.num_samples).argmax(-1) == y)
        return torch.cat(found)

    def accuracy(self, attack):
        """The columns of a row that come out under an attack."""
        correct = self.correct(attack)
        return accuracy_fields(correct.sum().item(), len(correct))

    def draw(self):
        """The classifier with one draw fixed."""
        with separate_randomness(self.seed):
            return surrogate(self.classifier, "pool:1")

    def stand_in(self):
        """The classifier to transfer from, or None."""
        if self.transfer is not None:
            return self.transfer
        if hasattr(self.classifier, "posterior"):
            return surrogate(self.classifier, "mean")
        return self.draw() if self.is_random and hasattr(self.classifier, "draw") else None


@dataclass(frozen=True)
class Finding:
    """verdict: one of HELD, FAILED, UNKNOWN, UNFIT; measured and expected: in words, with the numbers."""

    verdict: str
    measured: str
    expected: str


def no_loss(base, other, measured, reverse=False, comparisons=1):
    """Whether accuracy under `other` is not below that under `base` (reverse: not above) by more than TOLERANCE.

    base, other: (N,), whether the same images are answered right. comparisons: of how many `other` is the most extreme.
    """
    lost, won = (base & ~other).sum().item(), (other & ~base).sum().item()
    low, high = paired_difference_interval(*((won, lost) if reverse else (lost, won)), len(base), comparisons)
    return Finding(verdict(low, high, TOLERANCE), f"{measured}; they differ on {lost} + {won} of {len(base)} images",
                   f"{'no more' if reverse else 'no loss of more'} than {100 * TOLERANCE:g} points")


def rarely(found, measured, expected):
    """Whether what was found of images, (N,) of booleans, is true of at most NEAR_ZERO of all."""
    share = found.float().mean().item()
    error = half_width(share, len(found))
    return Finding(verdict(share - error, share + error, NEAR_ZERO), measured, expected)


def verdict(low, high, bound):
    """The verdict on the claim that a number is at most `bound`, by its 95% interval."""
    return HELD if high <= bound else FAILED if low > bound else UNKNOWN


def percent(share):
    """A share of the images in words; of a tensor of booleans the share that is true."""
    return f"{100 * float(share.float().mean() if isinstance(share, torch.Tensor) else share):.1f} %"
