"""White-box attacks on any module that maps images in [0, 1] to logits, random or not. Nothing here knows Bayes.

A random network draws anew in every forward call, so each gradient is a sample of the gradient of the expected loss
(Eq. 3); attack_samples draws are averaged for each. One draw per gradient, as in the paper, is a weak attack
(Zimmermann, arXiv 1907.00895).
"""
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from pyro_advbnn.attacks.attack import Attack
from pyro_advbnn.attacks.balls import BALLS, check_ball
from pyro_advbnn.attacks.losses import averaging_of, check_loss, keep_worse, loss_and_gradient, loss_name
from pyro_advbnn.attacks.modes import eval_mode, frozen
from pyro_advbnn.system.errors import check_at_least, check_number


def pgd(classifier: nn.Module, x: torch.Tensor, y: torch.Tensor, *, epsilon: float, step_size: float, num_steps: int,
        attack_samples: int = 1, random_start: bool = False, generator: torch.Generator | None = None,
        target: torch.Tensor | None = None) -> torch.Tensor:
    """Projected gradient ascent on the cross-entropy in the l_inf ball around x (Eq. 2): the attacked images.

    x (B, C, H, W) in [0, 1], y (B,) true labels. Each of the num_steps >= 0 steps adds step_size * sign(gradient), goes
    back to the ball of radius epsilon in [0, 1], then to [0, 1]; step_size >= 0. Each gradient is the mean over
    attack_samples >= 1 forward calls. random_start: begin at a uniform point of the ball, drawn from `generator`.
    target (B,): classes whose cross-entropy is brought down, in place of that of y up.
    The classifier runs in eval mode; its buffers and parameters stay as they are and no parameter gets a gradient.

    Raises InputError for settings out of range, and as `Attack` does.
    """
    return PGD(epsilon, step_size, num_steps, attack_samples, random_start, generator)(classifier, x, y, target=target)


def fgsm(classifier: nn.Module, x: torch.Tensor, y: torch.Tensor, *, epsilon: float, attack_samples: int = 1) -> torch.Tensor:
    """The fast gradient sign method (Goodfellow et al. 2015): `pgd` with one step of length epsilon."""
    return pgd(classifier, x, y, epsilon=epsilon, step_size=epsilon, num_steps=1, attack_samples=attack_samples)


@dataclass(frozen=True)
class PGD(Attack):
    """`pgd` with its settings, an `Attack`; evaluation puts the settings into its rows.

    step_size None takes 2.5 * epsilon / num_steps. norm: "linf", or "l2", whose steps of length step_size go along the
    gradient. loss, average: as in `losses.loss_and_gradient`. momentum: each step follows the running sum of the
    gradients, each over its l_1 norm, the sum before it times momentum in [0, 1] (MI-FGSM, Dong et al. 2018); 0: the
    gradient alone. restarts: number of runs, every one but the first from a uniform point; each image keeps its worst
    result (`keep_worse`).
    """

    epsilon: float
    step_size: float | None = None
    num_steps: int = 20
    attack_samples: int = 1
    random_start: bool = False
    generator: torch.Generator | None = None
    loss: str | Callable = "ce"
    average: str = "gradient"
    momentum: float = 0.0
    restarts: int = 1
    norm: str = "linf"

    def __post_init__(self) -> None:
        check_ball(self.epsilon, self.norm)
        check_at_least("num_steps", self.num_steps, 0)
        if self.step_size is None:
            object.__setattr__(self, "step_size", auto_step_size(self.epsilon, self.num_steps))
        check_loss(**averaging_of(self))
        check_number("step_size", self.step_size)
        check_number("momentum", self.momentum, high=1)
        check_at_least("restarts", self.restarts, 1)

    @property
    def name(self) -> str:
        """"pgd", with what is not as in the paper: the loss, the average, momentum, random start, restarts and the norm."""
        unlike_the_paper = [
            (loss_name(self.loss), self.loss != "ce"), (self.average, self.average != "gradient"),
            ("momentum", self.momentum > 0), ("random", self.random_start),
            (f"x{self.restarts}", self.restarts > 1), (self.norm, self.norm != "linf")]
        return "-".join(["pgd", *(part for part, differs in unlike_the_paper if differs)])

    @property
    def reaches_ball(self) -> bool:
        """Whether num_steps steps can get from the centre to the border of the ball."""
        return self.num_steps * self.step_size >= self.epsilon * (1 - 1e-6)  # type: ignore[operator]

    def run(self, classifier: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x_adv, = deque(self.iterates(classifier, x, y), maxlen=1)
        another_run = replace(self, random_start=True, restarts=1)
        for _ in range(self.restarts - 1):
            x_adv = keep_worse(classifier, x_adv, another_run.run(classifier, x, y), y, **averaging_of(self))
        return x_adv

    def iterates(self, classifier: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Iterator[torch.Tensor]:
        """A generator of the attacked images (B, C, H, W) after 0, 1, ..., num_steps steps.

        Of several runs it is the first. Between two steps the classifier is in eval mode, its parameters require no gradient.
        """
        ball, velocity = BALLS[self.norm](x, self.epsilon), None
        x_adv = ball.random_point(self.generator) if self.random_start else x.detach().clone()
        yield x_adv
        with eval_mode(classifier), frozen(classifier):
            for _ in range(self.num_steps):
                if self.epsilon > 0:
                    _, gradient = loss_and_gradient(classifier, x_adv, y, **averaging_of(self))
                    velocity = self._velocity(gradient, velocity)
                    x_adv = ball.project_(x_adv + self.step_size * ball.ascent(velocity))
                yield x_adv

    def _velocity(self, gradient, before):
        if not self.momentum:
            return gradient
        gradient = F.normalize(gradient.flatten(1), p=1, eps=torch.finfo(gradient.dtype).tiny).view_as(gradient)
        return gradient if before is None else self.momentum * before + gradient


def auto_step_size(epsilon, num_steps):
    """2.5 * epsilon / num_steps: enough to cross the ball and turn round (Madry et al. 2018)."""
    return 2.5 * epsilon / max(num_steps, 1)
