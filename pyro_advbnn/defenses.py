"""The paper's five defences and one more: what kind of network, and whether it is trained on attacked images."""
from dataclasses import dataclass

from pyro_advbnn.bayesian import BayesianClassifier
from pyro_advbnn.classifiers import Classifier
from pyro_advbnn.errors import InputError
from pyro_advbnn.noise import add_noise


@dataclass(frozen=True)
class Defense:
    """kind: deterministic, noisy or bayesian. adversarial: trained on attacked images."""

    kind: str
    adversarial: bool

    @property
    def random(self):
        """Whether two calls of the classifier differ, so that averaging over draws means something."""
        return self.kind != "deterministic"


DEFENSES = {
    "none": Defense("deterministic", False),
    "adv": Defense("deterministic", True),      # Madry et al. 2018
    "rse": Defense("noisy", False),             # Liu et al. 2018
    "bnn": Defense("bayesian", False),          # Blundell et al. 2015
    "advbnn": Defense("bayesian", True),        # the paper
    "advrse": Defense("noisy", True),           # RSE on attacked images; not in the paper
}


def build_classifier(defense, network, *, prior_std=0.05, init_std=0.05, prior=None, kl_over="all", deterministic=()):
    """The classifier of a defence (a name of DEFENSES) around `network`, an nn.Module, which is left as it is.

    The settings are those of BayesianClassifier and say nothing to the other kinds. Raises InputError.
    """
    if defense not in DEFENSES:
        raise InputError(f"defense must be one of {', '.join(DEFENSES)}, got {defense!r}")
    kind = DEFENSES[defense].kind
    if kind == "bayesian":
        return BayesianClassifier(network, prior_std, init_std, prior=prior, kl_over=kl_over,
                                  deterministic=deterministic)
    return Classifier(add_noise(network) if kind == "noisy" else network)
