"""Whether images, labels and a module of the user's own are fit for evaluation, found out before any work.

Each check raises InputError with one line that says what was expected and what came.
"""
import math

import torch
from torch import nn

from pyro_advbnn.attacks.balls import BALLS
from pyro_advbnn.attacks.modes import eval_mode, frozen
from pyro_advbnn.bayes.classifier import checked_logits
from pyro_advbnn.system.errors import InputError, reason
from pyro_advbnn.system.random_streams import undisturbed

_ROUNDING = 1e-5                                         # of a pixel in float32, with room for other people's attacks
_ENOUGH_NUMBERS = 16                                     # from so many on it is no chance that all lie between 0 and 1


def check_images(x, name="images"):
    """Raises InputError for what is not a tensor (B, C, H, W) of floating point numbers in [0, 1], none of them NaN."""
    if not isinstance(x, torch.Tensor):
        raise InputError(f"{name} must be a torch tensor (B, C, H, W), got {_kind(x)}")
    if not x.is_floating_point():
        raise InputError(f"{name} must be floating point numbers in [0, 1], got {x.dtype}; divide bytes by 255")
    if x.dim() != 4 or not x.numel():
        raise InputError(f"{name} must be (B, C, H, W), at least one, got {_kind(x)}")
    low, high = x.detach().aminmax()
    if not (low >= 0 and high <= 1):                     # true for NaN too
        raise InputError(f"{name} must lie in [0, 1], these reach from {low.item():g} to {high.item():g}")


def check_labels(y, num_classes, x=None):
    """Raises InputError for what is not a tensor (B,) of class numbers 0 to num_classes - 1, int64.

    x: the images that they belong to; there must be as many labels, on the same device.
    """
    if not isinstance(y, torch.Tensor):
        raise InputError(f"labels must be a torch tensor (B,), got {_kind(y)}")
    if y.dtype != torch.int64 or y.dim() != 1 or not len(y):
        raise InputError(f"labels must be class numbers (B,) of torch.int64, at least one, got {_kind(y)}, {y.dtype}")
    if x is not None and len(x) != len(y):
        raise InputError(f"there must be one label for each image, got {len(x)} images and {len(y)} labels")
    if x is not None and x.device != y.device:
        raise InputError(f"images and labels must lie on one device, got {x.device} and {y.device}")
    low, high = (value.item() for value in y.aminmax())
    if low < 0 or high >= num_classes:
        raise InputError(f"labels must lie between 0 and {num_classes - 1}, as there are {num_classes} classes, "
                         f"these reach from {low} to {high}")


def check_classifier(classifier, x, *, gradient=True):
    """The number of classes that a module tells apart, from its answer to a few images x (B, C, H, W) in [0, 1].

    It is called once, in eval mode; torch's global generators stand afterwards where they stood. gradient: whether a
    gradient of its logits by the images is needed, as by all attacks but those that only ask for answers.

    Raises InputError for what is no nn.Module, fails on the images, or answers with something else than finite logits
    (B, classes), probabilities among them, or without the gradient.
    """
    if not isinstance(classifier, nn.Module):
        raise InputError(f"the classifier must be an nn.Module, got {_kind(classifier)}")
    if gradient and torch.is_inference_mode_enabled():
        raise InputError("an attack takes gradients, which torch.inference_mode() forbids: call it outside")
    with undisturbed(), eval_mode(classifier), frozen(classifier), torch.enable_grad():
        x = x.detach().clone().requires_grad_(gradient)
        logits = _answer(classifier, x)
        check_logits(logits.detach())
        if gradient:
            _check_gradient(logits, x)
    return logits.shape[1]


def logits_of(classifier, x):
    """The logits (B, classes) of one call, in float32.   Raises InputError for an answer of another kind or shape."""
    return checked_logits(classifier(x), len(x)).float()


def check_probabilities(probabilities):
    """Raises InputError where an averaged prediction (B, classes) holds NaN, which argmax would take for a class."""
    lost = int(probabilities.isnan().any(-1).sum())
    if lost:
        raise InputError(f"the classifier's logits must be finite, got NaN or infinite ones for {lost} of "
                         f"{len(probabilities)} images")


