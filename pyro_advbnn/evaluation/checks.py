"""The warning signs of a broken evaluation, each measured and judged: held, did not hold, could not tell, does not apply.

After Carlini et al. (arXiv 1902.06705), Athalye et al. (arXiv 1802.00420) and, for random networks, Zimmermann (arXiv
1907.00895). Each check takes an `Examination` and gives a `Finding`.
"""
from dataclasses import replace

import torch

from pyro_advbnn.attacks.apgd import APGD
from pyro_advbnn.attacks.losses import loss_and_gradient, losses_together
from pyro_advbnn.attacks.modes import eval_mode, frozen
from pyro_advbnn.attacks.noise import RandomNoise
from pyro_advbnn.attacks.square import Square
from pyro_advbnn.evaluation.examination import Examination
from pyro_advbnn.evaluation.findings import (
    FAILED,
    HELD,
    TOLERANCE,
    UNFIT,
    UNKNOWN,
    Finding,
    difference,
    judged,
    no_loss,
    percent,
    points,
    proportion,
    worst,
)
from pyro_advbnn.system.random_streams import separate_randomness

__all__ = ["CHECKS", "FAILED", "HELD", "UNFIT", "UNKNOWN", "Examination", "Finding", "many_draws"]

COUNTS = (1, 2, 5, 10, 20, 50)                           # draws per gradient of the curve
RADII = (0.5, 1, 2, 4)                                   # times epsilon
LARGE_RADIUS = 0.5                                       # where every image can be made grey
NEAR_ZERO = 0.05


def many_draws(exam):
    """The attack with each number of draws per gradient in COUNTS: what one draw hides (Zimmermann)."""
    return [replace(exam.attack, attack_samples=count) for count in (COUNTS if exam.is_random else (1,))]


def large_radius(exam):
    """Accuracy reaches about 0 at a large radius."""
    attack = replace(exam.attack, epsilon=LARGE_RADIUS, step_size=2.5 * LARGE_RADIUS / exam.attack.num_steps)
    correct = exam.correct(attack)
    share, error = proportion(correct)
    return Finding(judged(share - error, share + error, NEAR_ZERO), f"{percent(share)} at radius {LARGE_RADIUS:g}",
                   f"at most {percent(NEAR_ZERO)}")


def bigger_radius(exam):
    """A bigger radius never helps the defender."""
    radii = [0.0, *(factor * exam.epsilon for factor in RADII if factor * exam.epsilon <= 1)]
    found = [exam.correct(replace(exam.attack, epsilon=radius, step_size=2.5 * radius / exam.attack.num_steps))
             for radius in radii]
    pairs = [difference(smaller, bigger) for smaller, bigger in zip(found, found[1:])]
    verdicts = [judged(-high, -low, TOLERANCE) for low, high in pairs]
    measured = ", ".join(f"{percent(correct.float().mean())} at {radius:.4g}" for radius, correct in zip(radii, found))
    return Finding(worst(verdicts), measured, f"no rise by more than {points(TOLERANCE)}")


def more_steps(exam):
    """Twice the steps change nothing."""
    twice = replace(exam.attack, num_steps=2 * exam.attack.num_steps)
    return _changes_nothing(exam, twice, f"{twice.num_steps} steps")


def random_starts(exam):
    """Random starts change nothing."""
    return _changes_nothing(exam, replace(exam.attack, random_start=True), "a random start")


def one_draw(exam):
    """The attack with one draw per gradient, as in the paper, is not weaker than that with many."""
    if not exam.is_random:
        return Finding(UNFIT, "nothing is random", "no loss by many draws")
    weak, *many = many_draws(exam)
    found = {attack.attack_samples: exam.correct(attack) for attack in (weak, *many)}
    counts = [attack.attack_samples for attack in many]
    strongest = min(counts, key=lambda count: found[count].sum())
    weakly, strongly = (percent(found[count].float().mean()) for count in (1, strongest))
    return no_loss(found[1], found[strongest], f"1 draw per gradient {weakly}, {strongest} draws {strongly}, the strongest of "
                                               f"{', '.join(map(str, counts))}", comparisons=len(counts))


