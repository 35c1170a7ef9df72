"""Figures of results, drawn from the csv files of a result folder alone; the same files give the same bytes. No torch here."""
import textwrap
import warnings
from pathlib import Path
from unicodedata import category

from pyro_advbnn.reporting import csv_tables, paper
from pyro_advbnn.reporting.curves import check, common, curves, densities, fraction, labels, place
from pyro_advbnn.reporting.figure_style import (
    GREY,
    INK,
    SERIES,
    STYLE,
    Look,
    columns_of,
    error_bars,
    finish_figure,
    start_figure,
    wrap,
)
from pyro_advbnn.reporting.transfer_figure import transfer
from pyro_advbnn.reporting.uncertainty_figures import calibration, detection
from pyro_advbnn.system import files
from pyro_advbnn.system.errors import InputError

_EDGE = "#fafafa"                                       # of bars, and their hatches; on light and dark pages


def draw(folder, names=None):
    """Draw the figures `names` (default: all of FIGURES) whose csv files `folder` holds; the paths written, a list.

    Each becomes folder/figures/<name>.svg and .png. Raises InputError for an unknown name, a damaged csv file, and where
    matplotlib is missing.
    """
    unknown = sorted(set(names or ()) - set(FIGURES))
    if unknown:
        raise InputError(f"figures must be of {', '.join(FIGURES)}, got {', '.join(unknown)}")
    paths = []
    for name, (csv_name, drawing) in FIGURES.items():
        if names is None or name in names:
            rows = csv_tables.read(folder, csv_name)
            paths += _write(Path(folder) / "figures", name, drawing, rows) if rows else []
    return paths


def _write(folder, name, drawing, rows):
    matplotlib = _matplotlib()
    for row in rows:
        check(row)
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


