"""Figures of results, drawn from the csv files of a result folder or the records of a run alone; the same files give the same
bytes. No torch here."""
import warnings
from pathlib import Path

from pyro_advbnn.cli.text_tables import fraction
from pyro_advbnn.reporting import csv_tables, figure_style, paper
from pyro_advbnn.reporting.curves import common, curves, labels, place
from pyro_advbnn.reporting.figure_style import GREY, INK, SERIES, STYLE, Look, error_bars, finish_figure, start_figure, wrap
from pyro_advbnn.reporting.posterior_figures import density, log_std_by_layer
from pyro_advbnn.reporting.run_descriptions import SETTINGS
from pyro_advbnn.reporting.transfer_figure import transfer
from pyro_advbnn.reporting.uncertainty_figures import calibration, detection
from pyro_advbnn.system import files, json_files

_EDGE = "#fafafa"                                       # of bars, and their hatches; on light and dark pages
_FEW = 30                                               # epochs, each with a marker


def draw(folder, names=None):
    """Draw the figures `names` (default: all of FIGURES) whose csv files, or metrics.jsonl, `folder` holds; the paths written.

    Each becomes folder/figures/<name>.svg and .png. Raises InputError for files of another version.
    """
    paths = []
    for name, (csv_name, drawing) in FIGURES.items():
        if names is None or name in names:
            rows = csv_tables.read(folder, csv_name) if csv_name else _epochs(Path(folder))
            paths += _write(Path(folder) / "figures", name, drawing, rows) if rows else []
    return paths


def _epochs(folder):
    """The lines of metrics.jsonl of a run, each with what config.json says of it; [] where there are none."""
    rows = json_files.read_jsonl(folder / "metrics.jsonl")
    config = json_files.read_config(folder) if rows else {}
    return [config | row for row in rows]


def _write(folder, name, drawing, rows):
    import matplotlib.figure
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ")      # a name in letters that the font lacks is drawn as boxes
        warnings.filterwarnings("ignore", "constrained_layout not applied")          # names of hundreds of letters
        matplotlib.rcdefaults()                          # nobody's own matplotlibrc changes a figure
        matplotlib.rcParams.update(STYLE | {"svg.hashsalt": name})
        figure = drawing(rows)
        if figure is None:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.svg", folder / f"{name}.png"]
        for path, metadata in zip(paths, ({"Date": None}, {"Software": None}), strict=True):
            with files.replacing(path) as file:
                figure.savefig(file, format=path.suffix[1:], dpi=200, metadata=metadata)
    return paths


def _accuracy(rows):
    """Fig. 2: accuracy against the radius; the published numbers of Table 1 as hollow markers."""
    found = curves(rows, "epsilon")
    figure, axes = start_figure(1)
    look = Look(found)
    look.lines(axes[0], found, "epsilon")
    published = _published(axes[0], found, look)
    axes[0].set_xlabel("radius ε of the attack (ℓ∞, images in [0, 1])")
    return finish_figure(figure, "Accuracy under white-box PGD", common(rows, "epsilon"), look.handles() + published)


def _published(axes, found, look):
    """Hollow markers in the colour of the defence's curve; their entries of the legend."""
    from matplotlib.lines import Line2D
    entries, defenses = {}, dict.fromkeys((curve.rows[0]["dataset"], curve.rows[0]["defense"]) for curve in found)
    for many, label, marker in ((False, "paper, Table 1", "o"), (True, "many draws, arXiv 2212.02003", "D")):
        style = {"marker": marker, "markersize": 7, "markerfacecolor": "none", "linestyle": "none"}
        for dataset, defense in defenses:
            points = {radius: paper.accuracy(dataset, defense, radius, many) for radius in paper.epsilons(dataset)}
            if None in points.values() or not points:
                continue
            own = [curve for curve in found if (curve.rows[0]["dataset"], curve.rows[0]["defense"]) == (dataset, defense)]
            own.sort(key=lambda curve: ((curve.rows[-1]["attack_samples"] or 1) > 1) != many)
            axes.plot(list(points), [100 * value for value in points.values()], color=look.of(own[0])["color"], **style)
            entries[label] = Line2D([], [], color=GREY, label=label, **style)
    return list(entries.values())


