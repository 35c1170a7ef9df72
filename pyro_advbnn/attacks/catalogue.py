"""Attacks by name, as a command line has them: NAME, or NAME@SOURCE for one that is made on a stand-in of the classifier.

A new attack is one file in this room, an `Attack` with a `name`, an `epsilon` and a `norm`, and one row of ATTACKS.
"""
from dataclasses import dataclass, replace
from operator import methodcaller

from pyro_advbnn.attacks.apgd import APGD
from pyro_advbnn.attacks.carlini_wagner import CarliniWagner
from pyro_advbnn.attacks.noise import RandomNoise
from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.attacks.square import Square
from pyro_advbnn.attacks.surrogates import Through
from pyro_advbnn.system.errors import InputError

STEPS_OF_CW = 5                                          # in each of its searches, for one of the others: Adam's are small
RANKS = range(1, 10)                                     # of the wrong classes that targeted attacks go for
_ANY, _LINF, _L2 = ("linf", "l2"), ("linf",), ("l2",)
ATTACKS = {                                              # name: (norms, how it is made of a `Strength`)
    "noise": (_ANY, lambda s: RandomNoise(s.epsilon, s.norm, num_tries=10, attack_samples=s.attack_samples, average=s.average)),
    "fgsm": (_ANY, lambda s: PGD(s.epsilon, s.epsilon, 1, s.attack_samples, average=s.average, norm=s.norm)),
    "pgd": (_ANY, lambda s: s.pgd()),
    "pgd-margin": (_ANY, lambda s: s.pgd(loss="margin")),
    "pgd-momentum": (_ANY, lambda s: s.pgd(momentum=0.9)),
    "pgd-probability": (_ANY, lambda s: s.pgd(average="probability")),
    "apgd-ce": (_ANY, lambda s: s.apgd("ce")),
    "apgd-dlr": (_ANY, lambda s: s.apgd("dlr")),
    "apgd-margin": (_ANY, lambda s: s.apgd("margin")),
    **{f"apgd-t{rank}": (_ANY, methodcaller("apgd", "dlr", target_rank=rank)) for rank in RANKS},
    "square": (_LINF, lambda s: Square(s.epsilon, s.num_queries, s.attack_samples)),
    "cw": (_L2, lambda s: CarliniWagner(s.epsilon, STEPS_OF_CW * s.num_steps, attack_samples=s.attack_samples,
                                        num_samples=s.attack_samples)),
}
_LEAST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4} | {f"apgd-t{rank}": max(4, rank + 1) for rank in RANKS}
NAMES = [name for name in ATTACKS if not name.startswith("apgd-t")] + ["apgd-t"]        # `spelled_out`


@dataclass(frozen=True)
class Strength:
    """What the attacks of an ensemble share. epsilon: radius in `norm`; average: see `losses`.

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

    def apgd(self, loss, **changes):
        return APGD(self.epsilon, self.num_steps, loss, self.attack_samples, self.average, norm=self.norm, **changes)


def default_names(is_random, has_mean, num_classes, norm):
    """The ensemble for a classifier: what makes no sense for it is left out; for dlr, which two classes have not, margin.

    Targeted, which takes nine attacks, a posterior is attacked at its mean.
    """
    at_mean = "@mean" if is_random and has_mean else ""
    stand_ins = [*["apgd-ce@mean"] * bool(at_mean), "apgd-ce@pool:10"] if is_random else []
    return ["noise", *stand_ins, "pgd", "apgd-ce", "apgd-dlr" if num_classes > 2 else "apgd-margin",
            *[f"apgd-t{at_mean}"] * (num_classes > 3), *["square"] * (norm == "linf")]


def spelled_out(names, num_classes):
    """names, with apgd-t as apgd-t1, apgd-t2, ...: the nine likeliest wrong classes, or as many as there are.

    Raises InputError for attacks that need more classes.
    """
    found = []
    for name in names:
        base, at, source = name.partition("@")
        if num_classes < (least := _LEAST_CLASSES.get(base, 2)):
            raise InputError(f"--attacks: {base} needs at least {least} classes, there are {num_classes}")
        found += [f"{base}{rank}{at}{source}" for rank in RANKS if rank < num_classes] if base == "apgd-t" else [name]
    return found


def build(names, strength):
    """{name: attack}, in order; a name that comes twice counts once.

    Raises InputError for an unknown name, and one of another norm.
    """
    return {name: _build(name, strength) for name in names}


def _build(name, strength):
    base, at, source = name.partition("@")
    if base not in ATTACKS or source == "self":
        raise InputError(f"--attacks must be of {', '.join(NAMES)}, or one of them as NAME@mean or NAME@pool:M, got {name!r}")
    norms, make = ATTACKS[base]
    if strength.norm not in norms:
        raise InputError(f"--attacks: {base} is an attack in the norm {norms[0]}")
    if not at:
        return make(strength)
    try:
        return Through(make(replace(strength, attack_samples=1)), source)    # a stand-in is not random and needs one draw
    except InputError as error:
        raise InputError(f"--attacks {name}: {error}") from None
