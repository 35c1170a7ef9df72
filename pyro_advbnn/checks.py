"""The warning signs of a broken evaluation, each measured and judged: held, did not hold, could not tell, does not apply.

After Carlini et al. (arXiv 1902.06705), Athalye et al. (arXiv 1802.00420) and, for random networks, Zimmermann (arXiv
1907.00895). A claim such as "twice the steps changes nothing" is judged by the images on which two attacks differ: it held
where the 95% interval of the difference stays within TOLERANCE, it did not where the interval lies beyond it.
"""
import math
from dataclasses import dataclass, replace

import torch

from pyro_advbnn.apgd import APGD
from pyro_advbnn.arguments import check_at_least, check_number
from pyro_advbnn.attack_losses import expected_loss, loss_and_gradient
from pyro_advbnn.attacks import PGD, RandomNoise, eval_mode, frozen
from pyro_advbnn.errors import InputError
from pyro_advbnn.evaluation import accuracy_fields, separate_randomness, undisturbed
from pyro_advbnn.inputs import check_attacked, check_classifier, check_images, check_labels, check_repeatable, check_same_labels
from pyro_advbnn.square import Square
from pyro_advbnn.surrogates import surrogate
from pyro_advbnn.worst_case import opinions

HELD, FAILED, UNKNOWN, UNFIT = "held", "did not hold", "could not tell", "does not apply"
TOLERANCE = 0.02                                         # of all images
COUNTS = (1, 2, 5, 10, 20, 50)                           # draws per gradient of the curve
RADII = (0.5, 1, 2, 4)                                   # times epsilon
LARGE_RADIUS = 0.5                                       # where every image can be made grey
NEAR_ZERO = 0.05


@dataclass(frozen=True)
class Finding:
    """verdict: one of HELD, FAILED, UNKNOWN, UNFIT; measured and expected: in words, with the numbers."""

    verdict: str
    measured: str
    expected: str


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
        check_number("epsilon", epsilon)
        if not 0 < epsilon <= 1:
            raise InputError(f"epsilon must lie in (0, 1], got {epsilon}")
        check_repeatable(batches)
        self._labels = []
        for x, y in batches:
            check_images(x)
            check_labels(y, check_classifier(classifier, x[:1]), x)
            self._labels.append(y)
        self.classifier, self.batches, self.epsilon, self.num_samples = classifier, batches, epsilon, num_samples
        self.num_queries, self.transfer, self.seed = num_queries, transfer, seed
        self.is_random = is_random(classifier, self._some_images())
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
            check_same_labels(y, self._labels[number])
            with separate_randomness(self.seed + number):
                x_adv = x if attack is None else attack(through, x, y)
                check_attacked(x_adv, x, attack)
                found.append(~opinions(judge, x_adv, y, self.num_samples)["broken"])
        return torch.cat(found)

    def accuracy(self, attack):
        """The columns of a row that come out under an attack."""
        correct = self.correct(attack)
        return accuracy_fields(correct.sum().item(), len(correct))

    def num_classes(self):
        with torch.no_grad(), eval_mode(self.classifier), separate_randomness(self.seed):
            return self.classifier(self._some_images()).shape[1]

    def _some_images(self):
        x, _ = next(iter(self.batches))
        return x[:16]

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


def is_random(classifier, x):
    """Whether two calls on the same images differ, in the logits or in their gradient by the images."""
    def call():
        inputs = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = classifier(inputs)
        gradient, = torch.autograd.grad(logits.float().logsumexp(-1).sum(), inputs)
        return logits.detach(), gradient

    with eval_mode(classifier), frozen(classifier), undisturbed():
        return not all(map(torch.equal, call(), call()))


def many_draws(exam):
    """The attack with each number of draws per gradient in COUNTS: what one draw hides (Zimmermann)."""
    return [replace(exam.attack, attack_samples=count) for count in (COUNTS if exam.is_random else (1,))]


