"""Random noise, which every other attack must beat to be one."""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pyro_advbnn.attacks.attack import Attack
from pyro_advbnn.attacks.balls import BALLS, check_ball
from pyro_advbnn.attacks.losses import averaging_of, check_loss, keep_worse
from pyro_advbnn.system.errors import check_at_least


@dataclass(frozen=True)
class RandomNoise(Attack):
    """Random points of the border of the ball, an `Attack`.

    Each pixel is epsilon up or down ("linf"), or the image at the distance epsilon ("l2"), then brought to [0, 1]. Of
    num_tries >= 1 points an image's worst by `keep_worse` is kept.
    loss, attack_samples, average: as in `losses.loss_and_gradient`.

    Raises InputError for settings out of range.
    """

    epsilon: float
    norm: str = "linf"
    num_tries: int = 1
    loss: str | Callable = "ce"
    attack_samples: int = 1
    average: str = "gradient"
    generator: torch.Generator | None = None

    name = "noise"

    def __post_init__(self) -> None:
        check_ball(self.epsilon, self.norm)
        check_loss(**averaging_of(self))
        check_at_least("num_tries", self.num_tries, 1)

    def run(self, classifier: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        ball = BALLS[self.norm](x, self.epsilon)
        x_adv = ball.random_border_point(self.generator)
        for _ in range(self.num_tries - 1):
            x_adv = keep_worse(classifier, x_adv, ball.random_border_point(self.generator), y, **averaging_of(self))
        return x_adv
