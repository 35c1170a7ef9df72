"""Trainings of seconds that tests share, and what is compared of two of them."""
import torch
from hostile import refused_command

from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.system import json_files
from pyro_advbnn.train import train
from pyro_advbnn.training import checkpoints, configuration, construction, run_folders

TINY = {"width": 4, "num_train": 120, "validation": 20, "num_steps": 2, "epochs": 2, "batch_size": 25, "num_samples": 2,
        "optimizer": "adam", "learning_rate": 0.01, "alpha": 1 / 50, "init_std": "fan_in/10", "attack_samples": 1,
        "device": "cpu"}
EVALUATED = {"width": 8, "num_train": 520, "validation": 20, "epsilon": 0.05, "num_steps": 1, "epochs": 8, "num_samples": 2,
             "alpha": 0.02, "prior_std": "fan_in", "init_std": "fan_in/4", "optimizer": "adam", "learning_rate": 0.01,
             "kl_warmup": 0.25, "batch_statistics": "draw", "batch_size": 25, "attack_samples": 1, "device": "cpu"}
STEPS_PER_EPOCH = 4
TIMINGS = {"images_per_second", "peak_memory_mib"}


def tiny(defense, flags=TINY):
    """flags without what means nothing for the defence."""
    of_posteriors = [] if DEFENSES[defense or "advbnn"].kind == "bayesian" else [
        "alpha", "prior_std", "init_std", "kl_warmup", "batch_statistics"]
    of_draws = ["num_samples"] if defense in ("none", "adv") else []
    return {name: value for name, value in flags.items() if name not in of_posteriors + of_draws}


def run(folder, **flags):
    train(**{**tiny(flags.get("defense")), "out": folder, **flags})
    return folder


def content(folder, name="checkpoint.pt"):
    return checkpoints.read(folder / name)


def metrics(folder):
    """The rows without what no two runs share."""
    rows = json_files.read_jsonl(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def assert_same_run(a, b):
    for part in ("state", "training", "best"):
        assert equal(content(a)[part], content(b)[part]), part
    assert equal(content(a, "best.pt")["state"], content(b, "best.pt")["state"])
    assert metrics(a) == metrics(b)


def refusal(capsys, *words):
    """The one line with which train refuses words."""
    return refused_command(capsys, train, *words)


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def words(flags):
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


def interrupt_after(monkeypatch, saves, before_writing=False):
    """Let the process die (by an exception) at the given save of checkpoint.pt, after or before it is written."""
    real, count = run_folders.save_position, 0

    def save_position(*arguments):
        nonlocal count
        count += 1
        if count == saves and before_writing:
            raise KeyboardInterrupt
        real(*arguments)
        if count == saves:
            raise KeyboardInterrupt

    monkeypatch.setattr(run_folders, "save_position", save_position)


def build(folder=None, **flags):
    config, images, held_out = configuration.configure({**tiny(flags.get("defense")), **flags})
    return config, construction.build(config, images), held_out


def stop_at(monkeypatch, owner, name, call):
    """Let the process be interrupted when it calls owner.name for the call-th time; returns a list with an item per call."""
    real, calls = getattr(owner, name), []

    def stopped(*arguments, **more):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(owner, name, stopped)
    return calls
