"""2x2 max-pooling on the CPU by a compiled loop, with the ReLU before it: torch's own are slow and take several passes."""
import torch
import torch.nn.functional as F
from torch import nn

from pyro_advbnn.bayes.kernels.vectors import in_threads, in_transform

try:                                                     # compiled at installation, where there is a C compiler
    from pyro_advbnn.bayes.kernels import _max_pool  # type: ignore[attr-defined]
except ImportError:
    _max_pool = None

_WINDOWS_PER_THREAD = 1 << 18          # fewer are done before another thread has begun


def max_pool_2x2(input):
    """`F.max_pool2d(input, 2)` of (B, C, H, W): the same numbers, and the same one of equals gets the gradient.

    Compiled for float32 and bfloat16 on the CPU with even H and W, contiguous or channels last; anything else, torch.func's
    transforms and torch.compile get torch's own.
    """
    return _MaxPool2x2.apply(input, False) if _fits(input) else F.max_pool2d(input, 2)


def max_pool_2x2_of_relu(input):
    """`max_pool_2x2(F.relu(input))` by the ReLU of what was pooled: a quarter of its work, and compiled none."""
    return _MaxPool2x2.apply(input, True) if _fits(input) else F.relu(F.max_pool2d(input, 2))


def is_2x2(module):
    """Whether a module is the max-pooling that `max_pool_2x2` can stand in for."""
    if type(module) is not nn.MaxPool2d or module.return_indices or module.ceil_mode:
        return False
    return [_pair(size) for size in (module.kernel_size, module.stride, module.padding, module.dilation)] == [
        (2, 2), (2, 2), (0, 0), (1, 1)]


def _pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)


class _MaxPool2x2(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, relu):
        ctx.shape, ctx.format = x.shape, _format(x)
        shape = (*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=ctx.format)
        which = torch.empty_like(y, dtype=torch.uint8)   # the place in its window, or none
        _in_parts(_max_pool.forward, x, y, which, relu)
        ctx.save_for_backward(which)
        return y

    @staticmethod
    def backward(ctx, grad):
        (which,) = ctx.saved_tensors
        if torch.is_grad_enabled():                      # the gradient shall have one itself
            return _spread(grad, which), None
        grad = grad.contiguous(memory_format=ctx.format)
        x = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.format)
        _in_parts(_max_pool.backward, x, grad, which)
        return x, None


def _fits(x):
    plain = (type(x) in (torch.Tensor, nn.Parameter) and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
             and x.dim() == 4 and x.numel() > 0 and x.is_contiguous(memory_format=_format(x))
             and x.shape[2] % 2 == x.shape[3] % 2 == 0)
    return _max_pool is not None and plain and not in_transform()


def _format(x):
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _in_parts(loop, x, y, which, relu=False):
    addresses, width = [t.data_ptr() for t in (x, y, which)], y.shape[-1]
    channels = 1 if x.is_contiguous() else x.shape[1]    # that lie together
    total = y.numel() // channels

    def part(first):
        loop(*addresses, first, min(first + size, total), width, channels, x.element_size(), relu)

    size = max(_WINDOWS_PER_THREAD // channels, -(-total // torch.get_num_threads()))
    in_threads(part, range(0, total, size))


def _spread(grad, which):
    """The gradient by operations that autograd can follow."""
    places = torch.arange(4, dtype=torch.uint8, device=which.device).view(2, 1, 2)         # row and column in the window
    chosen = which[..., :, None, :, None] == places
    return torch.where(chosen, grad[..., :, None, :, None], 0).flatten(4, 5).flatten(2, 3)
