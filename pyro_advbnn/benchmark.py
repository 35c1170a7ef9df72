"""python -m pyro_advbnn.benchmark: what Adv-BNN costs beside the bare network, in a training step and in an evaluation.

Repetitions are interleaved and medians are compared, because other work on a machine slows both alike.
"""
import copy
import functools
import os
import statistics
import time
from pathlib import Path
from typing import Annotated, Literal

import torch
from tqdm import tqdm

from pyro_advbnn import cli, networks, records
from pyro_advbnn.attacks import PGD
from pyro_advbnn.classifiers import BayesianClassifier, Classifier
from pyro_advbnn.cli import Range
from pyro_advbnn.devices import describe_device, resolve_device
from pyro_advbnn.elbo import skip_validation
from pyro_advbnn.evaluation import robust_accuracy
from pyro_advbnn.run_folders import refuse_existing
from pyro_advbnn.training import autocast, build_optimizer, train_step

_SETTINGS = {"optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0.0}


def benchmark(
    *,
    network: str = "vgg16",
    batch_sizes: list[Annotated[int, Range(1)]] = (32, 128),
    image_size: Annotated[int, Range(1)] = 32,
    num_steps: Annotated[int, Range(0)] = 10,
    repeats: Annotated[int, Range(1)] = 5,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    parts: list[Literal["training", "evaluation"]] = ("training", "evaluation"),
    out: Path | None = None,
):
    """Time one training step of Adv-BNN and one of the same network trained adversarially without Bayes; and evaluation.

    Both make the same PGD batch and use fused Adam. Evaluation is an attack of 20 steps and a prediction of 20 draws beside
    20 gradients and 20 forward passes of the bare network. Prints medians over interleaved repetitions, in wall and in CPU
    time.

    Args:
        network: as in train.
        batch_sizes: images per step, one table line each.
        image_size: side of the random images in pixels.
        num_steps: PGD steps before the update.
        repeats: repetitions of each measurement.
        device: auto (cuda if present), cpu, cuda or cuda:N.
        precision: fp32, or bf16 (autocast).
        parts: what is timed.
        out: a new folder for benchmark.json.
    """
    if out is not None:
        refuse_existing(out)
    skip_validation()
    place = resolve_device(device)
    torch.manual_seed(0)
    plain = networks.build_network(network, 10)
    classifiers = {"deterministic": Classifier(copy.deepcopy(plain)), "Adv-BNN": BayesianClassifier(plain, 0.05, 0.01)}
    steps = {name: _Step(classifier.to(place), precision, num_steps) for name, classifier in classifiers.items()}
    print(f"{network}, {steps['Adv-BNN'].num_weights:,} weights, {num_steps} PGD steps and an update, "
          f"{describe_device(place)}, {precision}, medians of {repeats}", flush=True)
    rows, evaluations = [], []
    for batch_size in batch_sizes if "training" in parts else ():
        rows += _measure(steps, batch_size, image_size, repeats, place)
    for batch_size in batch_sizes if "evaluation" in parts else ():
        evaluations += _measure_evaluation(classifiers, plain, batch_size, image_size, repeats, precision)
    if rows:
        _print(rows)
    if evaluations:
        _print_evaluations(evaluations)
    memory = {name: step.memory(*_batch(2, image_size, place)) for name, step in steps.items()}
    for name, (state, work) in memory.items():
        print(f"{name}: floats per weight: state {state:.2f}, gradients and work in a step of 2 images {work:.2f}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        records.write_json(out / "benchmark.json", {
            "network": network, "num_steps": num_steps, "repeats": repeats, "precision": precision, "rows": rows,
            "evaluations": evaluations,
            "floats_per_weight": memory,
            "environment": records.environment() | {"device": describe_device(place)}})


class _Step:
    """The parts of one training step of one classifier, to be timed apart."""

    def __init__(self, classifier, precision, num_steps):
        self.classifier, self.precision = classifier, precision
        self.optimizer = build_optimizer(classifier, _SETTINGS)
        self.attack = PGD(8 / 256, 0.007, num_steps)
        self.num_weights = sum(p.numel() for p in classifier.parameters())
        if isinstance(classifier, BayesianClassifier):
            self.num_weights = len(classifier.mean)

    def make_attack(self, x, y):
        with autocast(x.device, self.precision):
            return self.attack(self.classifier.train(), x, y)

    def update(self, x, y):
        with autocast(x.device, self.precision):
            train_step(self.classifier, self.optimizer, x, y, kl_weight=1 / 50_000)

    def memory(self, x, y):
        """(state, gradients and work) in floats per weight: what is held between steps, and what one more step adds at most.

        State: parameters and optimizer moments. Work contains this batch's activations too, so give a small one.
        """
        self.update(x, y)
        moments = [t for state in self.optimizer.state.values() for t in state.values() if t.numel() > 1]
        state = sum(t.numel() for t in [*self.classifier.parameters(), *moments])
        self.optimizer.zero_grad()
        if isinstance(self.classifier, BayesianClassifier):
            self.classifier.release_buffers()
        peak = _peak_floats(lambda: (self.make_attack(x, y), self.update(x, y)), x.device)
        return state / self.num_weights, peak / self.num_weights


