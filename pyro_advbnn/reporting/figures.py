"""Figures of results, drawn from the csv files of a result folder alone; the same files give the same bytes. No torch here."""
import warnings
from pathlib import Path
from unicodedata import category

from pyro_advbnn.cli.text_tables import fraction
from pyro_advbnn.reporting import csv_tables, figure_style, paper
from pyro_advbnn.reporting.curves import common, curves, labels, place
from pyro_advbnn.reporting.figure_style import GREY, INK, SERIES, STYLE, Look, error_bars, finish_figure, start_figure, wrap
from pyro_advbnn.reporting.posterior_figures import density, log_std_by_layer
from pyro_advbnn.reporting.transfer_figure import transfer
from pyro_advbnn.reporting.uncertainty_figures import calibration, detection
from pyro_advbnn.system import files
from pyro_advbnn.system.errors import InputError

_EDGE = "#fafafa"                                       # of bars, and their hatches; on light and dark pages


def draw(folder, names=None):
    """Draw the figures `names` (default: all of FIGURES) whose csv files `folder` holds; the paths written, a list.

    Each becomes folder/figures/<name>.svg and .png. Raises InputError for a damaged csv file, and where matplotlib
    is missing.
    """
    paths = []
    for name, (csv_name, drawing) in FIGURES.items():
        if names is None or name in names:
            rows = csv_tables.read(folder, csv_name)
            paths += _write(Path(folder) / "figures", name, drawing, rows) if rows else []
    return paths


def _write(folder, name, drawing, rows):
    try:
        import matplotlib.figure
    except ImportError:
        raise InputError("figures need matplotlib: pip install pyro_advbnn[evaluation]") from None
    rows = [{name: _drawable(value) for name, value in row.items()} for row in rows]
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


def _drawable(value):
    """A text without what no SVG may hold, control characters and surrogates, and without what matplotlib takes for TeX."""
    if not isinstance(value, str):
        return value
    shown = "".join("\N{REPLACEMENT CHARACTER}" if category(letter) in ("Cc", "Cs") else letter for letter in value)
    return shown.replace("$", r"\$")


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


FIGURES = {
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
}
