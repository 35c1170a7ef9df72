"""Figures of results, drawn from the csv files of a result folder alone; the same files give the same bytes. No torch here.

Ink (text, axes) is exactly INK and backgrounds are PAPER, nothing else is: a page may replace them to follow light and dark.
"""
import math
import textwrap
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pyro_advbnn import paper, records, tables
from pyro_advbnn.errors import InputError

INK, PAPER, GREY = "#1b1b1b", "#ffffff", "#8a8a8a"
_EDGE = "#fafafa"                                       # of bars, and their hatches; on light and dark pages
SERIES = (("#d55e00", "o"), ("#0072b2", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#e69f00", "v"), ("#56b4e9", "P"),
          ("#d55e00", "X"), ("#0072b2", "<"), ("#009e73", ">"), ("#cc79a7", "p"), ("#e69f00", "h"), ("#56b4e9", "*"))
LINES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)))
_PLACE_OF = {"advbnn": 0, "adv": 1, "rse": 2, "none": 3, "bnn": 4, "advrse": 5}    # one colour per defence in all figures
_DETERMINISTIC = ("none", "adv")
_OF_RUN = ("network", "alpha", "prior_std", "checkpoint", "weights")
_NEEDED = ("accuracy", "accuracy_low", "accuracy_high", "l1_norm", "l1_norm_low", "l1_norm_high", "share", "right",
           "num_weights", "log_std_q05", "log_std_median", "log_std_q95", "accuracy_clean", "accuracy_white_box")
_OF_ATTACK = ("attack", "num_steps", "step_size", "attack_samples")
_PREDICTIONS = {"posterior": "prediction averaged over draws", "mean": "prediction of the mean network"}
_SHARED = ("dataset", "num_examples", "prediction", "prune_by", "epsilon", "attack", "num_steps", "step_size", "attack_samples",
           "num_samples", "seed", "alpha", "prior_std")
_STYLE = {
    "svg.fonttype": "none", "font.size": 8, "axes.titlesize": 8, "figure.titlesize": 8, "axes.labelsize": 8,
    "legend.fontsize": 8, "figure.facecolor": PAPER, "savefig.facecolor": PAPER, "axes.facecolor": PAPER,
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "axes.grid": True, "axes.axisbelow": True, "grid.color": GREY, "grid.alpha": 0.25,
    "grid.linewidth": 0.5, "lines.linewidth": 1.3, "lines.markersize": 4, "legend.frameon": False,
    "legend.handlelength": 2.6, "figure.constrained_layout.use": True,
}


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
            rows = tables.read(folder, csv_name)
            paths += _write(Path(folder) / "figures", name, drawing, rows) if rows else []
    return paths


def _write(folder, name, drawing, rows):
    matplotlib = _matplotlib()
    for row in rows:
        _check(row)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()                          # nobody's own matplotlibrc changes a figure
        matplotlib.rcParams.update(_STYLE | {"svg.hashsalt": name})
        figure = drawing(rows)
        if figure is None:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.svg", folder / f"{name}.png"]
        for path, metadata in zip(paths, ({"Date": None}, {"Software": None}), strict=True):
            with records.replacing(path) as file:
                figure.savefig(file, format=path.suffix[1:], dpi=200, metadata=metadata)
    return paths


def _matplotlib():
    try:
        import matplotlib.figure
    except ImportError:
        raise InputError("figures need matplotlib: pip install pyro_advbnn[evaluation]") from None
    return matplotlib


@dataclass(frozen=True)
class Curve:
    """Rows that differ in one setting alone, in its order.

    label: their run's, "" where they are of many. words: {setting: text} in which this curve differs from the others.
    """

    label: str
    words: dict
    rows: list

    @property
    def text(self):
        return ", ".join(filter(None, (self.label, *self.words.values())))


