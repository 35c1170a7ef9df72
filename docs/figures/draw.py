"""Draws the two figures of docs/method.md from the records: .venv/bin/python docs/figures/draw.py"""
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from pyro_advbnn.reporting.figure_style import GREY, SERIES, STYLE

HERE = Path(__file__).parent
EPOCH, NLL, KL, SNR = range(4)                           # columns of a record's course
RED, BLUE, GREEN = (color for color, _ in SERIES[:3])


def records(name):
    """The records of a file in runs/, by the name of their run."""
    lines = (HERE.parents[1] / "runs" / name / "records.jsonl").read_text().splitlines()
    return {record["run"]: record for record in map(json.loads, lines)}


def course_figure():
    runs = records("digits-defaults")
    figure, panels = plt.subplots(1, 3, figsize=(10, 3))
    for axes, column, label, scale in zip(panels, (NLL, KL, SNR), (
            "nll in training", "KL, nats per image", "signal-to-noise"), ("linear", "linear", "log")):
        for name, color, run in (("Adam, 60 epochs", RED, "adam-60-0"), ("natural, 60", GREEN, "advbnn-60-0"),
                                 ("natural, 240", BLUE, "advbnn-240-0")):
            epochs, values = zip(*[(row[EPOCH], row[column]) for row in runs[run]["course"]])
            axes.plot(epochs, values, label=name, color=color)
        axes.set(xlabel="epoch", ylabel=label, yscale=scale)
    panels[0].legend()
    figure.savefig(HERE / "course.svg", metadata={"Date": None})


def alpha_figure():
    runs = sorted(records("digits-alpha").values(), key=lambda run: run["settings"]["alpha"])
    alphas = [run["settings"]["alpha"] for run in runs]
    default = records("digits-defaults")["advbnn-16-0"]["settings"]["alpha"]
    figure, panels = plt.subplots(1, 3, figsize=(10, 3))
    accuracy, size, worth = panels

    def draw(axes, name, values, color, line="o-"):
        axes.plot(alphas, list(map(values, runs)), line, label=name, color=color)

    draw(accuracy, "clean", lambda run: 100 * run["last"]["clean"], GREY)
    draw(accuracy, "PGD, 1 draw", lambda run: 100 * run["last"]["pgd_1_draw"], RED)
    draw(accuracy, "PGD, 10 draws", lambda run: 100 * run["last"]["pgd_10_draws"], BLUE)
    draw(accuracy, "PGD, 10 draws, 60 % pruned", lambda run: 100 * run["pruned_60"], BLUE, "s--")
    draw(size, "signal-to-noise", lambda run: run["course"][-1][SNR], BLUE)
    draw(size, "KL, nats per image", lambda run: run["course"][-1][KL], RED, "s--")
    draw(worth, "detection of attacks (AUROC)", lambda run: run["auroc"], BLUE)
    draw(worth, "calibration error under attack", lambda run: run["calibration_error"], RED, "s--")
    for axes in panels:
        axes.axvline(default, color=GREY, ls=":")
        axes.set(xscale="log", xlabel="alpha")
        axes.legend()
    accuracy.set(ylabel="accuracy, %", ylim=(0, 101))
    size.set(yscale="log")
    worth.set(ylim=(0, 1))
    figure.savefig(HERE / "alpha.svg", metadata={"Date": None})


with plt.rc_context(STYLE):
    course_figure()
    alpha_figure()
