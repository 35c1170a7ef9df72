"""The warning signs of a broken evaluation, each measured and judged: held, did not hold, could not tell, does not apply.

After Carlini et al. (arXiv 1902.06705), Athalye et al. (arXiv 1802.00420) and, for random networks, Zimmermann (arXiv
1907.00895). Each check takes an `Examination` and gives a `Finding`; a new one is a function here and a row of CHECKS.

A finding is judged by the 95% interval of the images on which two attacks differ: a claim such as "twice the steps changes
nothing" held where the interval of the difference stays within TOLERANCE; it did not where the interval lies beyond it.
"""
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from pyro_advbnn.attacks.apgd import APGD
from pyro_advbnn.attacks.losses import loss_and_gradient, outcomes_together
from pyro_advbnn.attacks.modes import eval_mode, frozen, is_random
from pyro_advbnn.attacks.noise import RandomNoise
from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.attacks.square import Square
from pyro_advbnn.cli.text_tables import counted
from pyro_advbnn.evaluation.examination import Examination
from pyro_advbnn.evaluation.intervals import paired_difference_interval, wilson_interval
from pyro_advbnn.system.random_streams import separate_randomness

HELD, FAILED, UNKNOWN, UNFIT = "held", "did not hold", "could not tell", "does not apply"
TOLERANCE, NEAR_ZERO = 0.02, 0.05                        # of all images
COUNTS = (1, 2, 5, 10, 20, 50)                           # draws per gradient of the curve
RADII = (0.5, 1, 2, 4)                                   # times epsilon
LARGE_RADIUS = 0.5                                       # where every image can be made grey


@dataclass(frozen=True)
class Finding:
    """verdict: one of HELD, FAILED, UNKNOWN, UNFIT; measured and expected: in words, with the numbers."""

    verdict: str
    measured: str
    expected: str


def many_draws(examination: Examination) -> list[PGD]:
    """The attack with each number of draws per gradient in COUNTS: what one draw hides (Zimmermann)."""
    return [replace(examination.attack, attack_samples=count) for count in (COUNTS if examination.is_random else (1,))]


def large_radius(examination: Examination) -> Finding:
    """Accuracy reaches about 0 at a large radius."""
    correct = examination.correct(_at_radius(examination, LARGE_RADIUS))
    return rarely(correct, f"{percent(correct)} at radius {LARGE_RADIUS:g}", f"at most {percent(NEAR_ZERO)}")


def bigger_radius(examination: Examination) -> Finding:
    """A bigger radius never helps the defender."""
    radii = [0.0, *(factor * examination.epsilon for factor in RADII if factor * examination.epsilon <= 1)]
    found = [examination.correct(_at_radius(examination, radius)) for radius in radii]
    verdicts = [no_loss(smaller, bigger, "", reverse=True).verdict for smaller, bigger in zip(found, found[1:])]
    worst = next(verdict for verdict in (FAILED, UNKNOWN, HELD) if verdict in verdicts)
    return Finding(worst, ", ".join(f"{percent(correct)} at {radius:.4g}" for radius, correct in zip(radii, found)),
                   f"no rise by more than {100 * TOLERANCE:g} points")


def more_steps(examination: Examination) -> Finding:
    """Twice the steps change nothing."""
    twice = replace(examination.attack, num_steps=2 * examination.attack.num_steps)
    return _changes_nothing(examination, twice, f"{twice.num_steps} steps")


def random_starts(examination: Examination) -> Finding:
    """Random starts change nothing."""
    return _changes_nothing(examination, replace(examination.attack, random_start=True), "a random start")


def one_draw(examination: Examination) -> Finding:
    """The attack with one draw per gradient, as in the paper, is not weaker than that with many."""
    if not examination.is_random:
        return Finding(UNFIT, "nothing is random", "no loss by many draws")
    found = {attack.attack_samples: examination.correct(attack) for attack in many_draws(examination)}
    one, *counts = found
    strongest = min(counts, key=lambda count: found[count].sum())
    measured = (f"1 draw per gradient {percent(found[one])}, {strongest} draws {percent(found[strongest])}, the strongest of "
                f"{', '.join(map(str, counts))}")
    return no_loss(found[one], found[strongest], measured, comparisons=len(counts))