def curves(rows, x, *, across=(), names=None):
    """`rows` split into curves over the column `x`: rows of different settings never share one.

    across: columns in which the rows of one curve may differ as well; names: {run: label}, default `labels(rows)`. Clean
    rows (epsilon 0) know no attack and belong to the curve of every attack. Raises InputError for rows without a number.
    """
    names, groups = names or labels(rows), {}
    if "run" in across:                                  # no curve is of one run: at most the defence names it
        names = {row["run"]: _defense_name(row) if len({row["defense"] for row in rows}) > 1 else "" for row in rows}
    for row in sorted(rows, key=_is_clean):           # what may belong to several comes last
        key = frozenset(_identity(row, x, across).items())
        homes = [home for home in groups if key <= home] if _is_clean(row) and x == "epsilon" else []
        for home in homes or [key]:
            groups.setdefault(home, []).append(row)
    found = [Curve(names[group[0]["run"]], {}, _in_order(group, x)) for group in groups.values()]
    found.sort(key=lambda curve: _rank(curve.rows[-1], x, list(names)))
    return [Curve(curve.label, words, curve.rows) for curve, words in zip(found, _differences(found, x, across))]


def labels(rows):
    """{run: how readers know it}: the name of its defence where no other run shown has the same, else the run's own."""
    defenses = {row["run"]: _defense_name(row) for row in rows}
    counts = list(defenses.values())
    return {run: run if counts.count(defense) > 1 else defense for run, defense in defenses.items()}


def _defense_name(row):
    return paper.DEFENSE_NAMES.get(row["defense"], row["defense"])


def settings(row, x=None):
    """{name: text} of what a row was measured with, without `x` and without what means nothing for it."""
    draws = row["defense"] not in _DETERMINISTIC and row.get("prediction") != "mean"
    averaged = " per gradient" if "l1_norm" in row else " per prediction"
    texts = {
        "dataset": paper.DATASET_NAMES.get(row["dataset"], row["dataset"]), "network": row["network"],
        "prediction": _PREDICTIONS.get(row.get("prediction")),
        "prune_by": _text(row, "prune_by", lambda name: f"pruned by {name.replace('_', '-')}"),
        "epsilon": _text(row, "epsilon", lambda value: f"ε = {value:g}" if value else "clean"),
        "attack": row.get("attack") if row.get("attack") != "pgd" else None,
        "num_steps": _text(row, "num_steps", _counted("PGD step")), "step_size": _step(row, x),
        "attack_samples": draws and _text(row, "attack_samples", _counted("draw", " per gradient")),
        "num_samples": draws and _text(row, "num_samples", _counted("draw", averaged)),
        "num_examples": _text(row, "num_examples", _counted("image")), "seed": _text(row, "seed", "seed {}".format),
        "alpha": _text(row, "alpha", lambda value: f"α = {fraction(value)}"),
        "prior_std": _text(row, "prior_std", "prior std {}".format),
        "checkpoint": _text(row, "checkpoint", lambda path: Path(path).name), "weights": row["weights"],
    }
    hidden = {x, *(_OF_ATTACK if _is_clean(row) else ())}
    return {name: text for name, text in texts.items() if text and name not in hidden}


def common(rows, x=None):
    """{name: text} of the settings that all rows share, as far as they have them; nothing about their networks."""
    seen = {}
    for row in rows:
        for name, text in settings(row, x).items():
            seen.setdefault(name, set()).add(text)
    return {name: seen[name].pop() for name in _SHARED if len(seen.get(name, ())) == 1}


def fraction(value):
    """A number as text: as 1/n where it is one, else as a decimal; None as a dash."""
    if value is None:
        return "–"
    exact = Fraction(value).limit_denominator(1000)
    return f"1/{exact.denominator}" if exact.numerator == 1 < exact.denominator and math.isclose(exact, value) else f"{value:g}"


def _counted(noun, rest=""):
    return lambda count: f"{count:,} {noun}{'' if count == 1 else 's'}{rest}"


def _text(row, name, write):
    return None if row.get(name) is None else write(row[name])


def _step(row, x):
    """The PGD step in words; one that follows the radius has one text for all radii."""
    size, count = row.get("step_size"), row.get("num_steps")
    if size is None:
        return None
    follows = x != "num_steps" and count and math.isclose(size * count, 2.5 * (row["epsilon"] or 0), rel_tol=1e-5)
    return "step 2.5 ε / steps" if follows else f"step {size:g}"


def _is_clean(row):
    return row.get("epsilon") == 0


def _identity(row, x, across):
    """All that keeps rows apart: the run and the settings."""
    own = {name: row.get(name) for name in (*tables.RUN_FIELDS, "quantity", "layer")}
    return {name: value for name, value in (settings(row, x) | own).items() if name not in (x, *across)}