def check_attacked(x_adv, x, attack=None):
    """Raises InputError where an attack returned something else than images in [0, 1] like those that it got.

    attack: where it has an epsilon, all must lie within that of x, by its norm: "linf", also where it has none, "l2", or inf
        and 2; by another one nothing is checked.
    """
    alike = isinstance(x_adv, torch.Tensor) and (x_adv.shape, x_adv.dtype, x_adv.device) == (x.shape, x.dtype, x.device)
    if not alike:
        got = f"{_kind(x_adv)}, {x_adv.dtype}, {x_adv.device}" if isinstance(x_adv, torch.Tensor) else _kind(x_adv)
        raise InputError(f"the attack must return a tensor like its images, {_kind(x)}, {x.dtype}, {x.device}, got {got}")
    check_images(x_adv, "attacked images")
    norm = str(getattr(attack, "norm", "linf")).lower()
    norm = norm if norm.startswith("l") else f"l{norm}"
    if getattr(attack, "epsilon", None) is not None and norm in BALLS:
        epsilon = _radius(attack.epsilon)
        farthest = BALLS[norm].size(x_adv.double() - x.double()).max().item()
        if farthest > epsilon + max(_ROUNDING, torch.finfo(x.dtype).eps) * (x[0].numel() ** 0.5 if norm == "l2" else 1):
            raise InputError(f"the attack must stay within its epsilon {epsilon:g} of the images ({norm}), its farthest is "
                             f"{farthest:g} away")


def _radius(epsilon):
    try:
        number = float(epsilon)
    except (TypeError, ValueError):
        number = math.nan
    if not number >= 0:
        raise InputError(f"the epsilon of an attack must be a number >= 0, got {epsilon!r}")
    return number


def pair(batch):
    """(x, y) of one batch.   Raises InputError where it is no pair, as where one batch was given instead of several."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError(f"batches must be several pairs (images, labels), as [(x, y)], got {_kind(batch)} for a pair")
    return batch


def check_repeatable(batches):
    """Raises InputError for batches that can be gone through only once, such as a generator."""
    if iter(batches) is batches:
        raise InputError(f"the batches must be such that can be gone through again, as a list, got {_kind(batches)}")


def check_same_labels(y, before):
    """Raises InputError where a batch has not the labels that it had when the batches were gone through before."""
    if not torch.equal(y, before):
        raise InputError("the batches must come in the same order each time that they are gone through: do not shuffle them")


def _answer(classifier, x):
    try:
        return logits_of(classifier, x.clone())          # cloned: a first layer may work in place
    except (InputError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:                           # whatever the user's module does
        raise InputError(f"the classifier fails on images {tuple(x.shape)}, {x.dtype}, {x.device}: "
                         f"{type(error).__name__}: {reason(error)}") from error


def check_logits(logits):
    """Raises InputError for what (B, classes) is not finite, or what a softmax or a sigmoid has been at."""
    if not logits.isfinite().all():
        raise InputError("the classifier's logits must be finite, got NaN or infinite ones")
    sums_to_one = (logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-2).all()
    if sums_to_one and (logits % 1 > 0).any():           # a softmax of a softmax would hide the gradient
        raise InputError("the classifier must return logits, these are probabilities: rows that sum to 1; leave its softmax "
                         "out, or return their log")
    after_sigmoid = ((logits > 0) & (logits <= 1)).all() and (logits < 1).any()           # a ReLU leaves zeros
    if after_sigmoid and logits.numel() >= _ENOUGH_NUMBERS:
        raise InputError("the classifier must return logits, these all lie between 0 and 1, as after a sigmoid: leave it out; "
                         "subtract 1 from what are logits all the same")


def _check_gradient(logits, x):
    gradient, = torch.autograd.grad(logits.sum(), x, allow_unused=True) if logits.requires_grad else (None,)
    if gradient is None:
        raise InputError("the classifier's logits have no gradient by the images, which this attack needs; was it computed "
                         "without gradients, detached, or from whole numbers?")
    if not gradient.isfinite().all():
        raise InputError("the gradient of the classifier's logits by the images must be finite, got NaN or infinite numbers")


def _kind(value):
    """What something is, in few words."""
    return f"a tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
