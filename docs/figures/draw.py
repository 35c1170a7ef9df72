"""Draws the two figures of docs/method.md from the records: .venv/bin/python docs/figures/draw.py"""
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
EPOCH, NLL, KL, SNR = range(4)                           # columns of a record's course


def records(name):
    """The records of a file in runs/, by the name of their run."""
    lines = (HERE.parents[1] / "runs" / name / "records.jsonl").read_text().splitlines()
    return {record["run"]: record for record in map(json.loads, lines)}


def course(axes, runs, column, label, scale="linear"):
    for name, color, run in runs:
        epochs, values = zip(*[(row[EPOCH], row[column]) for row in run["course"]])
        axes.plot(epochs, values, label=name, color=color)
    axes.set(xlabel="epoch", ylabel=label, yscale=scale)
    axes.grid(alpha=0.3)


def course_figure():
    runs = records("digits-defaults")
    chosen = [("Adam, 60 epochs", "#c0504d", runs["adam-60-0"]), ("natural, 60", "#6fa0cf", runs["advbnn-60-0"]),
              ("natural, 240", "#1f4e79", runs["advbnn-240-0"])]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3))
    course(left, chosen, NLL, "nll in training")
    course(middle, chosen, KL, "KL, nats per image")
    course(right, chosen, SNR, "signal-to-noise", "log")
    left.legend()
    figure.tight_layout()
    figure.savefig(HERE / "course.svg", metadata={"Date": None})


def alpha_figure():
    runs = sorted(records("digits-alpha").values(), key=lambda run: run["settings"]["alpha"])
    alphas = [run["settings"]["alpha"] for run in runs]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    for name, color, key in (("clean", "#7f7f7f", "clean"), ("PGD, 1 draw", "#9ec5e3", "pgd_1_draw"),
                             ("PGD, 10 draws", "#1f4e79", "pgd_10_draws")):
        left.plot(alphas, [100 * run["last"][key] for run in runs], "o-", label=name, color=color)
    left.axvline(next(run["settings"]["alpha"] for run in runs if run["flags"].get("alpha") is None), color="#c0504d", ls=":")
    left.set(xscale="log", xlabel="alpha", ylabel="accuracy, %", ylim=(0, 101))
    left.legend()
    right.plot(alphas, [run["course"][-1][SNR] for run in runs], "o-", color="#1f4e79")
    right.set(xscale="log", yscale="log", xlabel="alpha", ylabel="signal-to-noise")
    nats = right.twinx()
    nats.plot(alphas, [run["course"][-1][KL] for run in runs], "s--", color="#c0504d")
    nats.set_ylabel("KL, nats per image", color="#c0504d")
    figure.tight_layout()
    figure.savefig(HERE / "alpha.svg", metadata={"Date": None})


course_figure()
alpha_figure()