def _in_order(rows, x):
    """Rows by x, one each of a run: a clean accuracy measured twice, beside two attacks, is one point."""
    points = {}
    for row in rows:
        _check(row, x)
        points.setdefault((place(row[x]), row["run"], row["checkpoint"], row["weights"]), row)
    return [row for key, row in sorted(points.items(), key=lambda item: (item[0][0], str(item[0])))]


def _check(row, x=None):
    """Raises InputError for a row without one of the numbers that every row of its kind has."""
    for name in (x, *_NEEDED):
        number = name in row and name not in ("alpha", "prior_std", "split", "layer")
        if number and (row[name] is None or not math.isfinite(row[name])):
            raise InputError(f"a csv file is damaged: a row of the run {row['run']} has no {name}")


def place(value):
    """A key that sorts numbers by size, then texts, then None."""
    if value is None:
        return 2, 0.0, ""
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value


def _rank(row, x, runs):
    numbers = [place(row.get(name)) for name in ("epsilon", "attack_samples", "num_samples", "num_steps") if name != x]
    return runs.index(row["run"]), numbers, sorted(settings(row, x).items())


def _differences(found, x, across):
    """For each curve the settings in which not all are alike; of those of a run only where its curves differ in them."""
    rows = [next((row for row in curve.rows if not _is_clean(row)), curve.rows[0]) for curve in found]
    all_settings, alike = [settings(row, x) for row in rows], set(across)
    for name in {name for each in all_settings for name in each}:
        values = {(curve.label if name in _OF_RUN else "", each[name])
                  for curve, each in zip(found, all_settings) if name in each}
        if len(values) == len({label for label, _ in values}):
            alike.add(name)
    pairs = {(each.get("epsilon"), each.get("step_size")) for each in all_settings}
    if len(pairs) == len({epsilon for epsilon, _ in pairs}):
        alike.add("step_size")                           # the radius already tells it
    return [{name: text for name, text in each.items() if name not in alike} for each in all_settings]


