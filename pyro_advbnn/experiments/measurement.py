"""How long and how much memory a call takes.

Calls that are compared take turns, because other work on a machine slows all of them alike.
"""
import gc
import time
from bisect import bisect_left
from itertools import accumulate

import torch


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
    """Cuts the time of one step on `device` into named parts.   seconds: {name: seconds}."""

    def __init__(self, device):
        self.device, self.seconds = device, {}
        self._last = time.perf_counter()

    def lap(self, name):
        """What has passed since the last lap, or the start, belongs to `name`."""
        wait(self.device)
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


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
