"""The paper's five defences and one more: what kind of network, and whether it is trained on attacked images. No torch."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Defense:
    """kind: deterministic, noisy or bayesian. adversarial: trained on attacked images. in_paper: one of the paper's five."""

    kind: str
    adversarial: bool
    in_paper: bool = True

    @property
    def random(self) -> bool:
        """Whether two calls of the classifier differ, so that averaging over draws means something."""
        return self.kind != "deterministic"


DEFENSES = {
    "none": Defense("deterministic", False),
    "adv": Defense("deterministic", True),                  # Madry et al. 2018
    "rse": Defense("noisy", False),                         # Liu et al. 2018
    "bnn": Defense("bayesian", False),                      # Blundell et al. 2015
    "advbnn": Defense("bayesian", True),                    # the paper
    "advrse": Defense("noisy", True, in_paper=False),       # RSE on attacked images
}