def _accuracy(rows):
    """Fig. 2: accuracy against the radius; the published numbers of Table 1 as hollow markers."""
    found = curves(rows, "epsilon")
    figure, axes = _figure(1)
    look = _Look(found)
    look.lines(axes[0], found, "epsilon")
    published = _published(axes[0], found, look)
    axes[0].set_xlabel("radius ε of the attack (ℓ∞, images in [0, 1])")
    return _finish(figure, "Accuracy under white-box PGD", common(rows, "epsilon"), look.handles() + published)


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
        look, shared = _Look([curve for panel in panels for curve in panel]), common(rows, x)
        figure, axes = _figure(len(panels))
        for panel, part, ax in zip(panels, parts, axes, strict=True):
            look.lines(ax, panel, x)
            ax.set_xscale(scale)
            own = [text for name, text in common(part, x).items() if name not in shared]
            ax.set_title("\n".join(textwrap.wrap(", ".join(own), 95 // _columns(len(panels)))), loc="left")
            if scale == "log":
                _plain_ticks(ax, sorted({row[x] for row in part}), 1.3 + 0.4 * _columns(len(panels)))
            if ax.get_subplotspec().is_last_row():
                ax.set_xlabel(xlabel)
        return _finish(figure, title, shared, look.handles())
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
        figure, axes = _figure(1)
        look = _Look(found)
        look.lines(axes[0], found, x, values.index)
        axes[0].set_xticks(range(len(values)), [value if isinstance(value, str) else fraction(value) for value in values])
        axes[0].set_xlim(-0.3, len(values) - 0.7)
        axes[0].set_xlabel(xlabel)
        return _finish(figure, title, common(rows, x), look.handles())
    return drawing


def _transfer(rows):
    """Fig. 3: heat maps of rho, rows = source, columns = target, one for each group of settings."""
    maps = transfer_groups(rows)
    names = labels(rows)
    count = max(len({row["run"] for row in part}) for _, part in maps)
    figure, axes = _figure(len(maps), columns=1, height=0.9 + 0.5 * count, sharey=False)
    for ax, (words, part) in zip(axes, maps, strict=True):
        _heat_map(ax, part, names)
        ax.set_title(", ".join(words.values()), loc="left")
    return _finish(figure, "Transfer of attacks: ρ = (Acc[B] − Acc[B|A]) / (Acc[B] − Acc[B|B])", common(rows), [])


def transfer_groups(rows):
    """[({setting: text}, rows)]: the pairs measured alike, each pair once; words: the settings in which the groups differ.

    The draws count where there is something to draw: per gradient of the source, per prediction of the target.
    """
    defense_of, groups = {row["run"]: row["defense"] for row in rows}, {}
    for row in sorted(rows, key=lambda row: -_transfer_draws(row, defense_of)):    # what may belong to several comes last
        _check(row, "epsilon")
        key = _transfer_key(row, defense_of)
        for home in [home for home in groups if key <= home] or [key]:
            groups.setdefault(home, []).append(row)
    alike, found = frozenset.intersection(*groups), []
    for key, part in groups.items():
        words = dict(sorted(key - alike))
        found += [(words | ({"weights": f"weights of version {version}"} if len(maps) > 1 else {}), pairs)
                  for maps in [_each_pair_once(sorted(part, key=rows.index))] for version, pairs in enumerate(maps, 1)]
    return sorted(found, key=lambda pair: list(pair[0].items()))


def _transfer_key(row, defense_of):
    key = {name: text for name, text in settings(row).items() if name in (
        "dataset", "epsilon", "num_steps", "step_size", "num_examples", "seed", "num_samples")}
    if defense_of.get(row["source"]) not in _DETERMINISTIC and row["attack_samples"] is not None:
        key["attack_samples"] = _counted("draw", " per gradient")(row["attack_samples"])    # of the source, not the target
    return frozenset(key.items())


def _each_pair_once(rows):
    """`rows` in as many parts as the most frequent pair needs: a run trained anew under its old name comes again."""
    parts, seen = [], {}
    for row in rows:
        count = seen[row["source"], row["run"]] = seen.get((row["source"], row["run"]), -1) + 1
        parts += [[]] if count == len(parts) else []
        parts[count].append(row)
    return parts


def _transfer_draws(row, defense_of):
    """How many of the two numbers of draws mean something."""
    return (row["defense"] not in _DETERMINISTIC) + (defense_of.get(row["source"]) not in _DETERMINISTIC)


def _heat_map(axes, rows, names):
    from matplotlib.colors import LinearSegmentedColormap
    given, known = {row["source"] for row in rows}, list(names)
    sources = [*sorted(given - set(known)), *(run for run in known if run in given)]
    targets = [run for run in known if any(row["run"] == run for row in rows)]
    defenses = {row["run"]: row["defense"] for row in rows}
    cells = {(row["source"], row["run"]): row for row in rows}
    colors = LinearSegmentedColormap.from_list("rho", ["#eef4fa", "#9ec5e3", "#3b7fb6", "#0b3c68"])
    for i, source in enumerate(sources):
        for j, target in enumerate(targets):
            row = cells.get((source, target))
            rho = row and row["rho"]
            shade = "#dddddd" if rho is None else colors(min(max(float(rho), 0.0), 1.0))
            axes.add_patch(_rectangle(j, i, shade))
            if row:
                _cell_text(axes, j, i, row, paper.correlation(defenses.get(source), row["defense"]), readable_on(shade))
    axes.set(xlim=(0, len(targets)), ylim=(len(sources), 0), xlabel="target B", ylabel="source A")
    width = max(8, 58 // len(targets))
    axes.set_xticks([j + 0.5 for j in range(len(targets))], [_wrapped(names[run], width) for run in targets])
    axes.set_yticks([i + 0.5 for i in range(len(sources))], [_wrapped(names.get(run, run), 24) for run in sources])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _rectangle(x, y, color):
    from matplotlib.patches import Rectangle
    return Rectangle((x + 0.02, y + 0.02), 0.96, 0.96, facecolor=color, edgecolor="none")


def readable_on(color):
    """Of a light and a dark colour, neither of them INK or PAPER, the one of higher contrast (WCAG 2) on `color`."""
    from matplotlib.colors import to_rgb
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(color)]
    return "#fdfdfd" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.184 else "#0a0a0a"


def _cell_text(axes, x, y, row, published, color):
    """rho, or why there is none; in a colour that no page replaces, since it stands on the cell's."""
    rho = row["rho"]
    if rho is None:
        text = _wrapped(row["note"] or "no ρ", 12)
        axes.text(x + 0.5, y + 0.5, text, color=color, ha="center", va="center", fontsize=6)
        return
    axes.text(x + 0.5, y + (0.38 if published else 0.5), f"{rho:.2f}", color=color, ha="center", va="center")
    if published:
        axes.text(x + 0.5, y + 0.72, f"paper ≈ {span(published)}", color=color, ha="center", va="center", fontsize=6)


def span(bounds):
    """(low, high) as text: "0.85" or "0.5–0.6"."""
    low, high = bounds
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def _density(quantity, title, xlabel):
    """A drawing function: density over all weights, one curve per run, and the stds of the prior as lines (Fig. 4)."""
    def drawing(rows):
        rows = [row for row in rows if row["layer"] == "all"]
        found = curves([row for row in rows if row["quantity"] == quantity], "left")
        if not found:
            return None
        figure, axes = _figure(1)
        look = _Look(found, marked=False)
        for curve in found:
            centres = [(row["left"] + row["right"]) / 2 for row in curve.rows]
            axes[0].plot(centres, densities(curve), **look.of(curve))
        axes[0].set(xlabel=xlabel, ylabel="density", ylim=(0, None))
        priors = curves([row for row in rows if row["quantity"] == "prior_log_std"], "left") if quantity == "log_std" else []
        return _finish(figure, title, common(rows, "left"), look.handles() + _prior_lines(axes[0], priors, found, look))
    return drawing


def densities(curve):
    """The heights of the histogram in a curve over "left"; a density per unit of what was counted."""
    if any(row["right"] <= row["left"] for row in curve.rows):
        raise InputError(f"density.csv is damaged: a bin of the run {curve.rows[0]['run']} has no width")
    return [row["share"] / (row["right"] - row["left"]) for row in curve.rows]


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
    figure, axes = _figure(len(kinds), columns=len(kinds), height=height, sharex=True)
    look = _Look(found)
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
    return _finish(figure, "Posterior by layer: median, 5 to 95 % of the weights", common(rows),
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
    figure, axes = _figure(1, height=0.6 + 0.42 * len(found))
    splits = sorted({row["split"] for row in rows}, key=lambda split: (split != "train", split))
    for number, split in enumerate(splits):
        bars = [(place, row) for place, curve in enumerate(found) for row in curve.rows if row["split"] == split]
        places = [place + 0.36 * (number - (len(splits) - 1) / 2) for place, _ in bars]
        axes[0].barh(places, [row["l1_norm"] for _, row in bars], height=0.34, edgecolor=_EDGE, label=f"{split} images",
                     xerr=_errors([row for _, row in bars], "l1_norm"), color=SERIES[(1, 4, 2)[number % 3]][0],
                     hatch=("", "////", "....")[number % 3], error_kw={"elinewidth": 0.9, "capsize": 2, "ecolor": INK})
    axes[0].set_yticks(range(len(found)), [_wrapped(curve.text, 26) for curve in found])
    axes[0].set(xlabel="mean ℓ1 norm of the input gradient of the loss", ylim=(len(found) - 0.4, -0.6), xlim=(0, None))
    axes[0].grid(False, axis="y")
    return _finish(figure, "Input gradients", common(rows, "split"), axes[0].get_legend_handles_labels()[0])


def _errors(rows, name, scale=1):
    """[distances down, distances up] of the intervals of a result."""
    return [[scale * (row[name] - row[f"{name}_low"]) for row in rows],
            [scale * (row[f"{name}_high"] - row[name]) for row in rows]]


FIGURES = {
    "accuracy": ("accuracy", _accuracy),
    "transfer": ("transfer", _transfer),
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
    "gradients": ("gradients", _gradients),
}


class _Look:
    """One colour and marker per run and one line style per setting; where there is one run, one of each per curve."""

    def __init__(self, found, marked=True):
        self.marked, self.by_run = marked, len({curve.label for curve in found}) > 1
        firsts = {}
        for curve in found:
            firsts.setdefault(curve.label if self.by_run else curve.text, curve)
        self.places = _places(firsts, self.by_run)
        ordered = sorted(found, key=lambda curve: -(curve.rows[-1].get("attack_samples") or 0))
        self.variants = list(dict.fromkeys(tuple(curve.words.values()) for curve in ordered))
        self.variants = [words for words in self.variants if not any(set(words) < set(other) for other in self.variants)]

    def of(self, curve):
        """The line of a curve, as arguments of `plot`."""
        place = self.places[curve.label if self.by_run else curve.text]
        color, marker = SERIES[place % len(SERIES)]
        variant = next(i for i, words in enumerate(self.variants) if set(curve.words.values()) <= set(words))
        if not self.marked or not self.by_run:
            variant = place
        return {"color": color, "linestyle": LINES[variant % len(LINES)], "marker": marker if self.marked else "none"}

    def lines(self, axes, found, x, position=lambda value: value):
        """Draw accuracies in percent, their intervals as bands; runs that share an x are points, not a line."""
        for curve in found:
            places = [position(row[x]) for row in curve.rows]
            values, low, high = ([100 * row[name] for row in curve.rows]
                                 for name in ("accuracy", "accuracy_low", "accuracy_high"))
            style = self.of(curve)
            if len(set(places)) < len(places):
                axes.errorbar(places, values, _errors(curve.rows, "accuracy", 100), elinewidth=0.8,
                              **style | {"linestyle": "none"})
                continue
            axes.plot(places, values, **style)
            axes.fill_between(places, low, high, color=style["color"], alpha=0.13, linewidth=0)
        axes.set_ylim(-2, 102)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("accuracy (%)")

    def handles(self):
        """The entries of the legend: runs, then what the line styles mean."""
        from matplotlib.lines import Line2D
        entries, two = [], self.by_run and self.marked
        for label, place in self.places.items():
            color, marker = SERIES[place % len(SERIES)]
            entries.append(Line2D([], [], color=color, marker=marker if self.marked else "none", label=_wrapped(label, 60),
                                  linestyle="-" if two else LINES[place % len(LINES)]))
        for i, words in enumerate(self.variants if two and len(self.variants) > 1 else ()):
            entries.append(Line2D([], [], color=GREY, linestyle=LINES[i % len(LINES)], label=_wrapped(", ".join(words), 60)))
        return [entry for entry in entries if entry.get_label()]


def _places(firsts, by_run):
    """{label: index of SERIES}: that of the defence for its first run, and any that is left for the others."""
    places = {}
    if by_run:
        for label, curve in firsts.items():
            place = _PLACE_OF.get(curve.rows[0]["defense"])
            if place is not None and place not in places.values():
                places[label] = place
    for label in firsts:
        if label not in places:
            places[label] = next((i for i in range(len(SERIES)) if i not in places.values()), len(places))
    return {label: places[label] for label in firsts}


def _columns(count):
    return count if count <= 3 else 2


def _figure(count, columns=None, height=2.9, sharex=False, sharey=True):
    """A figure 6.4 inches wide with `count` axes, each `height` high."""
    from matplotlib.figure import Figure
    columns = columns or _columns(count)
    lines = math.ceil(count / columns)
    height = height if lines == 1 else 0.85 * height
    figure = Figure(figsize=(6.4, height * lines + 0.5))
    axes = figure.subplots(lines, columns, squeeze=False, sharex=sharex, sharey=sharey).flatten()
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, list(axes[:count])


def _finish(figure, title, shared, handles):
    """The title with the settings that all rows share, and a legend below that hides no data."""
    words = ", ".join(text.replace(" ", "\xa0") for text in shared.values())     # no line ends within a setting
    lines = [line.replace("\xa0", " ") for line in textwrap.wrap(words, 100)]
    figure.suptitle("\n".join([title, *lines]), x=0.01, ha="left")
    if handles:
        longest = max(len(line) for handle in handles for line in handle.get_label().splitlines())
        columns = max(1, min(len(handles), 100 // (longest + 9)))
        figure.legend(handles=handles, loc="outside lower left", ncols=columns)
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.17 * math.ceil(len(handles) / columns))
    return figure


def _wrapped(text, width):
    return "\n".join(textwrap.wrap(text, width))
