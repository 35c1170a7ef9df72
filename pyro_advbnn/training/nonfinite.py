"""Steps whose numbers go wrong: found without waiting for a GPU, kept out of the weights, and named or counted."""
import math

import torch

from pyro_advbnn.system.errors import InputError

POLICIES = ("stop", "skip")
LARGEST_GRADIENT = math.sqrt(torch.finfo(torch.float32).max)     # Adam keeps squares, and freezes where one is infinite


class NotFinite(InputError):
    """A loss, a gradient or a weight is no finite number any more, or a std has exploded."""


class Watch:
    """What went wrong first in a training, and how many of its steps were left out.

    A step goes wrong where its nll, its KL, their weighted sum or its gradient is not finite; so does, with an optimizer that
    keeps squares in float32, a gradient beyond LARGEST_GRADIENT. Such a step must change nothing (`judge`). policy: "stop"
    keeps the first one for `check`, "skip" counts them. A std that explodes is kept under both: it is the work of many steps,
    and to leave out the last one would not mend it.
    """

    def __init__(self, device, policy="stop"):
        self.skips = policy == "skip"
        self._first = self._row = torch.full((6,), torch.nan, dtype=torch.float64, device=device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def skipped(self):
        """The number of steps that were left out; waits for the device."""
        return int(self._skipped)

    @skipped.setter
    def skipped(self, number):
        self._skipped.fill_(number)

    def judge(self, step, nll, kl, loss, gradient):
        """Whether step number `step` must change nothing, a bool scalar on the device.

        All but step are scalar tensors, double precision, the same in all processes. gradient: `largest` of all gradients.
        """
        bad = ~(torch.stack([nll, kl, loss]).isfinite().all() & (gradient <= LARGEST_GRADIENT))     # NaN is not <= either
        numbers = nll, kl, loss, gradient, torch.zeros_like(nll)
        if self.skips:
            self._skipped += bad
            self._keep_row(bad, step, *numbers)
        else:
            self._keep_first(bad, step, *numbers)
        return bad

    def judge_std(self, step, exploded):
        """Remember the step after which `exploded`, a bool scalar on the device, was true."""
        zero = torch.zeros((), dtype=torch.float64, device=exploded.device)
        self._keep_first(exploded, step, zero, zero, zero, zero, exploded.double())

    def check(self, epoch):
        """Raises NotFinite for the step that went wrong first, one of this epoch; waits for the device."""
        step, *numbers = self._first.tolist()
        if step == step:                                 # not NaN: there was one
            exploded = numbers[-1]
            way_on = "; only a new run with other settings, such as a smaller --learning_rate, gets past it" if exploded else ""
            raise NotFinite(f"{_what_went_wrong(*numbers)} at step {step:.0f} of epoch {epoch}{way_on}")

    def skipped_in_a_row(self, epoch):
        """What went wrong first where the last steps, of this epoch, were all skipped, or ""; waits for the device."""
        step, *numbers = self._row.tolist()
        wrong = f"{_what_went_wrong(*numbers)} at step {step:.0f} of epoch {epoch}, and every step of it since was skipped"
        return wrong if step == step else ""

    def _keep_first(self, bad, step, *numbers):
        self._first = torch.where(torch.isnan(self._first[0]) & bad, _together(step, numbers), self._first)

    def _keep_row(self, bad, step, *numbers):
        begins = torch.isnan(self._row[0]) | (self._row[0] >= step)                # the steps of an epoch are counted anew
        self._row = torch.where(bad, torch.where(begins, _together(step, numbers), self._row), torch.nan)


def _together(step, numbers):
    return torch.stack([torch.full_like(numbers[0], step), *numbers])


def largest(tensors):
    """The largest absolute value in any of the tensors, a double scalar on their device; NaN where there is one.

    One reading pass: on the CPU 1.5 ms for the 14.7 million weights of a VGG16, where a norm or isfinite takes up to 90.
    """
    ends = [end.double() for tensor in tensors if tensor.numel() for end in tensor.detach().aminmax()]
    return torch.stack(ends).abs().max() if ends else torch.zeros((), dtype=torch.float64)


def _what_went_wrong(nll, kl, loss, gradient, exploded):
    if exploded:
        return "the std explodes: a weight's has reached its upper bound of 10"
    lost = [name for name, value in (("nll", nll), ("kl", kl)) if not math.isfinite(value)]
    if not lost and not math.isfinite(loss):
        lost = ["kl times its weight"]                   # the nll alone is finite
    values = f"(nll {nll:g}, kl {kl:g}, largest gradient {gradient:g})"
    if not lost and math.isfinite(gradient):
        return f"the gradient is too large for the optimizer, which squares it {values}"
    return f"the loss is not finite: {' and '.join(lost)} {values}" if lost else f"the gradient is not finite {values}"
