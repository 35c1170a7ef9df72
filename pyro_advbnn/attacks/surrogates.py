"""What an attack may aim at in a random classifier's place: its mean network, or a pool of fixed draws.

An attack through a surrogate is a transfer attack: it needs one answer per step, where the classifier itself asks for an
average over draws; what it finds must still be judged on the classifier.
"""
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyro_advbnn.attacks.modes import eval_mode
from pyro_advbnn.bayes.averaging import Pool
from pyro_advbnn.bayes.kernels.layout import laying_out
from pyro_advbnn.system.errors import InputError


def surrogate(classifier: nn.Module, source: str) -> nn.Module:
    """The module that `source` names: "self" the classifier, "mean" its mean network, "pool:m" a `Pool` of m >= 1 draws.

    The draws of a pool are taken from torch's global generator. "mean" and "pool:m" are independent of the classifier, in
    eval mode, and none of their parameters requires a gradient. "mean" averages weights alone: noise in the network stays.

    Raises InputError for another source, and where the classifier lacks the `mean_network()` or `draw()` that it needs.
    """
    kind, size = parse_source(source)
    needed = {"mean": "mean_network", "pool": "draw"}.get(kind)
    if needed and not hasattr(classifier, needed):
        raise InputError(f"source {source} needs a classifier with {needed}(), which {type(classifier).__name__} lacks")
    if kind == "mean":
        return laying_out(classifier.mean_network().eval().requires_grad_(False))  # type: ignore[operator]
    if kind == "pool":
        with eval_mode(classifier):                      # where a mixture begins its order anew
            return Pool(classifier.draw() for _ in range(size))  # type: ignore[operator]
    return classifier


@dataclass(frozen=True)
class Through:
    """`attack` aimed at the classifier's surrogate `source`, a callable (classifier, x, y) -> x_adv.

    Each call, so each batch, has a pool of its own. What `attack` tells of its settings, this tells too.

    Raises InputError for an unknown source.
    """

    attack: Any
    source: str

    def __post_init__(self) -> None:
        parse_source(self.source)

    @property
    def name(self) -> str:
        return f"{self.attack.name} on {self.source}"

    def __call__(self, classifier: nn.Module, x: torch.Tensor, y: torch.Tensor, *,
                 target: torch.Tensor | None = None) -> torch.Tensor:
        led = {} if target is None else {"target": target}          # only our own attacks take one
        with torch.inference_mode(False):                # or the surrogate's weights would have none
            return self.attack(surrogate(classifier, self.source), x, y, **led)

    def __getattr__(self, name):
        if name in ("epsilon", "num_steps", "step_size", "attack_samples", "reaches_ball", "norm"):
            return getattr(self.attack, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


def parse_source(source):
    """("self", None), ("mean", None) or ("pool", m) for the source's name.

    Raises InputError for any other.
    """
    kind, colon, size = str(source).partition(":")
    if kind in ("self", "mean") and not colon:
        return kind, None
    if kind == "pool" and size.isdecimal() and int(size) > 0:
        return kind, int(size)
    raise InputError(f"source must be self, mean or pool:m with m >= 1 draws, got {source!r}")
