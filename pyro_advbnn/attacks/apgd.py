"""Auto-PGD: projected gradient ascent that chooses its step sizes itself (Croce and Hein 2020, Algorithm 1).

Every image has a step size of its own, 2 epsilon at first. At checkpoints, ever closer together, it is halved and the image
goes back to its best point, where too few steps since the checkpoint before raised the loss, or where neither the step size
nor the best loss changed between the two.

On a random classifier a loss is that of the draws of one moment, and a best point that was merely lucky would never be left:
there the best point is measured anew beside every new one, under the same draws. Whether a step raised the loss, the first
condition, is by the draws of both its gradients; from a best point gone back to, by the draws that it was last measured under.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from pyro_advbnn.attacks.attack import Attack
from pyro_advbnn.attacks.balls import BALLS, check_ball, per_image
from pyro_advbnn.attacks.losses import (
    NotingSuccess,
    averaging_of,
    check_loss,
    is_worse,
    loss_and_gradient,
    loss_name,
    outcomes_together,
    targeted_dlr,
)
from pyro_advbnn.attacks.modes import draws_anew, eval_mode, frozen
from pyro_advbnn.bayes.averaging import log_mean_softmax
from pyro_advbnn.system.errors import InputError, check_at_least

SHARE_OF_STEP = 0.75                                     # alpha: the rest of a move repeats the one before
SHARE_OF_RISES = 0.75                                    # rho: of the steps between two checkpoints
FIRST_PERIOD, SHRINKAGE, SHORTEST_PERIOD = 22, 3, 6      # between checkpoints, in percent of the steps


@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD, an `Attack`: of the points of an image that it meets the best.

    That is the one of the largest averaged loss among those whose averaged answer is wrong (of a targeted attack: the
    target) or, where none is, among all.

    loss, attack_samples, average: as in `losses.loss_and_gradient`. Each of the restarts >= 1 runs begins at a
    uniform point of the ball, drawn from `generator`, and takes num_steps + 1 gradients; on a random classifier also
    2 num_steps times attack_samples forward calls. target_rank: 0, or 1 for the loss `targeted_dlr` with the wrong class that
    the averaged answer on the image holds for the likeliest as target, 2 with the next one, and so on; any wrong answer is a
    success. Those of ranks 1 to 9 are together the APGD-T of AutoAttack.

    Raises InputError for settings out of range, another loss with a rank, and a rank for which there are too few classes.
    """

    epsilon: float
    num_steps: int = 100
    loss: str | Callable = "ce"
    attack_samples: int = 1
    average: str = "gradient"
    restarts: int = 1
    norm: str = "linf"
    generator: torch.Generator | None = None
    target_rank: int = 0

    def __post_init__(self) -> None:
        check_ball(self.epsilon, self.norm)
        check_loss(**averaging_of(self))
        check_at_least("num_steps", self.num_steps, 1)
        check_at_least("restarts", self.restarts, 1)
        check_at_least("target_rank", self.target_rank, 0)
        if self.target_rank and self.loss != "dlr":
            raise InputError("an attack with a target_rank has the loss dlr and finds its targets itself")

    @property
    def name(self) -> str:
        """"apgd-" and the loss, with the average, the norm and the rank where these are not "gradient", "linf" and 0."""
        settings = ((self.average, "gradient"), (self.norm, "linf"), (f"t{self.target_rank}", "t0"))
        return "-".join(["apgd", loss_name(self.loss), *(setting for setting, usual in settings if setting != usual)])

    def run(self, classifier: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.epsilon == 0:
            return x.detach().clone()
        with eval_mode(classifier), frozen(classifier):
            if self.target_rank:
                target = self._target(classifier, x, y)
                return replace(self, loss=partial(_targeted, target), target_rank=0).run(classifier, x, y)
            is_random = draws_anew(classifier, x, calls=2)          # of a whole batch; one of few draws may pass as none
            best = self._run(classifier, x, y, is_random)
            for _ in range(self.restarts - 1):
                best, _ = self._better(classifier, self._run(classifier, x, y, is_random), best, y, is_random)
        return best.x_adv

    def _target(self, classifier, x, y):
        with torch.no_grad():
            answer = log_mean_softmax(classifier(x.clone()) for _ in range(self.attack_samples))
        if self.target_rank >= answer.shape[1]:
            raise InputError(f"target_rank must be less than the number of classes, {answer.shape[1]}, got {self.target_rank}")
        return answer.scatter(1, y[:, None], -math.inf).topk(self.target_rank, dim=1).indices[:, -1]

    def _run(self, classifier, x, y, is_random):
        ball, steps = BALLS[self.norm](x, self.epsilon), _Steps(len(x), 2 * self.epsilon, self.num_steps, x)
        now = best = self._at(classifier, ball.random_point(self.generator), y)
        x_before = now.x_adv
        for k in range(1, self.num_steps + 1):
            after = self._at(classifier, _moved(ball, now, x_before, steps.sizes, 1 if k == 1 else SHARE_OF_STEP), y)
            best, is_better = self._better(classifier, after, best, y, is_random)
            go_back = steps.count(k, after.losses > now.losses, is_better)
            x_before, now = now.x_adv, after if go_back is None else _chosen(go_back, best, after)
        return best

    def _at(self, classifier, x_adv, y):
        noting = NotingSuccess(self.loss)
        losses, gradient = loss_and_gradient(classifier, x_adv, y, **averaging_of(self) | {"loss": noting})
        return _Points(x_adv, losses, gradient, noting.succeeded())

    def _better(self, classifier, now, best, y, is_random):
        """(the better of the two for each image, where that is `now`): success first, then the larger loss."""
        if is_random:
            (losses, succeeded), (best_losses, best_succeeded) = outcomes_together(classifier, now.x_adv, best.x_adv, y,
                                                                                   **averaging_of(self))
            now = now._replace(losses=losses, succeeded=succeeded)
            best = best._replace(losses=best_losses, succeeded=best_succeeded)
        is_better = is_worse(now.losses, now.succeeded, best.losses, best.succeeded)
        return _chosen(is_better, now, best), is_better


def _targeted(target, logits, y):
    return targeted_dlr(logits, target, y)


def checkpoints(num_steps):
    """The steps w_1 < w_2 < ... after which the step size may be halved: ceil(p_j num_steps).

    p_1 = 0.22, and each period is 0.03 shorter than the one before it but at least 0.06.
    """
    percents, period = [0], FIRST_PERIOD
    while percents[-1] + period <= 100:
        percents.append(percents[-1] + period)
        period = max(period - SHRINKAGE, SHORTEST_PERIOD)
    return sorted({-(-percent * num_steps // 100) for percent in percents[1:]})


class _Points(NamedTuple):
    """A point of each image, its loss (B,), its gradient, and whether the averaged answer there is a success (B,)."""

    x_adv: torch.Tensor
    losses: torch.Tensor
    gradient: torch.Tensor
    succeeded: torch.Tensor


class _Steps:
    """The step size of each image (B,), and what was seen since the last checkpoint, by which it is halved."""

    def __init__(self, batch_size, size, num_steps, like):
        self.sizes = like.new_full((batch_size,), size)
        self._checkpoints = checkpoints(num_steps)
        self._last_checkpoint = 0
        self._was_halved = torch.ones_like(self.sizes, dtype=torch.bool)   # no condition 2 at the first checkpoint
        self._forget()

    def count(self, k, rose, is_better):
        """Takes in step k; at a checkpoint the images (B,) whose step size was halved by it, else None."""
        self._rises, self._found_better = self._rises + rose, self._found_better | is_better
        if k not in self._checkpoints:
            return None
        too_few_rises = self._rises < SHARE_OF_RISES * (k - self._last_checkpoint)
        halved = too_few_rises | ~(self._was_halved | self._found_better)
        self.sizes = torch.where(halved, self.sizes / 2, self.sizes)
        self._last_checkpoint, self._was_halved = k, halved
        self._forget()
        return halved

    def _forget(self):
        self._rises = torch.zeros_like(self.sizes)
        self._found_better = torch.zeros_like(self.sizes, dtype=torch.bool)


def _moved(ball, now, x_before, sizes, share):
    """`share` of a projected ascent step and the rest of the move that led here, projected (lines 8 and 9)."""
    ascended = ball.project_(now.x_adv + per_image(sizes, now.x_adv) * ball.ascent(now.gradient))
    return ball.project_(now.x_adv + share * (ascended - now.x_adv) + (1 - share) * (now.x_adv - x_before))


def _chosen(is_first, first, second):
    """_Points that are `first` where is_first (B,), else `second`."""
    return _Points(*(torch.where(per_image(is_first, one), one, other) for one, other in zip(first, second, strict=True)))
