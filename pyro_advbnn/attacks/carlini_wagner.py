"""Carlini and Wagner's attack: the smallest l_2 change of an image that an averaged prediction gets wrong."""
import math
from dataclasses import dataclass

import torch
from torch import nn

from pyro_advbnn.attacks.attack import Attack
from pyro_advbnn.attacks.balls import L2Ball, per_image
from pyro_advbnn.attacks.losses import LOSSES, expected_loss, loss_and_gradient
from pyro_advbnn.attacks.modes import eval_mode, frozen
from pyro_advbnn.system.errors import check_at_least, check_number


@dataclass(frozen=True)
class CarliniWagner(Attack):
    """Minimum-norm l_2 attack (Carlini and Wagner 2017, Section VI.A), an `Attack`.

    Adam of learning rate step_size takes num_steps >= 1 steps on ||x_adv - x||^2 + c max(confidence - margin, 0), with x_adv =
    (tanh(v) + 1) / 2 in [0, 1] and the margin of ONE answer, the mean softmax over attack_samples >= 1 draws; this
    binary_search_steps >= 1 times, from v of x each time, for the constant c of each image, at first initial_const.

    A point counts where the averaged prediction of num_samples >= 1 fresh draws has a margin above confidence >= 0, in nats:
    steps whose own answer promises a smaller change are judged so. The smallest change lies where a random classifier's
    prediction is a toss-up; a confidence takes it further. An image that is wrong from the start, for which nothing is found,
    or whose change is longer than epsilon (math.inf: any) comes back clean. num_samples=1 does for a classifier that
    answers alike in each call. The tanh holds pixels at 0 and 1 back: where there are many, take more or longer steps.

    Raises InputError for settings out of range.
    """

    epsilon: float
    num_steps: int = 200
    binary_search_steps: int = 6
    attack_samples: int = 1
    confidence: float = 0.0
    step_size: float = 0.01
    initial_const: float = 0.01
    num_samples: int = 20

    name = "cw"
    norm = "l2"

    def __post_init__(self) -> None:
        check_number("epsilon", 0 if self.epsilon == math.inf else self.epsilon)
        check_number("confidence", self.confidence)
        for name in ("step_size", "initial_const"):
            check_number(name, getattr(self, name), above=True)
        for name in ("num_steps", "binary_search_steps", "attack_samples", "num_samples"):
            check_at_least(name, getattr(self, name), 1)

    def run(self, classifier: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x_adv = x.detach().clone()
        with eval_mode(classifier), frozen(classifier):
            todo = (~self._breaks(classifier, x_adv, y)).nonzero().flatten()
            if self.epsilon > 0 and len(todo):
                x_adv[todo] = self._search(classifier, x_adv[todo], y[todo])
        return x_adv

    def _search(self, classifier, x, y):
        """The closest broken images that were found in the ball, elsewhere x."""
        best, norms = x.clone(), x.new_full((len(x),), math.inf, dtype=torch.promote_types(x.dtype, torch.float32))
        low, high, constants = torch.zeros_like(norms), norms.clone(), torch.full_like(norms, self.initial_const)
        for _ in range(self.binary_search_steps):
            found = self._descend(classifier, x, y, constants, (best, norms))
            low, high = torch.where(found, low, constants), torch.where(found, constants, high)
            constants = torch.where(high < math.inf, (low + high) / 2, 10 * constants)
        return torch.where(per_image(norms <= self.epsilon, x), best, x)

    def _descend(self, classifier, x, y, constants, best):
        """(B,): whether Adam met a broken image; the closest and its distance, inf at first, go into the two of `best`."""
        closest, distances = best
        exact = x.to(distances.dtype)                    # _INSIDE and Adam's 1e-8 vanish in float16
        v = torch.atanh((2 * exact - 1) * _INSIDE)
        optimizer = torch.optim.Adam([v], lr=self.step_size)
        found = torch.zeros_like(y, dtype=torch.bool)
        for step in range(self.num_steps + 1):
            position = (v.tanh() + 1) / 2
            x_adv = position.to(x.dtype)
            shortfall, gradient = loss_and_gradient(classifier, x_adv, y, loss=self._shortfall,
                                                    attack_samples=self.attack_samples, average="probability")
            norms = L2Ball.size(x_adv.to(v.dtype) - exact)
            promising = ((shortfall >= 0) & ((norms < distances) | ~found)).nonzero().flatten()
            if len(promising):
                broken = promising[self._breaks(classifier, x_adv[promising], y[promising])]
                found[broken] = True
                closer = broken[norms[broken] < distances[broken]]
                closest[closer], distances[closer] = x_adv[closer], norms[closer]
            if step < self.num_steps:
                slope = 2 * (position - exact) - per_image(constants, x) * gradient
                v.grad = slope * 2 * position * (1 - position)
                optimizer.step()
        return found

    def _shortfall(self, logits, y):
        """min(margin - confidence, 0)."""
        return (LOSSES["margin"](logits, y) - self.confidence).clamp_max(0)

    def _breaks(self, classifier, x, y):
        """(B,): whether the averaged prediction of fresh draws is wrong by more than the confidence."""
        return self.confidence < expected_loss(classifier, x, y, loss="margin", attack_samples=self.num_samples,
                                               average="probability")


_INSIDE = 1 - 1e-6                                       # atanh of the borders 0 and 1 is infinite