def enough_draws(exam):
    """More draws per gradient than the attack takes change nothing."""
    if not exam.is_random:
        return Finding(UNFIT, "nothing is random", "no loss by more draws")
    more = replace(exam.attack, attack_samples=5 * exam.attack.attack_samples // 2)
    return _changes_nothing(exam, more, f"{_draws(more.attack_samples)} per gradient")


def stronger_attack(exam):
    """An attack that adapts its steps, on another loss (APGD-DLR), finds nothing more."""
    attack = _adaptive(exam)
    return _changes_nothing(exam, attack, attack.name)


def papers_attack(exam):
    """The paper's attack (20 steps, one draw per gradient) finds as much as the strongest here."""
    headline, ours = exam.correct(exam.papers_attack), exam.correct(_adaptive(exam))
    return no_loss(headline, ours, f"the paper's attack {percent(headline.float().mean())}, {_adaptive(exam).name} with "
                                    f"{_draws(exam.attack.attack_samples)} per gradient {percent(ours.float().mean())}")


def beats_transfer(exam):
    """Attacking the classifier itself beats attacking a stand-in."""
    stand_in = exam.stand_in()
    if stand_in is None:
        return Finding(UNFIT, "there is nothing to transfer from", "no loss by a transferred attack")
    plain = replace(exam.attack, attack_samples=1)
    return _beats(exam, exam.correct(plain, through=stand_in), "transferred")


def beats_square(exam):
    """Gradients beat a black-box search (Square)."""
    search = Square(exam.epsilon, exam.num_queries, exam.attack.attack_samples)
    queries = "1 query" if exam.num_queries == 1 else f"{exam.num_queries} queries"
    return _beats(exam, exam.correct(search), f"{queries} of Square")


def beats_noise(exam):
    """Gradients beat random noise of the same radius."""
    return _beats(exam, exam.correct(RandomNoise(exam.epsilon, num_tries=10)), "the worst of 10 noises")


def fixed_draw(exam):
    """A classifier with its draw fixed is no harder to break than the random one."""
    if not (exam.is_random and hasattr(exam.classifier, "draw")):
        return Finding(UNFIT, "there is no draw to fix", "no harder to break")
    fixed, base = exam.correct(replace(exam.attack, attack_samples=1), judge=exam.draw()), exam.correct(exam.attack)
    return no_loss(base, fixed, f"a fixed draw {percent(fixed.float().mean())}, the random classifier "
                                 f"{percent(base.float().mean())}", reverse=True)


def gradients(exam):
    """Gradients neither vanish nor are the same for all images."""
    zeros, blind, constant = [], [], []
    for number, (x, y) in enumerate(exam.batches):
        with separate_randomness(exam.seed + number), eval_mode(exam.classifier), frozen(exam.classifier):
            gradient = loss_and_gradient(exam.classifier, x, y, loss=exam.attack.loss)[1].flatten(1)
        zeros.append((gradient == 0).float().mean(1))
        blind.append((gradient == 0).all(1))
        unit = gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-30)
        constant.append(torch.isclose(unit @ unit.roll(1, 0).T, torch.ones(())).diagonal() & ~blind[-1])
    zeros, blind, constant = (torch.cat(found).float() for found in (zeros, blind, constant))
    lost = (blind + constant > 0)
    share, error = proportion(lost)
    measured = (f"zero in every pixel for {percent(blind.mean())} of the images, in {percent(zeros.mean())} of all pixels; "
                f"the same as another image's for {percent(constant.mean())}")
    return Finding(judged(share - error, share + error, NEAR_ZERO), measured,
                   f"lost for at most {percent(NEAR_ZERO)} of the images")


def loss_goes_up(exam):
    """What the attack climbs, measured by the margin, which unlike its cross-entropy never saturates, is higher on its images.

    By fresh draws, the same for an image before and after.
    """
    risen = []
    for number, (x, y) in enumerate(exam.batches):
        with separate_randomness(exam.seed + number):
            x_adv = exam.attack(exam.classifier, x, y)
            with eval_mode(exam.classifier), frozen(exam.classifier):
                before, after = losses_together(exam.classifier, x, x_adv, y, loss="margin", attack_samples=exam.num_samples)
        risen.append(after > before)
    share, error = proportion(~torch.cat(risen))
    return Finding(judged(share - error, share + error, NEAR_ZERO), f"it rises for {percent(1 - share)} of the images",
                   f"for at least {percent(1 - NEAR_ZERO)}")


CHECKS = {
    "paper's attack": papers_attack, "large radius": large_radius, "bigger radius": bigger_radius,
    "twice the steps": more_steps, "random starts": random_starts, "one draw": one_draw, "enough draws": enough_draws,
    "stronger attack": stronger_attack, "beats transfer": beats_transfer, "beats Square": beats_square,
    "beats noise": beats_noise, "fixed draw": fixed_draw, "gradients": gradients, "loss goes up": loss_goes_up,
}


def _draws(count):
    return "1 draw" if count == 1 else f"{count} draws"


def _adaptive(exam):
    return APGD(exam.epsilon, 2 * exam.attack.num_steps, "dlr" if exam.num_classes() > 2 else "margin",
                exam.attack.attack_samples)


def _changes_nothing(exam, attack, name):
    base, other = exam.correct(exam.attack), exam.correct(attack)
    return no_loss(base, other, f"{percent(base.float().mean())}, with {name} {percent(other.float().mean())}")


def _beats(exam, other, name):
    base = exam.correct(exam.attack)
    alone = (base & ~other).float().mean()
    return no_loss(base, other, f"{percent(base.float().mean())}, by {name} {percent(other.float().mean())}, which alone "
                                 f"breaks {percent(alone)} of the images")