def _matplotlib():
    try:
        import matplotlib.figure
    except ImportError:
        raise InputError("figures need matplotlib: pip install pyro_advbnn[evaluation]") from None
    return matplotlib


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
    entries, defenses = [], dict.fromkeys((curve.rows[0]["dataset"], curve.rows[0]["defense"]) for curve in found)
    for many, label, marker in ((False, "paper, Table 1", "o"), (True, "many draws, arXiv 2212.02003", "D")):
        style = {"marker": marker, "markersize": 7, "markerfacecolor": "none", "linestyle": "none"}
        for dataset, defense in defenses:
            points = {radius: paper.accuracy(dataset, defense, radius, many) for radius in paper.epsilons(dataset)}
            if None in points.values() or not points:
                continue
            own = [curve for curve in found if (curve.rows[0]["dataset"], curve.rows[0]["defense"]) == (dataset, defense)]
            own.sort(key=lambda curve: ((curve.rows[-1]["attack_samples"] or 1) > 1) != many)
            axes.plot(list(points), [100 * value for value in points.values()], color=look.of(own[0])["color"], **style)
            entries.append(Line2D([], [], color=GREY, label=label, **style))
    return list({entry.get_label(): entry for entry in entries}.values())


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
            ax.set_title("\n".join(textwrap.wrap(", ".join(own), 95 // columns_of(len(panels)))), loc="left")
            if scale == "log":
                _plain_ticks(ax, sorted({row[x] for row in part}), 1.3 + 0.4 * columns_of(len(panels)))
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
        found = curves(rows, x, across=("run", "checkpoint", "weights", x))
        values = sorted({row[x] for row in rows}, key=place)
        figure, axes = start_figure(1)
        look = Look(found)
        look.lines(axes[0], found, x, values.index)
        axes[0].set_xticks(range(len(values)), [value if isinstance(value, str) else fraction(value) for value in values])
        axes[0].set_xlim(-0.3, len(values) - 0.7)
        axes[0].set_xlabel(xlabel)
        return finish_figure(figure, title, common(rows, x), look.handles())
    return drawing


def _density(quantity, title, xlabel):
    """A drawing function: density over all weights, one curve per run, and the stds of the prior as lines (Fig. 4)."""
    def drawing(rows):
        rows = [row for row in rows if row["layer"] == "all"]
        found = curves([row for row in rows if row["quantity"] == quantity], "left")
        if not found:
            return None
        figure, axes = start_figure(1)
        look = Look(found, marked=False)
        for curve in found:
            centres = [(row["left"] + row["right"]) / 2 for row in curve.rows]
            axes[0].plot(centres, densities(curve), **look.of(curve))
        axes[0].set(xlabel=xlabel, ylabel="density", ylim=(0, None))
        priors = curves([row for row in rows if row["quantity"] == "prior_log_std"], "left") if quantity == "log_std" else []
        return finish_figure(figure, title, common(rows, "left"), look.handles() + _prior_lines(axes[0], priors, found, look))
    return drawing


def _prior_lines(axes, priors, found, look):
    """Lines at the prior's log std, as high as the share of the weights that have it; the entry of the legend."""
    from matplotlib.lines import Line2D
    top = axes.get_ylim()[1]
    alike = len({tuple((row["left"], row["share"]) for row in prior.rows) for prior in priors}) == 1
    for prior in priors[:1] if alike else priors:
        most = max(row["share"] for row in prior.rows)
        own = next((curve for curve in found if curve.rows[0]["run"] == prior.rows[0]["run"]), found[0])
        color = GREY if alike else look.of(own)["color"]
        axes.vlines([row["left"] for row in prior.rows], 0, [top * row["share"] / most for row in prior.rows], color=color,
                    linestyle=(0, (2, 1.5)), linewidth=1)
    axes.set_ylim(0, top)
    several = any(len(prior.rows) > 1 for prior in priors)
    label = "prior (height: share of the weights)" if several else "prior"
    return [Line2D([], [], color=GREY, linestyle=(0, (2, 1.5)), linewidth=1, label=label)] if priors else []


def _log_std_by_layer(rows):
    """The log std of each parameter tensor: median and the 5 to 95 % range, a tick for the prior; panels by kind."""
    from matplotlib.lines import Line2D
    rows = [row for row in rows if row["layer"] != "all"] or rows
    found, layers = curves(rows, "layer"), list(dict.fromkeys(row["layer"] for row in rows))
    kinds = list(dict.fromkeys(layer.rpartition(".")[2] for layer in layers))
    kinds = kinds if len(kinds) <= 2 else [""]
    owners = list(dict.fromkeys(_owner(layer, kinds) for layer in layers))
    height = 0.5 + len(owners) * max(0.17, 0.075 * len(found))
    figure, axes = start_figure(len(kinds), columns=len(kinds), height=height, sharex=True)
    look = Look(found)
    for kind, ax in zip(kinds, axes, strict=True):
        for number, curve in enumerate(found):
            part = [row for row in curve.rows if row["layer"].endswith(kind)]
            offset = 0.8 * ((number + 0.5) / len(found) - 0.5)
            _ranges(ax, part, [owners.index(_owner(row["layer"], kinds)) + offset for row in part], look.of(curve))
        ax.set(xlabel="log std of the posterior (natural logarithm)", ylim=(len(owners) - 0.4, -0.6))
        ax.set_title(kind, loc="left")
        ax.set_yticks(range(len(owners)), owners)
    prior = [Line2D([], [], color=GREY, marker="|", linestyle="none", markersize=7, label="prior (mean of log std)")]
    known = any(row["prior_log_std"] is not None for row in rows)
    return finish_figure(figure, "Posterior by layer: median, 5 to 95 % of the weights", common(rows),
                         look.handles() + (prior if known else []))


def _owner(layer, kinds):
    """The name of the row of a parameter: its module's where the panels tell weight from bias."""
    return layer.rpartition(".")[0] if any(kinds) else layer


def _ranges(axes, rows, heights, style):
    axes.hlines(heights, [row["log_std_q05"] for row in rows], [row["log_std_q95"] for row in rows], linewidth=1,
                color=style["color"])
    axes.plot([row["log_std_median"] for row in rows], heights, **style | {"linestyle": "none", "markersize": 3})
    priors = [(row["prior_log_std"], height) for row, height in zip(rows, heights) if row["prior_log_std"] is not None]
    if priors:
        axes.plot(*zip(*priors, strict=True), color=GREY, marker="|", markersize=5, linestyle="none")


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
    "log_std": ("density", _density("log_std", "Uncertainty of the weights", "log std of the posterior (natural logarithm)")),
    "log_std_by_layer": ("layers", _log_std_by_layer),
    "signal_to_noise": ("density", _density("log10_signal_to_noise", "Signal-to-noise of the weights",
                                            "log10 of |mean| / std")),
    "pruning": ("pruning", _over("fraction", "Accuracy after pruning", "fraction of the weights pruned",
                                 panel_by=("prediction", "epsilon"), always=True)),
    "ensemble": ("ensemble", _over("num_samples", "Accuracy of averaged predictions", "draws per prediction",
                                   scale="log")),
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
