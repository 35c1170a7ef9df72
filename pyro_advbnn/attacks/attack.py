"""What every attack is, and whether images and labels are fit for one, or for a training step: found out before any work.

Each check raises InputError with one line that says what was expected and what came.
"""
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import nn

from pyro_advbnn.attacks.losses import Towards
from pyro_advbnn.bayes.classifier import check_explains_classes
from pyro_advbnn.system.errors import InputError


class Attack:
    """A callable (classifier, x, y) -> x_adv. What it does is its `run`, for images and labels that have been looked at.

    x (B, C, H, W) in [0, 1], y (B,) true labels, integers of any type. target (B,): classes that the answers are to be led
    to, in place of away from y. A GPU is waited for once.

    Raises InputError for what is no nn.Module, for images, labels and a target that are not fit, for a target of an attack
    that has no `loss`, and for a loss that does not give one number for each image.
    """

    def __call__(self, classifier: nn.Module, x: torch.Tensor, y: torch.Tensor, *,
                 target: torch.Tensor | None = None) -> torch.Tensor:
        attack, name = self, "labels"
        if target is not None:
            if not hasattr(self, "loss"):
                raise InputError(f"{type(self).__name__} takes no target")
            attack, y, name = replace(self, loss=Towards(self.loss)), target, "target"  # type: ignore[type-var]
        check_module(classifier)
        y, bounds = checked_batch(x, y, name)
        with torch.inference_mode(False), labels_within_classes(classifier, bounds, name):
            return attack.run(classifier, *(tensor.clone() if tensor.is_inference() else tensor for tensor in (x, y)))

    def run(self, classifier: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x_adv, for images and labels that are known to be fit: what an attack is."""
        raise NotImplementedError


def unchecked(attack):
    """The attack without its looks at images and labels, for those that are known to be fit: so it waits for no GPU."""
    return attack.run if isinstance(attack, Attack) else attack


def checked_batch(x, y, name="labels"):
    """(y as int64, its least and largest label) of images x and labels y that are fit; a GPU is waited for once."""
    _check_kind(x)
    y = _class_numbers(y, x, name)
    low, high, *bounds = torch.stack([value.double() for value in (*x.detach().aminmax(), *y.aminmax())]).tolist()
    _check_range(low, high)
    return y, bounds


@contextmanager
def labels_within_classes(module, bounds, name="labels"):
    """Calls of the module inside raise InputError where it tells no classes apart, or too few for these labels."""
    def check(module, images, logits):
        check_explains_classes(module, logits)
        if isinstance(logits, torch.Tensor) and logits.dim() == 2:
            _check_classes(bounds, logits.shape[1], name)
    with nullcontext() if isinstance(module, torch.jit.ScriptModule) else module.register_forward_hook(check):
        yield                                            # scripted modules take no hooks


def check_module(classifier):
    """Raises InputError for what is no nn.Module."""
    if not isinstance(classifier, nn.Module):
        raise InputError(f"the classifier must be an nn.Module, got {kind(classifier)}")


def check_images(x, name="images"):
    """Raises InputError for what is not a tensor (B, C, H, W) of floating point numbers in [0, 1], none of them NaN."""
    _check_kind(x, name)
    _check_range(*torch.stack(x.detach().aminmax()).tolist(), name)


def checked_labels(y, num_classes, x):
    """y as int64.   Raises InputError for what is not a tensor (B,) of integers in [0, num_classes), one for each image."""
    y = _class_numbers(y, x)
    _check_classes(torch.stack(y.aminmax()).tolist(), num_classes)
    return y


def kind(value):
    """What something is, in few words."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype} on {value.device}"
    return f"a {type(value).__name__}"


def _check_kind(x, name="images"):
    batch = isinstance(x, torch.Tensor) and x.dim() in (2, 4)        # feature vectors (B, D) are images of a kind
    if not batch or not x.is_floating_point() or not x.numel():
        raise InputError(f"{name} must be a tensor (B, C, H, W) of floats in [0, 1], at least one image, got {kind(x)}")


def _check_range(low, high, name="images"):
    if not (low >= 0 and high <= 1):                     # true for NaN too
        raise InputError(f"{name} must lie in [0, 1], these reach from {low:g} to {high:g}; normalisation is the "
                         f"network's first layer")


def _class_numbers(y, x, name="labels"):
    whole = isinstance(y, torch.Tensor) and not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if not whole or y.dim() != 1 or len(y) != len(x) or y.device != x.device:
        raise InputError(f"{name} must be a tensor (B,) of class numbers, integers, one for each of {len(x)} images on "
                         f"{x.device}, got {kind(y)}")
    return y.long()


def _check_classes(bounds, num_classes, name="labels"):
    low, high = bounds
    if low < 0 or high >= num_classes:
        raise InputError(f"{name} must lie between 0 and {num_classes - 1}, as there are {num_classes} classes, these reach "
                         f"from {low:.0f} to {high:.0f}")