def large_radius(exam):
    """Accuracy reaches about 0 at a large radius."""
    attack = replace(exam.attack, epsilon=LARGE_RADIUS, step_size=2.5 * LARGE_RADIUS / exam.attack.num_steps)
    correct = exam.correct(attack)
    share, error = _proportion(correct)
    return Finding(_verdict(share - error, share + error, NEAR_ZERO), f"{_percent(share)} at radius {LARGE_RADIUS:g}",
                   f"at most {_percent(NEAR_ZERO)}")


def bigger_radius(exam):
    """A bigger radius never helps the defender."""
    radii = [0.0, *(factor * exam.epsilon for factor in RADII if factor * exam.epsilon <= 1)]
    found = [exam.correct(replace(exam.attack, epsilon=radius, step_size=2.5 * radius / exam.attack.num_steps))
             for radius in radii]
    pairs = [_difference(smaller, bigger) for smaller, bigger in zip(found, found[1:])]
    verdicts = [_verdict(-high, -low, TOLERANCE) for low, high in pairs]
    measured = ", ".join(f"{_percent(correct.float().mean())} at {radius:.4g}" for radius, correct in zip(radii, found))
    return Finding(_worst(verdicts), measured, f"no rise by more than {_points(TOLERANCE)}")


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
    weak = exam.correct(replace(exam.attack, attack_samples=1))
    found = {attack.attack_samples: exam.correct(attack) for attack in many_draws(exam)}
    strongest = min(found, key=lambda count: found[count].sum())
    return _no_loss(weak, found[strongest], f"1 draw per gradient {_percent(weak.float().mean())}, {strongest} draws "
                                            f"{_percent(found[strongest].float().mean())}")


def enough_draws(exam):
    """More draws per gradient than the attack takes change nothing."""
    if not exam.is_random:
        return Finding(UNFIT, "nothing is random", "no loss by more draws")
    more = replace(exam.attack, attack_samples=5 * exam.attack.attack_samples // 2)
    return _changes_nothing(exam, more, f"{more.attack_samples} draws per gradient")


def stronger_attack(exam):
    """An attack that adapts its steps, on another loss (APGD-DLR), finds nothing more."""
    attack = _adaptive(exam)
    return _changes_nothing(exam, attack, attack.name)


def papers_attack(exam):
    """The paper's attack (20 steps, one draw per gradient) finds as much as the strongest here."""
    headline, ours = exam.correct(exam.papers_attack), exam.correct(_adaptive(exam))
    return _no_loss(headline, ours, f"the paper's attack {_percent(headline.float().mean())}, {_adaptive(exam).name} with "
                                    f"{exam.attack.attack_samples} draws per gradient {_percent(ours.float().mean())}")


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
    return _beats(exam, exam.correct(search), f"{exam.num_queries} queries of Square")


def beats_noise(exam):
    """Gradients beat random noise of the same radius."""
    return _beats(exam, exam.correct(RandomNoise(exam.epsilon, num_tries=10)), "the worst of 10 noises")


def fixed_draw(exam):
    """A classifier with its draw fixed is no harder to break than the random one."""
    if not (exam.is_random and hasattr(exam.classifier, "draw")):
        return Finding(UNFIT, "there is no draw to fix", "no harder to break")
    fixed, base = exam.correct(replace(exam.attack, attack_samples=1), judge=exam.draw()), exam.correct(exam.attack)
    return _no_loss(base, fixed, f"a fixed draw {_percent(fixed.float().mean())}, the random classifier "
                                 f"{_percent(base.float().mean())}", reverse=True)


def gradients(exam):
    """Gradients neither vanish nor are the same for all images."""
    zeros, blind, constant = [], [], []
    for x, y in exam.batches:
        with separate_randomness(exam.seed), eval_mode(exam.classifier), frozen(exam.classifier):
            gradient = loss_and_gradient(exam.classifier, x, y, loss=exam.attack.loss)[1].flatten(1)
        zeros.append((gradient == 0).float().mean(1))
        blind.append((gradient == 0).all(1))
        unit = gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-30)
        constant.append(torch.isclose(unit @ unit.roll(1, 0).T, torch.ones(())).diagonal() & ~blind[-1])
    zeros, blind, constant = (torch.cat(found).float() for found in (zeros, blind, constant))
    lost = (blind + constant > 0)
    share, error = _proportion(lost)
    measured = (f"zero in every pixel for {_percent(blind.mean())} of the images, in {_percent(zeros.mean())} of all pixels; "
                f"the same as another image's for {_percent(constant.mean())}")
    return Finding(_verdict(share - error, share + error, NEAR_ZERO), measured,
                   f"lost for at most {_percent(NEAR_ZERO)} of the images")


