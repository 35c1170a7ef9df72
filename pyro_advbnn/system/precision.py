"""In what precision a network computes; weights, losses and the optimizer stay in float32 always.

torch is imported by the functions that need it, so that the names can be had without waiting for it.
"""
from contextlib import contextmanager, nullcontext

from pyro_advbnn.system.errors import InputError

PRECISIONS = ("fp32", "tf32", "bf16")


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
