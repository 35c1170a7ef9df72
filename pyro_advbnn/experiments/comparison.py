"""A benchmark at work: all contestants are tried, then measured and told, batch size by batch size.

Calls that are compared take turns and medians are compared, because other work on a machine slows all alike.
"""
from dataclasses import asdict, replace

import torch
from tqdm import tqdm

from pyro_advbnn import networks
from pyro_advbnn.experiments import timings
from pyro_advbnn.experiments.measurement import matmul_rate, matrix_products, peak_memory, take_turns
from pyro_advbnn.experiments.workloads import MAKERS, TrainingStep, necessary_flops, random_workload
from pyro_advbnn.system import json_files
from pyro_advbnn.system.devices import describe_device, resolve_device
from pyro_advbnn.system.environment import environment
from pyro_advbnn.system.errors import InputError
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
    flops = compared.try_out()
    report = _Report(settings, network, device)
    try:
        for batch_size in dict.fromkeys(settings.batch_sizes):
            report.add(*compared.measure(batch_size, flops))
    finally:
        report.print()


class _Compared:
    """The rows to measure, (precision, name), and how each makes its call."""

    def __init__(self, settings, network, device, cuda_graphs):
        self.settings, self.network, self.device, self.cuda_graphs = settings, network, device, cuda_graphs
        self.rows = list(dict.fromkeys(
            (precision, name) for precision in settings.precisions for contestant in settings.contestants
            if contestant != "authors" or precision == "fp32" for name in timings.CONTESTANTS[contestant]))

    def try_out(self):
        """`necessary_flops` of one image, after one short call of all rows.   Raises InputError for what cannot work."""
        try:
            for precision, name in self.rows:
                MAKERS[name](self.network, self._workload(2, precision, most=1))()
            return {name: flops / 2 for name, flops in necessary_flops(self.network, self._workload(2)).items()}
        except InputError:
            raise
        except Exception as error:                       # whatever the network does
            shape = (2, 3, self.settings.image_size, self.settings.image_size)
            raise InputError(f"network {self.settings.network} fails on images {shape}: {type(error).__name__}: "
                             f"{error}") from error

    def measure(self, batch_size, flops):
        """(rows in all precisions, {precision: FLOP/s of matrix products}) at one batch size."""
        memory = {key: self._peak_memory(*key, batch_size)
                  for key in tqdm(self.rows, f"memory, batch {batch_size}", leave=False, disable=None)}
        calls = {(precision, name): MAKERS[name](self.network, self._workload(batch_size, precision))
                 for precision, name in self.rows}
        products = {(precision, side): call for precision in dict.fromkeys(self.settings.precisions)
                    for side, call in matrix_products(self.device, precision).items()}
        times = self._take_turns(calls | products, batch_size)
        rows = [timings.row(name, precision, batch_size, times[precision, name], flops=batch_size * flops.get(name, 0),
                            peak_memory=memory[precision, name],
                            parts=call.parts() if isinstance(call, TrainingStep) else None)
                for (precision, name), call in calls.items()]
        rates = {precision: matmul_rate({side: times[of, side] for of, side in products if of == precision})
                 for precision in self.settings.precisions}
        return rows, rates

    def _workload(self, batch_size, precision="fp32", most=None):
        """most: at most so many steps of an attack and draws of a prediction."""
        settings, most = self.settings, most or float("inf")
        work = random_workload(batch_size, settings.image_size, min(settings.num_steps, most), min(settings.num_samples, most),
                               self.device)
        return replace(work, precision=precision, cuda_graphs=self.cuda_graphs, compiled=settings.compile)

    def _peak_memory(self, precision, name, batch_size):
        """Of a call that is short, but long enough to hold all that longer ones do: two steps of an attack, two draws."""
        work = self._workload(batch_size, precision, most=2)
        return peak_memory(lambda: MAKERS[name](self.network, work), self.device)

    def _take_turns(self, calls, batch_size):
        total = (self.settings.repeats + 1) * len(calls)
        with tqdm(total=total, desc=f"batch {batch_size}", leave=False, disable=None) as bar:
            return take_turns(calls, self.settings.repeats, self.device, progress=lambda key: bar.update())


class _Report:
    """What is known so far, on disk after every batch size."""

    def __init__(self, settings, network, device):
        self.settings, self.num_weights = settings, sum(p.numel() for p in network.parameters())
        self.described = asdict(settings) | {"device": describe_device(device)}
        self.rows, self.matmul_rates = [], dict.fromkeys(settings.precisions, 0.0)
        print(f"{settings.network}, {self.num_weights:,} weights, {settings.num_steps} PGD steps and an update, "
              f"{settings.num_samples} draws in a prediction, {self.described['device']}, medians of {settings.repeats}",
              flush=True)

    def add(self, rows, matmul_rates):
        timings.set_ratios(rows)
        self.rows += rows
        self.matmul_rates = {name: max(rate, matmul_rates[name]) for name, rate in self.matmul_rates.items()}
        timings.set_shares(self.rows, self.matmul_rates)
        if self.settings.out is not None:
            self.settings.out.mkdir(parents=True, exist_ok=True)
            timings.write_csv(self.settings.out / "benchmark.csv", self.rows)
            json_files.write_json(self.settings.out / "benchmark.json", {
                "settings": self.described | {"out": str(self.settings.out)}, "num_weights": self.num_weights,
                "matmul_flops_per_second": self.matmul_rates, "rows": self.rows,
                "comparisons": timings.comparisons(self.rows), "environment": environment()})

    def print(self):
        texts = [timings.table(self.rows), timings.rates_line(self.matmul_rates), timings.parts_table(self.rows),
                 timings.sentences(timings.comparisons(self.rows))]
        if self.rows:
            print("\n\n".join(filter(None, texts)), flush=True)
