"""A benchmark at work: all contestants are tried, then measured and told, batch size by batch size.

Calls that are compared take turns and medians are compared, because other work on a machine slows all alike.
"""
import gc
import os
import time
from bisect import bisect_left
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import accumulate

import torch
from tqdm import tqdm

from pyro_advbnn import networks
from pyro_advbnn.experiments import timings
from pyro_advbnn.experiments.workloads import MAKERS, TrainingStep, necessary_flops, random_workload, wait
from pyro_advbnn.reporting import csv_tables
from pyro_advbnn.system import json_files
from pyro_advbnn.system.devices import describe_device, resolve_device
from pyro_advbnn.system.environment import environment
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.locks import locked
from pyro_advbnn.system.precision import resolve_precision
from pyro_advbnn.system.process_settings import process_settings
from pyro_advbnn.training.cuda_graphs import use_cuda_graphs
from pyro_advbnn.training.run_folders import refuse_existing


@process_settings()
def run(settings):
    """Measure what a `benchmark.Comparison` asks for, print it and write it to its folder."""
    device = resolve_device(settings.device)
    for precision in settings.precisions:
        resolve_precision(precision, device)
    if "authors" in settings.contestants and "fp32" not in settings.precisions:
        raise InputError("--contestants authors computes in fp32, which is not among --precisions")
    graphs = use_cuda_graphs(settings.cuda_graphs, device)
    if settings.out is not None:
        refuse_existing(settings.out, hint="")
    torch.manual_seed(0)
    network = networks.build_network(settings.network, 10).to(device)
    compared = _Compared(settings, network, device, graphs)
    with nullcontext() if settings.out is None else locked(settings.out):
        compared.try_out()
        report = _Report(settings, network, device)
        try:
            for batch_size in dict.fromkeys(settings.batch_sizes):
                report.add(compared.measure(batch_size))
        finally:
            report.print()


class _Compared:
    """The rows to measure, (precision, name), and how each makes its call."""

    def __init__(self, settings, network, device, cuda_graphs):
        self.settings, self.network, self.device, self.cuda_graphs = settings, network, device, cuda_graphs
        self.rows = list(dict.fromkeys(
            (precision, name) for precision in settings.precisions for contestant in settings.contestants
            if contestant != "authors" or precision == "fp32" for name in (*timings.CONTESTANTS[contestant], "matmul")))

    def try_out(self):
        """One short call of all rows: what cannot work ends here.   Raises InputError."""
        try:
            for precision, name in self.rows:
                MAKERS[name](self.network, self._workload(2, precision, most=1))()
        except InputError:
            raise
        except Exception as error:                       # whatever the network does
            shape = (2, 3, self.settings.image_size, self.settings.image_size)
            raise InputError(f"network {self.settings.network} fails on images {shape}: {type(error).__name__}: "
                             f"{error}") from error

    def measure(self, batch_size):
        """The rows of all contestants in all precisions at one batch size."""
        memory = {key: self._peak_memory(*key, batch_size) for key in self.rows}
        flops = necessary_flops(self.network, self._workload(batch_size))
        calls = {(precision, name): MAKERS[name](self.network, self._workload(batch_size, precision))
                 for precision, name in self.rows}
        with tqdm(total=(self.settings.repeats + 1) * len(calls), desc=f"batch {batch_size}", leave=False, disable=None) as bar:
            times = take_turns(calls, self.settings.repeats, self.device, progress=lambda key: bar.update())
        return [timings.row(name, precision, batch_size, times[precision, name], flops=flops.get(name),
                            peak_memory=memory[precision, name], parts=call.parts() if isinstance(call, TrainingStep) else None)
                for (precision, name), call in calls.items()]

    def _workload(self, batch_size, precision="fp32", most=None):
        """most: at most so many steps of an attack and draws of a prediction."""
        settings, most = self.settings, most or float("inf")
        work = random_workload(batch_size, settings.image_size, min(settings.num_steps, most), min(settings.num_samples, most),
                               self.device)
        return replace(work, precision=precision, cuda_graphs=self.cuda_graphs, compiled=settings.compile)

    def _peak_memory(self, precision, name, batch_size):
        """Of a call that is short, but long enough to hold all that longer ones do: two steps of an attack, two draws.

        Without CUDA graphs, whose memory no counter tells from what others hold.
        """
        work = replace(self._workload(batch_size, precision, most=2), cuda_graphs=False)
        return peak_memory(lambda: MAKERS[name](self.network, work), self.device)


def take_turns(calls, repeats, device, progress=None):
    """{name: [(wall, CPU), ...]} in seconds, `repeats` pairs for each of calls {name: function}, one after another in turn.

    One more call of each comes before: it warms caches and allocators up. CPU is the time of all threads of this process.
    progress: called with a name after each call.
    """
    times = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            wait(device)
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            wait(device)
            if repeat:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            if progress:
                progress(name)
    return times


def peak_memory(build, device):
    """The most bytes of tensors held at once during the second call of build(): the state that it works on included.

    `build` makes a function from nothing, its tensors with it; the first call is the warm-up, after which optimizer
    moments, gradients and kept memory are there. What else the process holds does not count; nor, on the CPU, what
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
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")      # or it writes about GPUs that are not there
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        call = build()
        call()
        with torch.profiler.record_function("second call"):
            call()
    events = profile.profiler.kineto_results.events()
    begin = next(event.start_ns() for event in events if event.name() == "second call")
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = list(accumulate((change for _, change in changes), initial=0))
    return max(held[bisect_left(changes, (begin,)):])    # what is held as the second call begins counts too


class _Report:
    """What is known so far, on disk after every batch size."""

    def __init__(self, settings, network, device):
        self.settings, self.num_weights = settings, sum(p.numel() for p in network.parameters())
        self.described = asdict(settings) | {"device": describe_device(device)}
        self.rows = []
        print(f"{settings.network}, {self.num_weights:,} weights, {settings.num_steps} PGD steps and an update, "
              f"{settings.num_samples} draws in a prediction, {self.described['device']}, medians of {settings.repeats}",
              flush=True)

    def add(self, rows):
        timings.set_ratios(rows)
        self.rows += rows
        if self.settings.out is not None:
            csv_tables.write(self.settings.out / "benchmark.csv", timings.FIELDS, self.rows)
            json_files.write_json(self.settings.out / "benchmark.json", {
                "settings": self.described | {"out": str(self.settings.out)}, "num_weights": self.num_weights,
                "rows": self.rows, "comparisons": timings.comparisons(self.rows), "environment": environment()})

    def print(self):
        if self.rows:
            print(f"{timings.table(self.rows)}\n\n{timings.sentences(timings.comparisons(self.rows))}", flush=True)
