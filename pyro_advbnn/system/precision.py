"""In what precision a network computes; weights, losses and the optimizer stay in float32 always.

torch is imported by the functions that need it, so that the names can be had without waiting for it.
"""
from contextlib import contextmanager, nullcontext
from math import prod

from pyro_advbnn.system.errors import InputError

PRECISIONS = ("fp32", "tf32", "bf16")
_KNOWN = ("torch.nn.", "torchvision.", "pyro_advbnn.")     # modules that leave the order of numbers in memory to torch
_MANY_WEIGHTS = 2**21              # of one convolution; 3x3 of 512 to 512 channels have 2.4 million


def resolve_precision(name, device):
    """The precision called `name`; None is bf16 on cuda and fp32 on cpu.   Raises InputError for tf32 without a GPU."""
    if name is None:
        return "bf16" if device.type == "cuda" else "fp32"
    if name == "tf32" and device.type != "cuda":
        raise InputError("precision tf32 needs a GPU; on the CPU there are fp32 and bf16")
    return name


@contextmanager
def float32_products(precision):
    """float32 matrices are multiplied inside in full precision on a GPU, or in TF32 for "tf32"; torch's default mixes both."""
    before = [place.fp32_precision for place in _float32_products()]
    for place in _float32_products():
        place.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        for place, value in zip(_float32_products(), before, strict=True):
            place.fp32_precision = value


@contextmanager
def arithmetic(device, precision):
    """`float32_products` and `autocast` for what is computed inside."""
    with float32_products(precision), autocast(device, precision):
        yield


def _float32_products():
    import torch

    return torch.backends.cuda.matmul, torch.backends.cudnn.conv


def autocast(device, precision):
    """A context in which convolutions and matrix products compute in bfloat16 for "bf16", and as they are otherwise.

    Their weights are cast in every call: those of an attack differ from step to step, and a cache would keep the first.
    """
    if precision != "bf16":
        return nullcontext()
    import torch

    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def as_convolutions_like(x, network):
    """Images x as the convolutions of `network` like them best in memory: channels last, or as they are.

    Under autocast channels last is for GPUs and for CPUs with AMX. In float32 on a CPU, for images of 32 pixels and more, it
    was measured to save 7 to 20 % of attacks, predictions and training steps of Model A and of a VGG16 of 16 base channels; a
    full VGG16 is slower so. A forward written elsewhere may take its activations for contiguous, as x.view(len(x), -1) does: it
    gets them so.
    """
    import torch

    if x.dim() != 4:
        return x
    if torch.is_autocast_enabled(x.device.type):
        likes = x.device.type == "cuda" or (x.device.type == "cpu" and torch.cpu._is_amx_tile_supported())
    else:
        likes = x.device.type == "cpu" and x.shape[-1] >= 32 and not _is_wide(network)
    is_known = likes and all(type(module).__module__.startswith(_KNOWN) for module in network.modules())
    return x.contiguous(memory_format=torch.channels_last) if is_known else x


def _is_wide(network):
    from torch.nn.modules.conv import _ConvNd

    convolutions = [module for module in network.modules() if isinstance(module, _ConvNd)]
    return any(c.in_channels // c.groups * c.out_channels * prod(c.kernel_size) > _MANY_WEIGHTS for c in convolutions)
