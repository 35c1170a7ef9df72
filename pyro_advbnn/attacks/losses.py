"""Losses that an attack raises, averaged over a random classifier's draws, and their gradients by the images.

Two averages answer two questions. "gradient" is the mean over draws of the loss, and so of its gradient: the expected loss
of Eq. (3), expectation over transformation (Athalye et al. 2018). "probability" is the loss of the one answer that the
draws give together, their mean softmax, which is what an averaged prediction is judged by.

The classifier is called as it is: attacks put it into `eval_mode` and `frozen` around their loops.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from pyro_advbnn.attacks.balls import per_image
from pyro_advbnn.attacks.modes import eval_mode, frozen
from pyro_advbnn.bayes.averaging import log_mean_softmax
from pyro_advbnn.system.errors import InputError, check_at_least
from pyro_advbnn.system.random_streams import undisturbed

AVERAGES = ("gradient", "probability")


def cross_entropy(logits, y):
    """The cross-entropy of each image (B,). Its gradient vanishes in float32 where the true class is all but certain."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits, y):
    """max_{j != y} z_j - z_y of each image (B,), above 0 where another class wins (Carlini and Wagner 2017)."""
    true, other = true_and_other(logits, y)
    return other - true


def dlr(logits, y):
    """-(z_y - max_{j != y} z_j) / (z_pi1 - z_pi3), the difference of logits ratio (Croce and Hein 2020); (B,).

    z_pi1 >= z_pi2 >= ...: the logits in order. Neither a shift nor a scale of the logits changes it.

    Raises InputError for less than 3 classes.
    """
    if logits.shape[1] < 3:
        raise InputError(f"the loss dlr needs at least 3 classes, the classifier has {logits.shape[1]}")
    true, other = true_and_other(logits, y)
    top = logits.topk(3, dim=1).values
    return (other - true) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


def targeted_dlr(logits, target, y=None):
    """(z_t - z_y) / (z_pi1 - (z_pi3 + z_pi4) / 2) of each image (B,), above 0 where the target is ahead of the true class.

    The targeted loss of Croce and Hein (2020), which unlike minus `dlr` is not constant where the target ranks third. Without
    y the largest logit but the target's stands in the place of z_y: above 0 where the target wins.

    Raises InputError for less than 4 classes.
    """
    if logits.shape[1] < 4:
        raise InputError(f"the loss dlr needs at least 4 classes where there is a target, the classifier has {logits.shape[1]}")
    wanted, other = true_and_other(logits, target)
    other = other if y is None else logits.gather(1, y[:, None])[:, 0]
    top = logits.topk(4, dim=1).values
    return (wanted - other) / (top[:, 0] - top[:, 2:].mean(1)).clamp_min(1e-12)


LOSSES = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


@dataclass(frozen=True)
class Towards:
    """The loss that a targeted attack raises: `targeted_dlr`, or minus another `loss` of the target in the label's place."""

    loss: str | Callable

    def __call__(self, logits, target):
        function = loss_function(self.loss)
        return targeted_dlr(logits, target) if function is dlr else -function(logits, target)


def expected_loss(classifier, x, y, *, loss="ce", attack_samples=1, average="gradient"):
    """The loss of each image (B,) averaged over attack_samples >= 1 draws, without gradient; see `loss_and_gradient`."""
    function = loss_function(loss)
    with torch.no_grad():
        if average == "probability":
            return _losses(function, log_mean_softmax(classifier(x.clone()) for _ in range(attack_samples)), y)
        losses = [_losses(function, classifier(x.clone()).float(), y) for _ in range(attack_samples)]
        return torch.stack(losses).mean(0)


def keep_worse(classifier, x_adv, other, y, **averaging):
    """Of each image the one of its two attacked versions that is worse, by `is_worse`; (B, C, H, W).

    Both are measured anew by `outcomes_together`: that one had a lucky draw before does not count.
    """
    with eval_mode(classifier), frozen(classifier):
        one, another = outcomes_together(classifier, x_adv, other, y, **averaging)
    return torch.where(per_image(is_worse(*another, *one), x_adv), other, x_adv)


def outcomes_together(classifier, x_adv, other, y, **averaging):
    """For x_adv, and for other, (its `expected_loss`, whether the averaged answer is a success), each (B,).

    Both see the same draws, of weights as of noise for each image, so that their difference varies less than either: the
    calls begin from one state of torch's global generators.
    """
    with undisturbed():
        outcome = _outcome(classifier, x_adv, y, **averaging)
    return outcome, _outcome(classifier, other, y, **averaging)


