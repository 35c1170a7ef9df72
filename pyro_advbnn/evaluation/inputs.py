"""Whether images, labels and a module of the user's own are fit for evaluation, found out before any work.

Each check raises InputError with one line that says what was expected and what came. What is checked is what would make a
figure wrong without a word.
"""
import warnings

import torch

from pyro_advbnn.attacks.attack import check_images, check_module, checked_labels, kind
from pyro_advbnn.attacks.balls import BALLS
from pyro_advbnn.attacks.modes import differ, eval_mode, frozen
from pyro_advbnn.bayes.classifier import check_explains_classes, checked_logits
from pyro_advbnn.system.errors import InputError, Note
from pyro_advbnn.system.random_streams import undisturbed

_ROUNDING = 1e-5                                         # of a pixel in float32, with room for other people's attacks
_ENOUGH_NUMBERS = 32                                     # from so many on it is hardly chance that all lie between 0 and 1


class NotFiniteAnswer(InputError):
    """A classifier answers with something else than finite numbers."""


def check_finite(values, what="the classifier's logits"):
    """Raises NotFiniteAnswer where a number among `values` is not finite."""
    if not values.isfinite().all():
        raise NotFiniteAnswer(f"{what} must be finite, got NaN or infinite ones")


def check_classifier(classifier, x):
    """The number of classes that a module tells apart, from its answer to a few images x (B, C, H, W) in [0, 1].

    It is called twice, in eval mode; torch's global generators stand afterwards where they stood. A Note tells where
    they do not govern its answers.

    Raises InputError for what is no nn.Module, and for one that answers with something else than finite logits (B, classes),
    probabilities among them, or whose gradient by the images is NaN, which the sign of an attack takes for 0.
    """
    check_module(classifier)
    with eval_mode(classifier), frozen(classifier), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        with undisturbed():
            logits = logits_of(classifier, x)
            check_logits(logits.detach())
            gradient, = torch.autograd.grad(logits.sum(), x, allow_unused=True) if logits.requires_grad else (None,)
        with undisturbed():
            repeated = logits_of(classifier, x)
    if differ(logits.detach(), repeated.detach()):
        warnings.warn("the classifier answers otherwise when torch's global generators are set back, as if it drew from "
                      "others: what compares or repeats draws is weaker or noisier for it (Square, restarts, "
                      "average=\"probability\", doubt of attacked images)", Note, stacklevel=2)
    if gradient is not None:
        check_finite(gradient, "the gradient of the classifier's logits by the images")
    return logits.shape[1]


def logits_of(classifier, x):
    """The logits (B, classes) of one call, in float32.   Raises InputError for an answer of another kind or shape."""
    logits = checked_logits(classifier(x.clone()), len(x)).float()       # a first layer may work in place
    check_explains_classes(classifier, logits)
    return logits


def check_logits(logits):
    """Raises InputError for what (B, classes) is not finite, or what a softmax has been at; a Note if a sigmoid may have."""
    check_finite(logits)
    sums_to_one = (logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-2).all()
    if sums_to_one and (logits % 1 > 0).any():           # a softmax of a softmax would hide the gradient
        raise InputError("the classifier must return logits, these are probabilities: rows that sum to 1; leave its softmax "
                         "out, or return their log")
    after_sigmoid = ((logits > 0) & (logits <= 1)).all() and (logits < 1).any()           # a ReLU leaves zeros
    if after_sigmoid and logits.numel() >= _ENOUGH_NUMBERS:                                # so may be cosines
        warnings.warn("the classifier's logits all lie between 0 and 1, as after a sigmoid; if there is one, leave it out",
                      Note, stacklevel=2)


def check_probabilities(probabilities):
    """Raises InputError where an averaged prediction (B, classes) holds NaN, which argmax would take for a class."""
    lost = int(probabilities.isnan().any(-1).sum())
    if lost:
        raise NotFiniteAnswer(f"the classifier's logits must be finite, got NaN or infinite ones for {lost} of "
                             f"{len(probabilities)} images")


def check_attacked(x_adv, x, attack=None):
    """Raises InputError where an attack returned something else than images in [0, 1] like those that it got.

    attack: where it has an epsilon, all must lie within that of x, by its norm: "linf", also where it has none, "l2", or inf
        and 2; by another one nothing is checked.
    """
    alike = isinstance(x_adv, torch.Tensor) and (x_adv.shape, x_adv.dtype, x_adv.device) == (x.shape, x.dtype, x.device)
    if not alike:
        raise InputError(f"the attack must return a tensor like its images, {kind(x)}, got {kind(x_adv)}")
    check_images(x_adv, "attacked images")
    norm, epsilon = str(getattr(attack, "norm", "linf")).lower(), getattr(attack, "epsilon", None)
    norm = {"inf": "linf", "2": "l2"}.get(norm, norm)
    if epsilon is not None and norm in BALLS:
        rounding = max(_ROUNDING, torch.finfo(x.dtype).eps) * (x[0].numel() ** 0.5 if norm == "l2" else 1)
        farthest = BALLS[norm].size(x_adv.double() - x.double()).max().item()
        if not farthest <= epsilon + rounding:           # true for an epsilon that is NaN, too
            raise InputError(f"the attack must stay within its epsilon {epsilon:g} of the images ({norm}), its farthest is "
                             f"{farthest:g} away")


def checked_batches(batches, classifiers):
    """A generator of the batches (x, y), each once it is found fit for all the classifiers, and they for it.

    Raises InputError where something is not fit, and where there is no batch.
    """
    num_classes = None
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise InputError(f"each of the batches must be a pair (images, labels), got {kind(batch)}")
        x, y = batch
        check_images(x)
        if num_classes is None:
            num_classes = min(check_classifier(classifier, x[:16]) for classifier in dict.fromkeys(classifiers))
        yield x, checked_labels(y, num_classes, x)
    if num_classes is None:
        raise InputError("there are no images to evaluate on")


class RepeatableBatches:
    """Batches (x, y) to go through many times, once for each attack: fit for the classifier, and in the same order each time.

    Raises InputError for images, labels and modules that are not fit, for none, for batches that can be gone through only
    once, such as a generator, and, on the way, for a batch that has not the labels that it had at first.
    """

    def __init__(self, classifier, batches):
        if iter(batches) is batches:
            raise InputError(f"the batches must be such that can be gone through again, as a list, got {kind(batches)}")
        self._batches, self._labels = batches, [y for _, y in checked_batches(batches, [classifier])]

    def __iter__(self):
        for (x, y), before in zip(self._batches, self._labels, strict=True):
            if not torch.equal(y.long(), before):
                raise InputError("the batches must come in the same order each time that they are gone through: do not shuffle "
                                 "them")
            yield x, before

    def some_images(self, number):
        """At most so many images of the first batch."""
        return next(iter(self._batches))[0][:number]
