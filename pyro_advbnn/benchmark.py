"""python -m pyro_advbnn.benchmark: what Adv-BNN costs beside the bare network and beside other ways to write it.

Calls that are compared take turns and medians are compared, because other work on a machine slows all alike.
"""
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from tqdm import tqdm

from pyro_advbnn import networks
from pyro_advbnn.cli import commands, python_calls
from pyro_advbnn.cli.flag_types import Count, CountOrNone, CudaGraphs, Range, Repeats, Side
from pyro_advbnn.experiments import timings
from pyro_advbnn.experiments.elsewhere import Elsewhere
from pyro_advbnn.experiments.measurement import matmul_rate, matrix_products, peak_memory, take_turns
from pyro_advbnn.experiments.workloads import (
    CONTESTANTS,
    FLOORS,
    PEERS,
    TrainingStep,
    necessary_flops,
    random_workload,
    training_data,
)
from pyro_advbnn.system import json_files
from pyro_advbnn.system.devices import describe_device, resolve_device
from pyro_advbnn.system.environment import environment
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.precision import PRECISIONS, resolve_precision
from pyro_advbnn.system.process_settings import process_settings
from pyro_advbnn.training.cuda_graphs import use_cuda_graphs
from pyro_advbnn.training.run_folders import refuse_existing


@python_calls.from_python
def benchmark(
    *,
    network: str = "vgg16",
    contestants: list[Literal[tuple(CONTESTANTS)]] = ("adv-bnn", "deterministic", "plain-pyro", "authors", "prediction"),
    batch_sizes: list[Annotated[int, Range(1, 65_536)]] = (32, 128),
    precisions: list[Literal[PRECISIONS]] = ("fp32", "bf16"),
    image_size: Side = 32,
    num_steps: CountOrNone = 10,
    num_samples: Count = 20,
    repeats: Repeats = 3,
    device: str = "auto",
    cuda_graphs: CudaGraphs = "auto",
    compile: bool = False,
    out: Path | None = None,
):
    """Time training steps and predictions of Adv-BNN, of the same network without Bayes, and of Adv-BNN written otherwise.

    Prints medians over interleaved repetitions in wall and in CPU time, ratios to the floor of the same batch size and
    precision, the speed of the network's own arithmetic beside that of matrix products on this device, the most memory
    that tensors took, and how the time of a step splits. Images are random.

    Args:
        network: as in train.
        contestants: adv-bnn, a training step; deterministic, the same step of the same network without Bayes: the floor
            of all steps; plain-pyro, Adv-BNN with a Pyro site per parameter; authors, Adv-BNN in the style of the
            authors' code, in fp32 alone; prediction, num_samples draws, beside as many forward passes and draws of
            normals; evaluation, an attack of 20 steps and a prediction, beside as many passes of the network.
        batch_sizes: images per call.
        precisions: fp32, bf16 (autocast), tf32 (cuda).
        image_size: side of the images in pixels.
        num_steps: PGD steps of a training step, before its update.
        num_samples: draws averaged in predictions.
        repeats: repetitions of each measurement, after one that is not counted.
        device: auto (cuda if present), cpu, cuda or cuda:N.
        cuda_graphs: attacks of adv-bnn and deterministic as CUDA graphs; auto = on cuda.
        compile: the networks of adv-bnn and deterministic through torch.compile.
        out: a new folder for benchmark.csv and benchmark.json, brought up to date after every batch size.
    """
    device = resolve_device(device)
    graphs = use_cuda_graphs(cuda_graphs, device)
    settings = _Settings(network, list(contestants), list(precisions), image_size, num_steps, num_samples, repeats, device,
                         graphs, compile)
    _check(settings)
    if out is not None:
        refuse_existing(out, hint="")
    _benchmark(settings, batch_sizes, out)


@process_settings()
def _benchmark(settings, batch_sizes, out):
    torch.manual_seed(0)
    built = networks.build_network(settings.network, 10).to(settings.device)
    flops = _flops_per_image(built, settings)
    _try_out(built, settings)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    report = _Report(settings, sum(p.numel() for p in built.parameters()), out)
    try:
        for batch_size in dict.fromkeys(batch_sizes):
            report.add(*_measure(settings, built, batch_size, flops))
    finally:
        report.print()


@dataclass(frozen=True)
class _Settings:
    network: str
    contestants: list
    precisions: list
    image_size: int
    num_steps: int
    num_samples: int
    repeats: int
    device: torch.device
    cuda_graphs: bool
    compiled: bool

    def workload(self, batch_size):
        work = random_workload(batch_size, self.image_size, self.num_steps, self.num_samples, self.device)
        return replace(work, cuda_graphs=self.cuda_graphs, compiled=self.compiled)

    def rows(self):
        """{(precision, row): maker} of all contestants."""
        return {(precision, name): make for precision in self.precisions for contestant in self.contestants
                if contestant != "authors" or precision == "fp32" for name, make in CONTESTANTS[contestant].items()}