def enough_draws(examination: Examination) -> Finding:
    """More draws per gradient than the attack takes change nothing."""
    if not examination.is_random:
        return Finding(UNFIT, "nothing is random", "no loss by more draws")
    more = replace(examination.attack, attack_samples=5 * examination.attack.attack_samples // 2)
    return _changes_nothing(examination, more, counted(more.attack_samples, "draw", " per gradient"))


def stronger_attack(examination: Examination) -> Finding:
    """An attack that adapts its steps, on another loss (APGD-DLR), finds nothing more."""
    return _changes_nothing(examination, _adaptive(examination), _adaptive(examination).name)


def papers_attack(examination: Examination) -> Finding:
    """The paper's attack (20 steps, one draw per gradient) finds as much as the strongest here."""
    strongest = _adaptive(examination)
    headline, ours = examination.correct(examination.papers_attack), examination.correct(strongest)
    return no_loss(headline, ours, f"the paper's attack {percent(headline)}, {strongest.name} with "
                                   f"{counted(examination.attack.attack_samples, 'draw', ' per gradient')} {percent(ours)}")


def beats_transfer(examination: Examination) -> Finding:
    """Attacking the classifier itself beats attacking a stand-in."""
    stand_in = examination.stand_in()
    if stand_in is None:
        return Finding(UNFIT, "there is nothing to transfer from", "no loss by a transferred attack")
    transferred = examination.correct(replace(examination.attack, attack_samples=1), through=stand_in)
    return _beats(examination, transferred, "transferred")


def beats_square(examination: Examination) -> Finding:
    """Gradients beat a black-box search (Square)."""
    if examination.batches.some_images(1).dim() != 4:
        return Finding(UNFIT, "there are no squares in feature vectors", "no loss by a search")
    queries = examination.num_queries
    search = Square(examination.epsilon, queries, examination.attack.attack_samples)
    return _beats(examination, examination.correct(search), f"{'1 query' if queries == 1 else f'{queries} queries'} of Square")


def beats_noise(examination: Examination) -> Finding:
    """Gradients beat random noise of the same radius."""
    noise = RandomNoise(examination.epsilon, num_tries=10, attack_samples=examination.attack.attack_samples)
    return _beats(examination, examination.correct(noise), "the worst of 10 noises")


def fixed_draw(examination: Examination) -> Finding:
    """A classifier with its draw fixed is no harder to break than the random one."""
    if not (examination.is_random and hasattr(examination.classifier, "draw")):
        return Finding(UNFIT, "there is no draw to fix", "no harder to break")
    draw, one_draw = examination.draw(), replace(examination.attack, attack_samples=1)
    if is_random(draw, examination.batches.some_images(16)):
        return Finding(UNFIT, "a draw of it is random still", "no harder to break")
    fixed, base = examination.correct(one_draw, judge=draw), examination.correct(examination.attack)
    return no_loss(base, fixed, f"a fixed draw {percent(fixed)}, the random classifier {percent(base)}", reverse=True)


def gradients(examination: Examination) -> Finding:
    """Gradients are numbers that neither vanish nor are the same for all images."""
    zeros, blind, constant = [], [], []
    classifier, loss = examination.classifier, examination.attack.loss
    for number, (x, y) in enumerate(examination.batches):
        with separate_randomness(examination.seed + number), eval_mode(classifier), frozen(classifier):
            gradient = loss_and_gradient(classifier, x, y, loss=loss)[1].flatten(1).double()     # the norm of small ones
        zeros.append((gradient == 0).float().mean(1))
        blind.append((gradient == 0).all(1) | ~gradient.isfinite().all(1))       # the sign of NaN is 0
        unit = F.normalize(gradient, eps=1e-300)
        constant.append(((unit * unit.roll(1, 0)).sum(1) > 1 - 1e-5) & ~blind[-1] & (len(x) > 1))
    lost, same = torch.cat(blind), torch.cat(constant)
    measured = (f"zero in every pixel, or no number, for {percent(lost)} of the images, zero in {percent(torch.cat(zeros))} of "
                f"all pixels; the same as another image's for {percent(same)}")
    return rarely(lost | same, measured, f"lost for at most {percent(NEAR_ZERO)} of the images")


def loss_goes_up(examination: Examination) -> Finding:
    """What the attack climbs, measured by the margin, which unlike its cross-entropy never saturates, is higher on its images.

    By fresh draws, the same for an image before and after.
    """
    risen, classifier = [], examination.classifier
    for number, (x, y) in enumerate(examination.batches):
        with separate_randomness(examination.seed + number):
            x_adv = examination.attack(classifier, x, y)
            with eval_mode(classifier), frozen(classifier):
                (before, _), (after, _) = outcomes_together(classifier, x, x_adv, y, loss="margin",
                                                            attack_samples=examination.num_samples)
        risen.append(after > before)
    rose = torch.cat(risen)
    return rarely(~rose, f"it rises for {percent(rose)} of the images", f"for at least {percent(1 - NEAR_ZERO)}")


CHECKS = {
    "paper's attack": papers_attack, "large radius": large_radius, "bigger radius": bigger_radius,
    "twice the steps": more_steps, "random starts": random_starts, "one draw": one_draw, "enough draws": enough_draws,
    "stronger attack": stronger_attack, "beats transfer": beats_transfer, "beats Square": beats_square,
    "beats noise": beats_noise, "fixed draw": fixed_draw, "gradients": gradients, "loss goes up": loss_goes_up,
}


def no_loss(base: torch.Tensor, other: torch.Tensor, measured: str, reverse: bool = False, comparisons: int = 1) -> Finding:
    """Whether accuracy under `other` is not below that under `base` (reverse: not above) by more than TOLERANCE.

    base, other: (N,), whether the same images are answered right. comparisons: of how many `other` is the most extreme.
    """
    lost, won = (base & ~other).sum().item(), (other & ~base).sum().item()
    low, high = paired_difference_interval(*((won, lost) if reverse else (lost, won)), len(base), comparisons)
    return Finding(verdict(low, high, TOLERANCE), f"{measured}; they differ on {lost} + {won} of {len(base)} images",
                   f"{'no more' if reverse else 'no loss of more'} than {100 * TOLERANCE:g} points")


def rarely(found: torch.Tensor, measured: str, expected: str) -> Finding:
    """Whether what was found of images, (N,) of booleans, is true of at most NEAR_ZERO of all."""
    low, high = wilson_interval(found.sum().item(), len(found))
    return Finding(verdict(low, high, NEAR_ZERO), measured, expected)


def verdict(low: float, high: float, bound: float) -> str:
    """The verdict on the claim that a number is at most `bound`, by its 95% interval."""
    return HELD if high <= bound else FAILED if low > bound else UNKNOWN


def percent(share: torch.Tensor | float) -> str:
    """A share of the images in words; of a tensor of booleans the share that is true."""
    return f"{100 * float(share.float().mean() if isinstance(share, torch.Tensor) else share):.1f} %"


def _at_radius(examination, radius):
    return replace(examination.attack, epsilon=radius, step_size=None)


def _adaptive(examination):
    loss = "dlr" if examination.num_classes > 2 else "margin"
    return APGD(examination.epsilon, 2 * examination.attack.num_steps, loss, examination.attack.attack_samples)


def _changes_nothing(examination, attack, name):
    base, other = examination.correct(examination.attack), examination.correct(attack)
    return no_loss(base, other, f"{percent(base)}, with {name} {percent(other)}")


def _beats(examination, other, name):
    base = examination.correct(examination.attack)
    return no_loss(base, other, f"{percent(base)}, by {name} {percent(other)}, which alone breaks {percent(base & ~other)} of "
                                f"the images")
