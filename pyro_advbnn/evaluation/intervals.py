"""95% intervals (low, high) of what was measured on some images of many. No tensors here."""
import math
from statistics import NormalDist

Z95 = 1.959964


def widening(comparisons):
    """The factor by which an interval is wider that holds for `comparisons` >= 1 at once, the most extreme too (Bonferroni)."""
    return NormalDist().inv_cdf(1 - 0.025 / comparisons) / Z95


def wilson_interval(correct, total):
    """The Wilson score interval of a proportion, in [0, 1] (Wilson 1927)."""
    p, z = correct / total, Z95
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def difference_interval(share, other, comparisons=1):
    """The interval of a proportion less another of other images; each is (share, low, high) with its Wilson interval.

    Method 10 of Newcombe (Stat. Med. 17, 1998, 873-890), times the `widening` for the number of comparisons.
    """
    difference, factor = share[0] - other[0], widening(comparisons)
    return (difference - factor * math.hypot(share[0] - share[1], other[2] - other[0]),
            difference + factor * math.hypot(share[2] - share[0], other[0] - other[1]))


def paired_difference_interval(lost, won, total, comparisons=1):
    """The interval of a proportion less another of the same `total` images.

    lost: how many count for the first alone, won: for the second alone. Of Bonett and Price (2012), who add one image to each
    of these; times the `widening` for the number of comparisons.
    """
    lost, won, total = lost + 1, won + 1, total + 2
    mean = (lost - won) / total
    half = widening(comparisons) * Z95 * math.sqrt((lost + won) / total - mean**2) / math.sqrt(total)
    return mean - half, mean + half


def auroc_interval(auroc, num_positives, num_negatives):
    """The score interval of an AUROC in [0, 1]: method 5 of Newcombe (Stat. Med. 25, 2006, 559-573).

    It holds every t with |auroc - t| <= z sqrt(V(t)), where, with M = (m + n) / 2 - 1 of m and n images,
    V(t) = t (1 - t) (1 + M (1 - t) / (2 - t) + M t / (1 + t)) / (m n) is the variance of Hanley and McNeil (1982) at t, not at
    what was measured: there it is 0 where the AUROC is 0 or 1. With one image of each kind it is Wilson's of a proportion.
    """
    def holds(t):
        spread = (num_positives + num_negatives) / 2 - 1
        variance = t * (1 - t) * (1 + spread * ((1 - t) / (2 - t) + t / (1 + t))) / (num_positives * num_negatives)
        return abs(auroc - t) <= Z95 * math.sqrt(variance)

    return _border(holds, auroc, 0.0), _border(holds, auroc, 1.0)


def _border(holds, inside, end):
    """Where, between inside and end, `holds` ceases to, by bisection; end itself where inside is it."""
    if inside == end:
        return end
    for _ in range(60):
        middle = (inside + end) / 2
        inside, end = (middle, end) if holds(middle) else (inside, middle)
    return inside


def transfer_rate(clean, transferred, white_box, num_examples):
    """(rho, ""): rho(A->B) = (Acc[B] - Acc[B|A]) / (Acc[B] - Acc[B|B]), Eq. (14); or (None, why it means nothing).

    The three accuracies lie in [0, 1], each of num_examples images. rho means nothing where the 95% interval of the drop
    Acc[B] - Acc[B|B] holds 0, taking the two as independent: they are of the same images, so that their difference
    varies less, and the rule errs towards saying nothing.
    """
    drop = clean - white_box
    error = Z95 * math.sqrt((clean * (1 - clean) + white_box * (1 - white_box)) / num_examples)
    if drop <= error:
        return None, f"drop {100 * drop:.1f} ± {100 * error:.1f} points"
    return (clean - transferred) / drop, ""