def _check(settings):
    for precision in settings.precisions:
        resolve_precision(precision, settings.device)
    if "authors" in settings.contestants and "fp32" not in settings.precisions:
        raise InputError("--contestants authors computes in fp32, which is not among --precisions")


def _flops_per_image(network, settings):
    """`necessary_flops` of one image; the first time that the network runs on such images.   Raises InputError if it cannot."""
    shape = (2, 3, settings.image_size, settings.image_size)
    try:
        return {name: flops / 2 for name, flops in necessary_flops(network, settings.workload(2)).items()}
    except InputError:
        raise
    except Exception as error:                           # whatever the network does
        raise InputError(f"network {settings.network} fails on images {shape}: {type(error).__name__}: {error}") from error


def _try_out(network, settings):
    """One short call of all that is to be measured: what cannot work ends here, in a moment.   Raises InputError."""
    work = replace(settings.workload(2), num_steps=min(settings.num_steps, 1), num_samples=1)
    for (precision, _), make in settings.rows().items():
        make(network, replace(work, precision=precision))()


def _measure(settings, network, batch_size, flops):
    """(rows of all contestants in all precisions, {precision: FLOP/s of matrix products}) at one batch size."""
    work, makers = settings.workload(batch_size), settings.rows()
    memory = {key: _peak_memory(make, network, work, key[0])
              for key, make in tqdm(makers.items(), f"memory, batch {batch_size}", leave=False, disable=None)}
    with ExitStack() as others:
        calls = {key: _call(key, make, network, work, others) for key, make in makers.items()}
        return _time(settings, calls, memory, batch_size, flops)


def _call(key, make, network, work, others):
    """A contestant's call; a peer's in a process of its own, on the CPU."""
    arguments = network, replace(work, precision=key[0])
    if key[1] not in PEERS or work.x.device.type != "cpu":
        return make(*arguments)
    return others.enter_context(closing(Elsewhere(make, *arguments)))


def _time(settings, calls, memory, batch_size, flops):
    data = {"data": training_data(batch_size, settings.image_size, settings.device)}
    products = {(precision, side): call for precision in settings.precisions
                for side, call in matrix_products(settings.device, precision).items()}
    times = _take_turns(data | calls | products, settings, batch_size)
    data_s, _ = timings.medians(times["data"])
    rows = [timings.row(name, precision, batch_size, times[precision, name], flops=batch_size * flops.get(name, 0),
                        peak_memory=memory[precision, name], parts=_parts(call, data_s))
            for (precision, name), call in calls.items()]
    rates = {precision: matmul_rate({side: times[of, side] for of, side in products if of == precision})
             for precision in settings.precisions}
    return rows, rates


def _take_turns(calls, settings, batch_size):
    with tqdm(total=(settings.repeats + 1) * len(calls), desc=f"batch {batch_size}", leave=False, disable=None) as bar:
        return take_turns(calls, settings.repeats, settings.device, progress=lambda key: bar.update())


def _parts(call, data_s):
    return call.parts() | {"data": data_s} if isinstance(call, TrainingStep) else {}


def _peak_memory(make, network, work, precision):
    """Of a call that is short, but long enough to hold all that longer ones do: two steps of an attack, two draws."""
    work = replace(work, precision=precision, num_steps=min(work.num_steps, 2), num_samples=min(work.num_samples, 2))
    return peak_memory(lambda: make(network, work), work.x.device)


class _Report:
    """What is known so far, on disk after every batch size."""

    def __init__(self, settings, num_weights, out):
        self.settings, self.num_weights, self.out = settings, num_weights, out
        self.rows, self.matmul_rates = [], dict.fromkeys(settings.precisions, 0.0)
        print(f"{settings.network}, {num_weights:,} weights, {settings.num_steps} PGD steps and an update, "
              f"{settings.num_samples} draws in a prediction, {describe_device(settings.device)}, medians of "
              f"{settings.repeats}", flush=True)

    def add(self, rows, matmul_rates):
        timings.set_ratios(rows, FLOORS)
        self.rows += rows
        self.matmul_rates = {name: max(rate, matmul_rates[name]) for name, rate in self.matmul_rates.items()}
        timings.set_shares(self.rows, self.matmul_rates)
        if self.out is not None:
            self._write()

    def _write(self):
        timings.write_csv(self.out / "benchmark.csv", self.rows)
        described = asdict(self.settings) | {"device": describe_device(self.settings.device)}
        json_files.write_json(self.out / "benchmark.json", {
            "settings": described, "num_weights": self.num_weights, "matmul_flops_per_second": self.matmul_rates,
            "rows": self.rows, "comparisons": timings.comparisons(self.rows), "environment": environment()})

    def print(self):
        texts = [timings.table(self.rows), timings.rates_line(self.matmul_rates), timings.parts_table(self.rows),
                 timings.sentences(timings.comparisons(self.rows))]
        if self.rows:
            print("\n\n".join(filter(None, texts)), flush=True)


def main(argv=None, under=""):
    """The command, for words that are given or those of the process.   under: as of `cli.run`."""
    commands.run(benchmark, argv, under=under, way_on="what was measured is above, and the same command begins anew")


if __name__ == "__main__":
    main()
