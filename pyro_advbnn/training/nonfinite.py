"""Steps whose numbers go wrong: found without waiting for a GPU, and named."""
import math

import torch

from pyro_advbnn.system.errors import InputError

LARGEST_GRADIENT = math.sqrt(torch.finfo(torch.float32).max)     # Adam keeps squares, and freezes where one is infinite


class NotFinite(InputError):
    """A loss, a gradient or a weight is no finite number any more, or a std has exploded."""


class Watch:
    """The step of a training that went wrong first.

    A step goes wrong where its nll, its KL, their weighted sum or its gradient is not finite; so does a gradient beyond
    LARGEST_GRADIENT, whose square is infinite in float32; and so does one after which a std has exploded.
    """

    def __init__(self, device):
        self._first = torch.full((6,), torch.nan, dtype=torch.float64, device=device)

    def judge(self, step, nll, kl, loss, gradient, exploded=None):
        """Remember step number `step` where it is the first that went wrong.

        All others are scalar tensors, the same in all processes; of double precision, but for exploded, a bool.
        gradient: `largest` of all gradients.
        """
        exploded = torch.zeros_like(nll, dtype=torch.bool) if exploded is None else exploded
        good = torch.stack([nll, kl, loss]).isfinite().all() & (gradient <= LARGEST_GRADIENT)       # NaN is not <= either
        numbers = torch.stack([torch.full_like(nll, step), nll, kl, loss, gradient, (exploded & good).double()])
        self._first = torch.where(self._first[0].isnan() & (~good | exploded), numbers, self._first)

    def check(self, epoch):
        """Raises NotFinite for the step that went wrong first, one of this epoch; waits for the device."""
        step, *numbers = self._first.tolist()
        if not math.isnan(step):
            raise NotFinite(_what_went_wrong(*numbers, step, epoch))


def largest(tensors):
    """The largest absolute value in any of the tensors, a double scalar on their device; NaN where there is one.

    One reading pass: on the CPU 1.5 ms for the 14.7 million weights of a VGG16, where a norm or isfinite takes up to 90.
    """
    ends = [end.double() for tensor in tensors if tensor.numel() for end in tensor.detach().aminmax()]
    return torch.stack(ends).abs().max() if ends else torch.zeros((), dtype=torch.float64)


def _what_went_wrong(nll, kl, loss, gradient, exploded, step, epoch):
    at = f"at step {step:.0f} of epoch {epoch}"
    if exploded:
        return (f"the std explodes: a weight's has reached its upper bound of 10 {at}; only a new run with other settings, "
                f"such as a smaller --learning_rate, gets past it")
    lost = [name for name, value in (("nll", nll), ("kl", kl)) if not math.isfinite(value)]
    if not lost and not math.isfinite(loss):
        lost = ["kl times its weight"]                   # the nll alone is finite
    values = f"(nll {nll:g}, kl {kl:g}, largest gradient {gradient:g}) {at}"
    if not lost and math.isfinite(gradient):
        return f"the gradient is too large: its square is infinite in float32 {values}"
    return f"the loss is not finite: {' and '.join(lost)} {values}" if lost else f"the gradient is not finite {values}"
