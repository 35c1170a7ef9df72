"""Which device a command runs on, and what it is."""
import ctypes
import os
import resource
from contextlib import contextmanager

import torch

from pyro_advbnn.system import distributed
from pyro_advbnn.system.errors import InputError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4          # malloc.h


def resolve_device(name):
    """The torch.device called `name`; "auto" is cuda where there is one, under torchrun this process's own.

    Raises InputError for absent ones.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and distributed.launched():
        name = f"cuda:{distributed.local_rank()}"
    elif name.startswith("cuda:") and distributed.world_size() > 1:
        raise InputError(f"--device {name} is one GPU for all processes; --device cuda gives each its own")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def keep_freed_memory():
    """Let this process keep the memory that tensors give back, for the next ones.

    glibc returns what is large at once, and every step pays for its pages anew: a third of a step on the CPU with batches
    of 128. What is held at most stays about the same. Other C libraries are left as they are, and so is a process whose
    address space is limited (ulimit -v), where others could not have what is kept.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


@contextmanager
def only_deterministic(on):
    """torch inside takes only algorithms that give the same bits each time on one machine, and raises where it knows none.

    cuBLAS reads its variable when it is first used in a process: what ran on the GPU before may have fixed it. Nothing
    changes where `on` is false.
    """
    if not on:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    places = (torch.backends.cudnn, "benchmark", False), (torch.utils.deterministic, "fill_uninitialized_memory", False)
    values = [getattr(place, name) for place, name, _ in places]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    for place, name, value in places:                    # filling would only cost time: nothing reads what it has not written
        setattr(place, name, value)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        for (place, name, _), value in zip(places, values, strict=True):
            setattr(place, name, value)


def is_nondeterministic(error):
    """Whether torch raised it because `only_deterministic` leaves it no algorithm."""
    return isinstance(error, RuntimeError) and "deterministic" in str(error)


def describe_device(device):
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def peak_memory_mib(device):
    """Peak memory so far in MiB: of the device for cuda, of the process for cpu."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)