def _outcome(classifier, x, y, *, loss="ce", **averaging):
    noting = NotingSuccess(loss)
    return expected_loss(classifier, x, y, loss=noting, **averaging), noting.succeeded()


def is_worse(losses, succeeded, other_losses, other_succeeded):
    """Where (B,) an attacked image is worse than another: success first, then the larger loss."""
    return torch.where(succeeded == other_succeeded, losses > other_losses, succeeded)


class NotingSuccess:
    """A loss that notes the answers that it is given, for `succeeded` after all draws."""

    def __init__(self, loss):
        self._function, self._answers = loss_function(loss), []

    def __call__(self, logits, y):
        self._answers.append(logits.detach().softmax(-1))
        self._y = y
        return self._function(logits, y)

    def succeeded(self):
        """Where (B,) the mean softmax of all answers is largest for another class than the true one, or for the target."""
        is_y = torch.stack(self._answers).mean(0).argmax(1) == self._y
        return is_y if isinstance(self._function, Towards) else ~is_y


def loss_and_gradient(classifier, x, y, *, loss="ce", attack_samples=1, average="gradient"):
    """(losses (B,), gradient like x): the averaged loss of each image and its gradient by that image, both detached.

    x (B, C, H, W), y (B,) true labels. loss: a name of LOSSES, or a function of that signature, (logits (B, K) float32, y)
    -> (B,), larger = nearer to being broken. average: one of AVERAGES, over attack_samples >= 1 fresh draws. That of
    "probability" holds one draw's activations at a time, for which each draw is called a second time on the way back: its
    randomness must come from torch's global generators. Settings are as `check_loss` finds them to be.

    Raises InputError for losses that are not (B,), and where there is no gradient.
    """
    x = x.detach().requires_grad_()                      # cloned below: a first layer may work in place
    gradient_of = _of_mean_probability if average == "probability" else _of_mean_loss
    return gradient_of(lambda x: classifier(x.clone()), x, y, loss_function(loss), attack_samples)


def averaging_of(attack):
    """The settings of an attack that `loss_and_gradient` and `expected_loss` take, by name."""
    return {"loss": attack.loss, "attack_samples": attack.attack_samples, "average": attack.average}


def check_loss(*, loss, attack_samples, average):
    """Raises InputError for a loss or an average that there is not, and for attack_samples below 1."""
    if not (callable(loss) or loss in tuple(LOSSES)):
        raise InputError(f"loss must be one of {', '.join(LOSSES)} or a function, got {loss!r}")
    if average not in AVERAGES:
        raise InputError(f"average must be one of {', '.join(AVERAGES)}, got {average!r}")
    check_at_least("attack_samples", attack_samples, 1)


def loss_function(loss):
    """The function of a name of LOSSES; a function as it is."""
    return LOSSES[loss] if isinstance(loss, str) else loss


def loss_name(loss):
    """What a loss is called in the name of an attack and in the records."""
    return loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)


def _of_mean_loss(call, x, y, function, attack_samples):
    total_loss = total_gradient = 0
    for _ in range(attack_samples):
        with torch.enable_grad():
            losses = _losses(function, call(x).float(), y)
            gradient = _gradient(losses, x)
        total_loss, total_gradient = total_loss + losses.detach(), total_gradient + gradient
    return total_loss / attack_samples, total_gradient / attack_samples


def _of_mean_probability(call, x, y, function, attack_samples):
    def draw():                                          # of one draw there is nothing to save: it is held anyway
        return call(x) if attack_samples == 1 else checkpoint(call, x, use_reentrant=False)
    with torch.enable_grad():
        losses = _losses(function, log_mean_softmax(draw() for _ in range(attack_samples)), y)
        gradient = _gradient(losses, x)
    return losses.detach(), gradient


def _losses(function, logits, y):
    """What the function says of each image, (B,).   Raises InputError where that is not a number for each."""
    losses = function(logits, y)
    if losses.shape != y.shape:
        raise InputError(f"the loss must give one number for each of {len(y)} images, got a tensor of shape "
                         f"{tuple(losses.shape)}; those of torch do by reduction='none'")
    return losses


def _gradient(losses, x):
    gradient = torch.autograd.grad(losses.sum(), x, allow_unused=True)[0] if losses.requires_grad else None
    if gradient is None:
        raise InputError("the classifier's answer has no gradient by its images: no_grad, detach or whole numbers stand in its "
                         "way; of the attacks only Square and noise go without")
    return gradient


def true_and_other(logits, y):
    """The true class's logit and the largest other one, of each image (B,)."""
    index = y[:, None]
    return logits.gather(1, index)[:, 0], logits.scatter(1, index, -math.inf).amax(1)
