"""Which device a command runs on, and what it is."""
import ctypes
import gc
import resource
import sys

import torch

from pyro_advbnn import distributed
from pyro_advbnn.errors import InputError

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
    mallopt = _of_glibc("mallopt")
    if mallopt and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def give_back_freed_memory():
    """What tensors gave back goes to the system and the device, for whoever else needs it: oneDNN's compiled code, for one."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = _of_glibc("malloc_trim")
    if trim:
        trim(ctypes.c_size_t(0))


def describe_device(device):
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def free_memory(device):
    """Bytes that are free on a CUDA device."""
    return torch.cuda.mem_get_info(device)[0]


def peak_memory_mib(device):
    """Peak memory so far in MiB: of the device for cuda, of the process for cpu."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


def _of_glibc(function):
    """None in other C libraries."""
    return getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None
