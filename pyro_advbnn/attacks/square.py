"""Square Attack: a black-box attack on any module that maps images in [0, 1] to logits, random or not.

It asks for answers alone, so that it also breaks what merely hides its gradient (Athalye et al. 2018).
"""
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from pyro_advbnn.attacks.attack import Attack
from pyro_advbnn.attacks.balls import LinfBall, check_ball
from pyro_advbnn.attacks.losses import averaging_of, check_loss, keep_worse
from pyro_advbnn.system.errors import InputError, check_at_least, check_number


@dataclass(frozen=True)
class Square(Attack):
    """Random search with squares in the l_inf ball of radius epsilon (Andriushchenko et al. 2020, Algorithms 1 and 2).

    An `Attack`. Of num_queries >= 0 proposals per image the first is vertical stripes at the
    border of the ball; each further one sets a square, per channel, to +-epsilon. The square's share of the image is p_init
    in (0, 1] at first and halves on the authors' schedule, stretched to num_queries. A proposal replaces the current
    point where it alone succeeds, or else where its `loss` (`losses`), averaged over attack_samples draws, is larger.

    A random classifier's loss of the current point is measured anew beside each proposal, under the same draws: a lucky
    value is forgotten. A query costs twice attack_samples forward calls. All own randomness comes from `generator`, on x's
    device.

    Raises InputError for settings out of range.
    """

    epsilon: float
    num_queries: int = 1000
    attack_samples: int = 1
    average: str = "probability"
    loss: str | Callable = "margin"
    p_init: float = 0.8
    generator: torch.Generator | None = None

    name = "square"
    norm = "linf"

    def __post_init__(self) -> None:
        check_ball(self.epsilon, "linf")
        check_at_least("num_queries", self.num_queries, 0)
        check_loss(**averaging_of(self))
        check_number("p_init", self.p_init, high=1, above=True)

    def run(self, classifier: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x_adv, = deque(self.iterates(classifier, x, y), maxlen=1)
        return x_adv

    def iterates(self, classifier: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Iterator[torch.Tensor]:
        """A generator of the attacked images (B, C, H, W) after 0, 1, ..., num_queries queries."""
        if x.dim() != 4:
            raise InputError(f"Square changes squares of images (B, C, H, W), got a tensor {tuple(x.shape)}")
        x_adv = x.detach().clone()
        yield x_adv
        ball = LinfBall(x, self.epsilon)
        for query in range(self.num_queries if self.epsilon > 0 else 0):
            proposal = self._squares(x_adv, ball, query) if query else self._stripes(ball)
            x_adv = keep_worse(classifier, x_adv, proposal, y, **averaging_of(self))
            yield x_adv

    def side(self, query: int, height: int, width: int) -> int:
        """The side of the square of query number `query` >= 1, from 1 to the shorter side of the image."""
        share = self.p_init / 2 ** sum(10_000 * query > at * self.num_queries for at in _HALVINGS)
        return min(max(round(math.sqrt(share * height * width)), 1), height, width)

    def _stripes(self, ball):
        b, c, _, w = ball.low.shape
        return torch.where(self._signs((b, c, 1, w), ball.low.device), ball.high, ball.low)

    def _squares(self, x_adv, ball, query):
        """x_adv with one square per image, at a place of its own, at the upper or the lower border of the ball."""
        (b, c, h, w), device = x_adv.shape, x_adv.device
        side = self.side(query, h, w)
        rows, columns = (self._strip(b, length, side, device) for length in (h, w))
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        return torch.where(inside, torch.where(self._signs((b, c, 1, 1), device), ball.high, ball.low), x_adv)

    def _strip(self, size, length, side, device):
        """(size, length): true on `side` neighbours, anywhere."""
        start = torch.randint(length - side + 1, (size, 1), generator=self.generator, device=device)
        place = torch.arange(length, device=device)
        return (place >= start) & (place < start + side)

    def _signs(self, shape, device):
        return torch.rand(shape, generator=self.generator, device=device) < 0.5


# The authors' code halves the square's share after these queries of 10,000.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