def _batch(batch_size, image_size, device):
    x = torch.rand(batch_size, 3, image_size, image_size, device=device)
    return x, torch.randint(10, (batch_size,), device=device)


def _measure(steps, batch_size, image_size, repeats, device):
    """One row per classifier: medians of attack, update and both, by wall clock and by CPU time, and ratios to the first."""
    x, y = _batch(batch_size, image_size, device)
    times = {name: [] for name in steps}
    for repeat in tqdm(range(repeats + 1), desc=f"batch {batch_size}", leave=False, disable=None):
        for name, step in steps.items():
            attack, update = _timed(step.make_attack, x, y), _timed(step.update, x, y)
            if repeat:                                   # the first one warms caches and allocators up
                times[name].append((attack, update))
    rows = [_row(name, steps[name], batch_size, times[name]) for name in steps]
    for row in rows:
        row["wall_ratio"], row["cpu_ratio"] = (row[key] / rows[0][key] for key in ("wall_s", "cpu_s"))
    return rows


def _measure_evaluation(classifiers, plain, batch_size, image_size, repeats, precision):
    """One row per classifier: an attack of 20 steps and 20 draws, against 20 gradients and forwards of the bare network."""
    device = next(classifiers["Adv-BNN"].parameters()).device
    plain = copy.deepcopy(plain).to(device).eval().requires_grad_(False)
    x, y = _batch(batch_size, image_size, device)
    attack = PGD(8 / 256, 0.007, 20)
    calls = {"bare network": lambda: _bare_evaluation(plain, x, y, 20, 20)}
    calls |= {name: functools.partial(robust_accuracy, classifier, [(x, y)], attack, num_samples=20)
              for name, classifier in classifiers.items()}
    times = {name: [] for name in calls}
    for repeat in tqdm(range(repeats + 1), desc=f"evaluation {batch_size}", leave=False, disable=None):
        for name, call in calls.items():
            with autocast(device, precision):
                measured = _timed(lambda *_, call=call: call(), x, y)
            if repeat:
                times[name].append(measured)
    medians = {name: [statistics.median(clock) for clock in zip(*measured, strict=True)] for name, measured in times.items()}
    floor = medians["bare network"]
    return [{"classifier": name, "batch_size": batch_size, "wall_s": wall, "cpu_s": cpu, "wall_ratio": wall / floor[0],
             "cpu_ratio": cpu / floor[1]} for name, (wall, cpu) in medians.items()]


def _bare_evaluation(network, x, y, num_gradients, num_forwards):
    for _ in range(num_gradients):
        x_adv = x.clone().requires_grad_()
        torch.autograd.grad(torch.nn.functional.cross_entropy(network(x_adv), y), x_adv)
    with torch.no_grad():
        for _ in range(num_forwards):
            network(x)


def _row(name, step, batch_size, times):
    row = {"classifier": name, "batch_size": batch_size, "num_weights": step.num_weights}
    for i, clock in enumerate(("wall", "cpu")):
        row[f"{clock}_attack_s"] = statistics.median(attack[i] for attack, _ in times)
        row[f"{clock}_update_s"] = statistics.median(update[i] for _, update in times)
        row[f"{clock}_s"] = statistics.median(attack[i] + update[i] for attack, update in times)
    return row | {"images_per_second": batch_size / row["wall_s"]}


def _timed(function, x, y):
    """(wall seconds, CPU seconds of the process) of one call."""
    _wait(x.device)
    wall, cpu = time.perf_counter(), time.process_time()
    function(x, y)
    _wait(x.device)
    return time.perf_counter() - wall, time.process_time() - cpu


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_floats(function, device):
    """The most memory that `function` held at once beyond what was there before, in floats of 4 bytes."""
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 4
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")      # or it writes about GPUs that are not there
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak / 4


def _print(rows):
    print(records.table(rows, {
        "batch": lambda row: row["batch_size"],
        "classifier": lambda row: row["classifier"],
        "attack ms": lambda row: f"{1000 * row['wall_attack_s']:.0f}",
        "update ms": lambda row: f"{1000 * row['wall_update_s']:.0f}",
        "step ms": lambda row: f"{1000 * row['wall_s']:.0f}",
        "CPU ms": lambda row: f"{1000 * row['cpu_s']:.0f}",
        "images/s": lambda row: f"{row['images_per_second']:.1f}",
        "ratio": lambda row: f"{row['wall_ratio']:.3f}",
        "CPU ratio": lambda row: f"{row['cpu_ratio']:.3f}",
    }))


def _print_evaluations(rows):
    print("evaluation: 20 attack steps and 20 draws; bare network: 20 gradients and 20 forward passes")
    print(records.table(rows, {
        "batch": lambda row: row["batch_size"],
        "classifier": lambda row: row["classifier"],
        "ms": lambda row: f"{1000 * row['wall_s']:.0f}",
        "CPU ms": lambda row: f"{1000 * row['cpu_s']:.0f}",
        "ratio": lambda row: f"{row['wall_ratio']:.3f}",
        "CPU ratio": lambda row: f"{row['cpu_ratio']:.3f}",
    }))


if __name__ == "__main__":
    cli.run(benchmark)
