"""One training in several processes under torchrun; in a process alone, every function here does next to nothing.

All of it is torch.distributed: tensors on a GPU go through NCCL, tensors on the CPU and plain values through gloo. What is
collective must be called by every process, in the same order.
"""
import math
import os
import sys
import time
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.rendezvous import rendezvous

from pyro_advbnn.system.errors import InputError, reason

_TIMEOUT = timedelta(minutes=30)    # for one that hangs; those that wait for one that died are ended by torchrun, at once
_SECONDS_TO_BE_ENDED, _INTERRUPTED = 20, 130
_store = None                       # what the processes of the group share, beside their messages
_LARGE = 1 << 20                    # elements, from which on a tensor is not worth copying to join it with others


def launched():
    """Whether torchrun has started this process."""
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()


def local_world_size():
    """How many processes of torchrun share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def job():
    """torchrun's name for this job (--rdzv-id), the same after a restart of its processes; None without torchrun."""
    return os.environ.get("TORCHELASTIC_RUN_ID") if launched() else None


def is_this_job(name):
    """Whether the job called `name`, which has begun something, is this one, started anew.

    "none" is the name of all jobs that have none: there a restart must have been counted. Where they have one it need not:
    torchrun counts the restarts of each machine apart.
    """
    return name is not None and name == job() and (name != "none" or _restarts() > 0)


def _restarts():
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def local_rank():
    """The number of this process on its machine, which is that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


def rank():
    """The number of this process among all."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    """Whether this is the process that prints and writes."""
    return rank() == 0


def run(command, *arguments):
    """command(*arguments), under torchrun as one of its processes: rank 0 prints, and torchrun tells the error of any.

    Raises InputError as command does, with the rank in front where it is not 0.
    """
    if not launched():
        return command(*arguments)
    result = record(_in_group)(command, *arguments)
    if isinstance(result, InputError):                   # raised out here, or torchrun would show a traceback of it
        raise result
    return result


def _in_group(command, *arguments):
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    _begin_group()
    try:
        with nullcontext() if is_main() else _silence():
            return command(*arguments)
    except InputError as error:
        return error if is_main() else InputError(f"[rank {rank()}] {error}")
    except KeyboardInterrupt as error:
        if is_main():
            raise
        raise SystemExit(getattr(error, "code", _INTERRUPTED)) from None
    except RuntimeError as error:
        if "gloo/transport" not in str(error) and "ncclRemoteError" not in str(error):
            raise
        _end_after_the_other(error)
    finally:
        dist.destroy_process_group()


def _end_after_the_other(error):
    """The fault is another process's, which torchrun shall tell: it ends this one as soon as it has seen that one's end."""
    told = reason(error).partition(". ")[0]
    print(f"[rank {rank()}] lost another process ({told}); torchrun ends this one or starts all anew", file=sys.stderr,
          flush=True)
    time.sleep(_SECONDS_TO_BE_ENDED)
    raise SystemExit(1)


def _begin_group():
    global _store
    _store, number, size = next(rendezvous("env://", timeout=_TIMEOUT))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":   # torchrun's store outlives a restart, with the old addresses in it
        _store = dist.PrefixStore(f"restart {_restarts()}", _store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=_store, rank=number, world_size=size, timeout=_TIMEOUT)


@contextmanager
def _silence():
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


@contextmanager
def together():
    """Collective: where the input of one process is wrong, all end; what rank 0 would say too it says alone.

    Inside there must be nothing collective: a process with an error would not come to it.

    Raises InputError as inside, SystemExit where the error is told by another process.
    """
    error = None
    try:
        yield
    except InputError as raised:
        error = raised
    messages = [None] * world_size()
    if world_size() > 1:
        dist.all_gather_object(messages, error and str(error))
    if error and (is_main() or str(error) != messages[0]):
        raise error
    if any(message is not None for message in messages):
        leave()


def require_same(value, message):
    """Collective.   Raises InputError with `message` where the processes do not have the same plain value."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    if any(other != values[0] for other in values):
        if not is_main():
            leave()
        raise InputError(message)


def leave():
    """End this process without a word: another one ends the job."""
    raise SystemExit(0)


@contextmanager
def one_at_first():
    """The first process of each machine goes through alone, then the others; once in a process's life, for downloads."""
    if world_size() == 1:
        yield
        return
    done = f"first of machine {os.environ.get('GROUP_RANK', 0)}"
    if local_rank():
        _store.wait([done], timedelta(days=1))           # the first may decode ImageNet; if it dies, torchrun ends all
    try:
        yield
    finally:
        if not local_rank():
            _store.set(done, "")


def own_seed(seed, *position):
    """The seed of a random stream that is this process's own.

    On rank 0 it is `seed`, as in one process. On the others, and for streams that begin anew at a `position`, it is drawn
    by NumPy's SeedSequence from (seed, rank, *position).
    """
    if not rank() and not position:
        return seed
    return int(np.random.SeedSequence([seed, rank(), *position]).generate_state(1, np.uint64)[0])


def shard():
    """(rank, world size): this process's part of every batch."""
    return rank(), world_size()


def sum_(tensor):
    """Collective: `tensor` summed over the processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def sum_gradients_(optimizer):
    """Collective: the gradients of the optimizer's parameters summed over the processes, in place.

    Large ones, such as a Bayesian classifier's flat vectors, are reduced where they are, all others as one vector. A process
    that has none of a parameter, whose layer its network left out at random, adds zeros; where all have none it is 0, too, by
    which decay and momentum go on, unlike in one process.
    """
    if world_size() == 1:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    gradients = [p.grad for p in parameters]
    works = [dist.all_reduce(g, async_op=True) for g in gradients if _is_large(g)]
    _as_one_vector([g for g in gradients if not _is_large(g)], dist.all_reduce)
    for work in works:
        work.wait()


def _is_large(tensor):
    return tensor.numel() >= _LARGE and tensor.is_contiguous()


@torch.no_grad()
def broadcast_(tensors):
    """Collective: all `tensors` as they are on rank 0, in place."""
    if world_size() > 1:
        _as_one_vector(list(tensors), lambda vector: dist.broadcast(vector, src=0))


def _as_one_vector(tensors, collective):
    """Run an in-place collective once for all tensors of a type."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        parts = [tensor for tensor in tensors if tensor.dtype == dtype]
        vector = torch.cat([part.reshape(-1) for part in parts])
        collective(vector)
        for part, value in zip(parts, vector.split([part.numel() for part in parts]), strict=True):
            part.copy_(value.view(part.shape))


def clock(number=0):
    """Collective: time.monotonic() of rank 0 and the largest `number`, by which all decide alike; no GPU waits for it."""
    now = time.monotonic() if is_main() else -math.inf
    if world_size() == 1:
        return now, number
    both = torch.tensor([now, number], dtype=torch.float64)
    dist.all_reduce(both, dist.ReduceOp.MAX)
    return both[0].item(), int(both[1])


def gather(value):
    """Collective: on rank 0 the plain values and CPU tensors of all processes, in their order; elsewhere the own one."""
    values = [None] * world_size() if is_main() else None
    if world_size() == 1:
        return [value]
    dist.gather_object(value, values)
    return values or [value]


class Sum(torch.autograd.Function):
    """Collective: a tensor summed over the processes, and so is its gradient."""

    @staticmethod
    def forward(ctx, tensor):
        return sum_(tensor.clone())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return sum_(grad.clone(memory_format=torch.contiguous_format))