def loss_goes_up(exam):
    """The loss that the attack climbs is higher on its images, by fresh draws."""
    risen = []
    for x, y in exam.batches:
        with separate_randomness(exam.seed):
            x_adv = exam.attack(exam.classifier, x, y)
            with eval_mode(exam.classifier), frozen(exam.classifier):
                before, after = (expected_loss(exam.classifier, images, y, loss="margin", attack_samples=exam.num_samples)
                                 for images in (x, x_adv))
        risen.append(after > before)
    share, error = _proportion(~torch.cat(risen))
    return Finding(_verdict(share - error, share + error, NEAR_ZERO), f"it rises for {_percent(1 - share)} of the images",
                   f"for at least {_percent(1 - NEAR_ZERO)}")


CHECKS = {
    "paper's attack": papers_attack, "large radius": large_radius, "bigger radius": bigger_radius,
    "twice the steps": more_steps, "random starts": random_starts, "one draw": one_draw, "enough draws": enough_draws,
    "stronger attack": stronger_attack, "beats transfer": beats_transfer, "beats Square": beats_square,
    "beats noise": beats_noise, "fixed draw": fixed_draw, "gradients": gradients, "loss goes up": loss_goes_up,
}


def _adaptive(exam):
    return APGD(exam.epsilon, 2 * exam.attack.num_steps, "dlr" if exam.num_classes() > 2 else "margin",
                exam.attack.attack_samples)


def _changes_nothing(exam, attack, name):
    base, other = exam.correct(exam.attack), exam.correct(attack)
    return _no_loss(base, other, f"{_percent(base.float().mean())}, with {name} {_percent(other.float().mean())}")


def _beats(exam, other, name):
    base = exam.correct(exam.attack)
    alone = (base & ~other).float().mean()
    return _no_loss(base, other, f"{_percent(base.float().mean())}, by {name} {_percent(other.float().mean())}, which alone "
                                 f"breaks {_percent(alone)} of the images")


def _no_loss(base, other, measured, reverse=False):
    """Whether accuracy under `other` is not below that under `base` (reverse: not above) by more than TOLERANCE."""
    low, high = _difference(base, other)
    if reverse:
        low, high = -high, -low
    lost, won = (base & ~other).sum().item(), (other & ~base).sum().item()
    return Finding(_verdict(low, high, TOLERANCE), f"{measured}; they differ on {lost} + {won} of {len(base)} images",
                   f"{'no more' if reverse else 'no loss of more'} than {_points(TOLERANCE)}")


def _difference(base, other):
    """The 95% interval (low, high) of accuracy under `base` less that under `other`, from the images where they differ."""
    n, lost, won = len(base), (base & ~other).sum().item(), (other & ~base).sum().item()
    mean = (lost - won) / n
    error = 1.96 * math.sqrt(max(lost + won - n * mean**2, 0)) / n
    return mean - max(error, _least(n)), mean + max(error, _least(n))


def _proportion(correct):
    """(share, half of its 95% interval) of a tensor of booleans."""
    n, share = len(correct), correct.float().mean().item()
    return share, max(1.96 * math.sqrt(share * (1 - share) / n), _least(n))


def _least(n):
    """What n images that all agree leave open at 95 %: 3 / n (the rule of three)."""
    return 3 / n


def _verdict(low, high, bound):
    return HELD if high <= bound else FAILED if low > bound else UNKNOWN


def _worst(verdicts):
    return next(verdict for verdict in (FAILED, UNKNOWN, HELD) if verdict in verdicts)


def _percent(share):
    return f"{100 * float(share):.1f} %"


def _points(share):
    return f"{100 * share:g} points"
