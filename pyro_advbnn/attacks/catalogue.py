"""Attacks by name, as a command line has them: NAME, or NAME@SOURCE for one that is made on a stand-in of the classifier."""
from dataclasses import dataclass, replace

from pyro_advbnn.attacks.apgd import APGD
from pyro_advbnn.attacks.carlini_wagner import CarliniWagner
from pyro_advbnn.attacks.pgd import PGD, RandomNoise
from pyro_advbnn.attacks.square import Square
from pyro_advbnn.attacks.surrogates import Through
from pyro_advbnn.system.errors import InputError

STEPS_OF_CW = 5                                          # in each of its searches, for one of the others: Adam's are small
_ATTACKS = {
    "noise": lambda s: RandomNoise(s.epsilon, norm=s.norm, num_tries=10, attack_samples=s.attack_samples, average=s.average),
    "fgsm": lambda s: PGD(s.epsilon, s.epsilon, 1, s.attack_samples, norm=s.norm),
    "pgd": lambda s: s.pgd(),
    "pgd-margin": lambda s: s.pgd(loss="margin"),
    "pgd-momentum": lambda s: s.pgd(momentum=0.9),
    "pgd-probability": lambda s: s.pgd(average="probability"),
    "apgd-ce": lambda s: s.apgd("ce"),
    "apgd-dlr": lambda s: s.apgd("dlr"),
    "square": lambda s: Square(s.epsilon, s.num_queries, s.attack_samples),
    "cw": lambda s: CarliniWagner(s.epsilon, num_steps=STEPS_OF_CW * s.num_steps, attack_samples=s.attack_samples),
}
_ONE_NORM = {"square": "linf", "cw": "l2"}
OF_RANDOM = ("noise", "apgd-ce@mean", "apgd-ce@pool:10", "pgd", "apgd-ce", "apgd-dlr", "square")


@dataclass(frozen=True)
class Strength:
    """What the attacks of an ensemble share. epsilon: radius in `norm`; average: see `attack_losses`.

    Square and Carlini and Wagner's attack go by the averaged answer ("probability") always, and num_steps means nothing to
    noise and Square.
    """

    epsilon: float
    num_steps: int = 40
    attack_samples: int = 20
    num_queries: int = 1000
    norm: str = "linf"
    average: str = "gradient"

    def pgd(self, **changes):
        return PGD(self.epsilon, None, self.num_steps, self.attack_samples, random_start=True, norm=self.norm,
                   **{"average": self.average} | changes)

    def apgd(self, loss):
        return APGD(self.epsilon, self.num_steps, loss, self.attack_samples, self.average, norm=self.norm)


def default_names(is_random, has_posterior, num_classes, norm):
    """The ensemble for a classifier: what makes no sense for it is left out."""
    def fits(name):
        base, _, source = name.partition("@")
        return not (source == "mean" and not has_posterior or source and not is_random
                    or base == "apgd-dlr" and num_classes < 3 or _ONE_NORM.get(base, norm) != norm)
    return [name for name in OF_RANDOM if fits(name)]


def build(names, strength):
    """{name: attack}, in order; a stand-in is not random and needs one draw.

    Raises InputError for an unknown name, one that comes twice, and one of another norm.
    """
    if not names:
        raise InputError("--attacks must name at least one attack")
    attacks = {}
    for name in names:
        base, at, source = name.partition("@")
        if base not in _ATTACKS:
            raise InputError(f"--attacks must be of {', '.join(_ATTACKS)}, or one of them as NAME@mean or NAME@pool:M, "
                             f"got {name!r}")
        if name in attacks:
            raise InputError(f"--attacks: {name} comes twice")
        if _ONE_NORM.get(base, strength.norm) != strength.norm:
            raise InputError(f"--attacks: {base} is an attack in the norm {_ONE_NORM[base]}")
        attacks[name] = _through(name, base, source, strength) if at else _ATTACKS[base](strength)
    return attacks


def _through(name, base, source, strength):
    try:
        return Through(_ATTACKS[base](replace(strength, attack_samples=1)), source)
    except InputError as error:
        raise InputError(f"--attacks {name}: {error}") from None
