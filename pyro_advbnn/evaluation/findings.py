"""What a check of an evaluation found, and how it is judged: by the 95% interval of the images on which two attacks differ.

A claim such as "twice the steps changes nothing" held where the interval of the difference stays within TOLERANCE; it did not
where the interval lies beyond it.
"""
from dataclasses import dataclass

from pyro_advbnn.evaluation.intervals import half_width, paired_difference_interval

HELD, FAILED, UNKNOWN, UNFIT = "held", "did not hold", "could not tell", "does not apply"
TOLERANCE = 0.02                                         # of all images


@dataclass(frozen=True)
class Finding:
    """verdict: one of HELD, FAILED, UNKNOWN, UNFIT; measured and expected: in words, with the numbers."""

    verdict: str
    measured: str
    expected: str


def no_loss(base, other, measured, reverse=False, comparisons=1):
    """Whether accuracy under `other` is not below that under `base` (reverse: not above) by more than TOLERANCE.

    comparisons: of how many `other` is the most extreme (`intervals.widening`).
    """
    low, high = difference(base, other, comparisons)
    if reverse:
        low, high = -high, -low
    lost, won = (base & ~other).sum().item(), (other & ~base).sum().item()
    return Finding(judged(low, high, TOLERANCE), f"{measured}; they differ on {lost} + {won} of {len(base)} images",
                   f"{'no more' if reverse else 'no loss of more'} than {points(TOLERANCE)}")


def difference(base, other, comparisons=1):
    """The 95% interval (low, high) of accuracy under `base` less that under `other`, from the images where they differ."""
    return paired_difference_interval((base & ~other).sum().item(), (other & ~base).sum().item(), len(base),
                                      comparisons)


def proportion(correct):
    """(share, half of its 95% interval) of a tensor of booleans."""
    share = correct.float().mean().item()
    return share, half_width(share, len(correct))


def judged(low, high, bound):
    """The verdict on the claim that a number is at most `bound`, by its 95% interval."""
    return HELD if high <= bound else FAILED if low > bound else UNKNOWN


def worst(verdicts):
    """The verdict on a claim of several parts, each with its own."""
    return next(verdict for verdict in (FAILED, UNKNOWN, HELD) if verdict in verdicts)


def percent(share):
    """A share of the images in words."""
    return f"{100 * float(share):.1f} %"


def points(share):
    """A difference of two shares in words."""
    return f"{100 * share:g} points"