def _over(x, title, xlabel, *, panel_by=("epsilon",), scale="linear", always=False):
    """A drawing function: accuracy against the column x, one panel for each of `panel_by` where several runs share it."""
    def drawing(rows):
        names, parts = labels(rows), {}
        for row in rows:
            key = tuple(row[name] for name in panel_by) if always or len(names) > 1 else ()
            parts.setdefault(key, []).append(row)
        parts = [parts[key] for key in sorted(parts, key=lambda key: [(value == "mean", place(value)) for value in key])]
        panels = [curves(part, x, names=names) for part in parts]
        look, shared = Look([curve for panel in panels for curve in panel]), common(rows, x)
        figure, axes = start_figure(len(panels))
        for panel, part, ax in zip(panels, parts, axes, strict=True):
            look.lines(ax, panel, x)
            ax.set_xscale(scale)
            own = [text for name, text in common(part, x).items() if name not in shared]
            ax.set_title(wrap(", ".join(own), 95 // figure_style.columns_of(len(panels))), loc="left")
            if scale == "log":
                _plain_ticks(ax, sorted({row[x] for row in part}), 1.3 + 0.4 * figure_style.columns_of(len(panels)))
            if ax.get_subplotspec().is_last_row():
                ax.set_xlabel(xlabel)
        return finish_figure(figure, title, shared, look.handles())
    return drawing


def _plain_ticks(axes, values, least_ratio):
    """Ticks of a logarithmic axis at the values themselves, both ends and between them what stands far enough apart."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
    ticks = values[-1:]
    for value in reversed(values):
        ticks += [value] if value * least_ratio <= ticks[-1] else []
    ticks[-1] = values[0]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _sweep(x, title, xlabel):
    """A drawing function: accuracy of runs that were trained with different x, at evenly spaced places."""
    def drawing(rows):
        found = curves(rows, x, over_runs=True)
        values = sorted({row[x] for row in rows}, key=place)
        figure, axes = start_figure(1)
        look = Look(found)
        look.lines(axes[0], found, x, values.index)
        axes[0].set_xticks(range(len(values)), [value if isinstance(value, str) else fraction(value) for value in values])
        axes[0].set_xlim(-0.3, len(values) - 0.7)
        axes[0].set_xlabel(xlabel)
        return finish_figure(figure, title, common(rows, x), look.handles())
    return drawing


def _gradients(rows):
    """Bars of the mean l_1 norm of the input gradient, training and test, with 95 % intervals."""
    found = curves(rows, "split")
    figure, axes = start_figure(1, height=0.6 + 0.42 * len(found))
    splits = sorted({row["split"] for row in rows}, key=lambda split: (split != "train", split))
    for number, split in enumerate(splits):
        bars = [(place, row) for place, curve in enumerate(found) for row in curve.rows if row["split"] == split]
        places = [place + 0.36 * (number - (len(splits) - 1) / 2) for place, _ in bars]
        axes[0].barh(places, [row["l1_norm"] for _, row in bars], height=0.34, edgecolor=_EDGE, label=f"{split} images",
                     xerr=error_bars([row for _, row in bars], "l1_norm"), color=SERIES[(1, 4, 2)[number % 3]][0],
                     hatch=("", "////", "....")[number % 3], error_kw={"elinewidth": 0.9, "capsize": 2, "ecolor": INK})
    axes[0].set_yticks(range(len(found)), [wrap(curve.text, 26) for curve in found])
    axes[0].set(xlabel="mean ℓ1 norm of the input gradient of the loss", ylim=(len(found) - 0.4, -0.6), xlim=(0, None))
    axes[0].grid(False, axis="y")
    return finish_figure(figure, "Input gradients", common(rows, "split"), axes[0].get_legend_handles_labels()[0])


def _training(rows):
    """The course of a training over its epochs: nll, of a posterior KL and signal-to-noise, accuracies clean and under PGD."""
    from matplotlib.ticker import LogFormatter
    held_out = _course(rows, "held_out_accuracy")
    of, told = ("held_out", "held-out") if held_out else ("train", "training")
    panels = [("nll in training (nats per image)", {"nll": INK}), ("KL (nats per image)", {"kl_per_image": INK}),
              ("signal-to-noise of the weights", {"snr": INK}),
              (f"accuracy on {told} images (%)", {f"{of}_accuracy": SERIES[1][0], f"{of}_robust_accuracy": SERIES[0][0]})]
    panels = [(title, colors) for title, colors in panels if any(_course(rows, name) for name in colors)]
    if not panels:
        return None
    figure, axes = start_figure(len(panels), sharey=False)
    for ax, (title, colors) in zip(axes, panels, strict=True):
        for name, color in colors.items():
            course = _course(rows, name, 100 if "accuracy" in name else 1)
            ax.plot(list(course), list(course.values()), color=color, label="under PGD" if "robust" in name else "clean",
                    marker="o" if len(course) < _FEW else None, markersize=3)
        ax.set_title(title, loc="left")
        ax.xaxis.get_major_locator().set_params(integer=True)
        if "snr" in colors:
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(LogFormatter())
        else:
            ax.update_datalim([(1, 0)])                  # what changes little shall look so
            ax.autoscale_view()
        if ax.get_subplotspec().is_last_row():
            ax.set_xlabel("epoch")
    shared = {name: SETTINGS[name](rows[0]) for name in ("data set", "defence", "network")} | {
        "recipe": f"recipe {SETTINGS['recipe'](rows[0])}"}
    return finish_figure(figure, "Course of the training", shared, ax.get_legend_handles_labels()[0] if len(colors) > 1 else [])


def _course(rows, name, factor=1):
    """{epoch: value} of a number of metrics.jsonl, where there is one."""
    return {row["epoch"]: factor * row[name] for row in rows if row.get(name) is not None}


FIGURES = {                                             # name: (csv file, or None for metrics.jsonl, drawing function)
    "accuracy": ("accuracy", _accuracy),
    "transfer": ("transfer", transfer),
    "log_std": ("density", density("log_std", "Uncertainty of the weights", "log std of the posterior (natural logarithm)")),
    "log_std_by_layer": ("layers", log_std_by_layer),
    "signal_to_noise": ("density", density("log10_signal_to_noise", "Signal-to-noise of the weights", "log10 of |mean| / std")),
    "pruning": ("pruning", _over("fraction", "Accuracy after pruning", "fraction of the weights pruned",
                                 panel_by=("prediction", "epsilon"), always=True)),
    "ensemble": ("ensemble", _over("num_samples", "Accuracy of averaged predictions", "draws per prediction", scale="log")),
    "steps": ("steps", _over("num_steps", "Accuracy under longer attacks", "PGD steps", scale="log")),
    "alpha": ("alpha", _sweep("alpha", "Accuracy by the factor α of the KL", "α")),
    "prior_std": ("prior_std", _sweep("prior_std", "Accuracy by the prior", "standard deviation of the prior")),
    "many_draws": ("many_draws", _over("attack_samples", "Accuracy by the draws that an attack averages", "draws per gradient",
                                       scale="log")),
    "gradients": ("gradients", _gradients),
    "calibration": ("calibration", calibration),
    "detection": ("detection", detection),
    "rejection": ("rejection", _over("rejected", "Accuracy when the most doubtful images are rejected",
                                     "share of the images rejected", panel_by=("score",), always=True)),
    "training": (None, _training),
}
