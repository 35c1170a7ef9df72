"""Whether our numbers agree with what the paper says: each verdict is computed from rows and their intervals. No torch."""
import math
from itertools import takewhile

from pyro_advbnn.cli.text_tables import NONE, fraction
from pyro_advbnn.evaluation.intervals import difference_interval

NEAR = 0.05                                              # of rho: the paper gives its values as approximate


def difference(before, after, comparisons=1):
    """(after - before, low, high): the difference of two rows' accuracies with its 95 % interval, in points of percent.

    From the Wilson intervals of both (Newcombe 1998, method 10), as if of different images. They are of the same images, so
    that the difference varies less: the interval is too wide rather than too narrow. It says nothing about training anew.
    comparisons: of how many it is the most extreme (`intervals.widening`).
    """
    a, b = [(row["accuracy"], row["accuracy_low"], row["accuracy_high"]) for row in (after, before)]
    low, high = difference_interval(a, b, comparisons)
    return 100 * (a[0] - b[0]), 100 * low, 100 * high


def check_rho(rho, published):
    """Whether rho lies within (low, high) as published, or not farther off than NEAR."""
    if rho is None or published is None:
        return NONE
    low, high = published
    if rho < low - NEAR:
        return "no, lower"
    return "no, higher" if rho > high + NEAR else "yes"


def check_no_change(x, least, most, rows):
    """The change from the first row whose x the paper holds for enough, least to most, to the last; whether it can be none."""
    first = next((row for row in rows if least <= row[x] <= most), rows[-1])
    if first is rows[-1]:
        return NONE, NONE
    text, low, high = _change(first, rows[-1], f"{first[x]:g}", f"{rows[-1][x]:g}")
    return text, "yes" if low <= 0 <= high else "no, lower" if high < 0 else "no, higher"


def _change(first, last, start, end, comparisons=1):
    """(text, low, high) of the difference of two rows."""
    change, low, high = difference(first, last, comparisons)
    texts = [f"{value:+.1f}" if abs(value) >= 0.05 else "0.0" for value in (change, low, high)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}], {start} to {end}", low, high


def check_pruning(rows):
    """The largest fraction up to which no accuracy is lost that the intervals could tell; agreement of the clean one."""
    if rows[0]["fraction"] != 0 or len(rows) == 1:
        return NONE, NONE
    *_, kept = takewhile(lambda row: difference(rows[0], row)[2] >= 0, rows)
    text = f"up to {kept['fraction']:g} no loss beyond the interval"
    asked = rows[0]["prune_by"] == "std" and not rows[0]["epsilon"]      # the paper says it of large standard deviations
    return text, ("yes" if kept["fraction"] > 0 else "no") if asked else NONE


def check_gradients(train, test):
    """Whether the norm on test images is larger than that on training images, beyond the interval of the difference."""
    half = math.hypot(*(row["l1_norm_high"] - row["l1_norm"] for row in (train, test)))
    return "yes" if test["l1_norm"] - train["l1_norm"] > half else "no"


def check_alpha(rows):
    """Whether the clean accuracy of the smallest alpha > 0 is above that of the largest; of one run for each alpha."""
    rows = [row for row in rows if row["alpha"]]
    if not 2 <= len({row["alpha"] for row in rows}) == len(rows):
        return NONE, NONE
    text, low, high = _change(rows[-1], rows[0], fraction(rows[-1]["alpha"]), fraction(rows[0]["alpha"]))
    if rows[0]["epsilon"]:
        return text, NONE
    return text, "yes" if low > 0 else "no" if high < 0 else "undecided"


def check_prior_std(rows):
    """Whether the highest accuracy can be told from the lowest, by an interval for all pairs at once.

    "auto" is not judged, nor what has several runs for one prior.
    """
    rows = [row for row in rows if row["prior_std"] != "auto"]
    if not 2 <= len({row["prior_std"] for row in rows}) == len(rows):
        return NONE, NONE
    first, *_, last = sorted(rows, key=lambda row: row["accuracy"])
    text, low, _ = _change(first, last, first["prior_std"], last["prior_std"], math.comb(len(rows), 2))
    return text, "yes" if low <= 0 else "no"


def count_modes(heights, *, window=5):
    """The number of modes of a histogram: maxima whose prominence is at least a tenth of the highest, once smoothed."""
    half = window // 2
    padded = [0.0] * half + list(heights) + [0.0] * half
    smooth = [sum(padded[i:i + window]) / window for i in range(len(heights))]
    least, count, rising, turn = max(smooth) / 10, 0, True, 0.0
    for height in [*smooth, 0.0]:
        turn = max(turn, height) if rising else min(turn, height)
        if abs(height - turn) >= least:                  # as far below the last peak, or above the last valley
            count, rising, turn = count + rising, not rising, height
    return count


def count_agreeing(lines):
    """How many of the lines of a table, which end in their verdicts, agree; as the end of a sentence."""
    decided = [line[-1] for line in lines if line[-1] != NONE]
    return f": {decided.count('yes')} of {len(decided)} agree" if decided else ": nothing to compare here"
