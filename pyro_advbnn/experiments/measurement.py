"""How long, how much memory and how many operations a call takes; and how fast this machine multiplies matrices.

Calls that are compared take turns, because other work on a machine slows all of them alike.
"""
import gc
import time
from bisect import bisect_left
from itertools import accumulate

import torch
from torch.utils.flop_counter import FlopCounterMode

from pyro_advbnn.system.precision import arithmetic

_MATRIX_SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}


def take_turns(calls, repeats, device, progress=None):
    """{name: [(wall, CPU), ...]} in seconds, `repeats` pairs for each of calls {name: function}, one after another in turn.

    One more call of each comes before: it warms caches and allocators up. CPU is the time of all threads of this process.
    progress: called with a name after each call.
    """
    times = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            measured = timed(call, device)
            if repeat:
                times[name].append(measured)
            if progress:
                progress(name)
    return times


def timed(call, device):
    """(wall, CPU) seconds of one call."""
    wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    wait(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def wait(device):
    """Return when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Cuts the time of one step on `device` into named parts; on cuda by events, so that nothing waits."""

    def __init__(self, device):
        self.device = device
        self.start()

    def start(self):
        self._marks = [("", self._now())]

    def lap(self, name):
        """What has passed since the last lap, or the start, belongs to `name`."""
        self._marks.append((name, self._now()))

    def seconds(self):
        """{name: seconds}, laps of one name added up."""
        wait(self.device)
        parts = {}
        for (_, begin), (name, end) in zip(self._marks, self._marks[1:]):
            parts[name] = parts.get(name, 0.0) + self._between(begin, end)
        return parts

    def _now(self):
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _between(self, begin, end):
        return end - begin if self.device.type != "cuda" else begin.elapsed_time(end) / 1000


def peak_memory(build, device):
    """The most bytes of tensors held at once during the second call of build(): the state that it works on included.

    `build` makes a function from nothing, its tensors with it; the first call is the warm-up, after which optimizer
    moments, gradients and kept work memory are there. What else the process holds does not count; nor, on the CPU, what
    the libraries beneath torch allocate for themselves.
    """
    gc.collect()                                         # or its memory would be given back while others are counted
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        call = build()
        call()
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call = build()
        call()
        with torch.profiler.record_function("second call"):
            call()
    events = profile.profiler.kineto_results.events()
    begin = next(event.start_ns() for event in events if event.name() == "second call")
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = list(accumulate((change for _, change in changes), initial=0))
    return max(held[bisect_left(changes, (begin,)):])    # what is held as the second call begins counts too


def count_flops(call):
    """The floating-point operations of the matrix products and convolutions in one call, a multiply-add as two.

    Products with the zeros of a padding count, though a library may leave them out.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def matrix_products(device, precision):
    """{side: call}: torch.mm of large square matrices in `precision`, to be timed for `matmul_rate`."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def product(side):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)

        def call():
            with arithmetic(device, precision):
                torch.mm(a, b, out=out)
        return call
    return {side: product(side) for side in _MATRIX_SIDES[device.type]}


def matmul_rate(times):
    """The most FLOP/s that was reached, from {side: [(wall, CPU), ...]}.

    Convolutions may pass it where another library computes them, as on the CPU.
    """
    return max(2 * side**3 / wall for side, measured in times.items() for wall, _ in measured)
