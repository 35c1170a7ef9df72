"""How figures look: ink, paper, a colour and a marker for each run, a line style for each setting, the legend below.

Ink on paper; a dark page turns the light of the whole drawing around, not its hues.
"""
import itertools
import math
import textwrap

INK, PAPER, GREY = "#1b1b1b", "#ffffff", "#8a8a8a"
SERIES = (("#d55e00", "o"), ("#0072b2", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#e69f00", "v"), ("#56b4e9", "P"),
          ("#d55e00", "X"), ("#0072b2", "<"), ("#009e73", ">"), ("#cc79a7", "p"), ("#e69f00", "h"), ("#56b4e9", "*"))
LINES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)))
_PLACE_OF = {"advbnn": 0, "adv": 1, "rse": 2, "none": 3, "bnn": 4, "advrse": 5}    # one colour per defence in all figures
STYLE = {
    "svg.fonttype": "none", "font.size": 8, "axes.titlesize": 8, "figure.titlesize": 8, "axes.labelsize": 8,
    "legend.fontsize": 8, "figure.facecolor": PAPER, "savefig.facecolor": PAPER, "axes.facecolor": PAPER,
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "axes.grid": True, "axes.axisbelow": True, "grid.color": GREY, "grid.alpha": 0.25,
    "grid.linewidth": 0.5, "lines.linewidth": 1.3, "lines.markersize": 4, "legend.frameon": False,
    "legend.handlelength": 2.6, "figure.constrained_layout.use": True,
}


class Look:
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
        self.most = max(len(curve.rows) for curve in found)
        joined = {tuple(curve.words.values()) for curve in found if not self._is_sparse(curve)}
        self.sparse = set(self.variants) - joined        # the settings of which every curve is points

    def of(self, curve):
        """The line of a curve, as arguments of `plot`."""
        place, words = self.places[curve.label if self.by_run else curve.text], set(curve.words.values())
        variant = next(i for i, known in enumerate(self.variants) if words <= set(known))
        return self._style(place, variant if self.marked and self.by_run else place)

    def _style(self, place, variant):
        color, marker = SERIES[place % len(SERIES)]
        return {"color": color, "linestyle": LINES[variant % len(LINES)], "marker": marker if self.marked else "none"}

    def lines(self, axes, found, x, position=lambda value: value):
        """Draw accuracies in percent, their intervals as bands; a single one, and runs that share an x, are points."""
        for curve in found:
            places = [position(row[x]) for row in curve.rows]
            values, low, high = ([100 * row[name] for row in curve.rows]
                                 for name in ("accuracy", "accuracy_low", "accuracy_high"))
            style = self.of(curve)
            if len(places) == 1 or len(set(places)) < len(places) or self._is_sparse(curve):
                axes.errorbar(places, values, error_bars(curve.rows, "accuracy", 100), elinewidth=0.8,
                              **style | {"linestyle": "none", "markersize": 6})
                continue
            axes.plot(places, values, **style)
            axes.fill_between(places, low, high, color=style["color"], alpha=0.13, linewidth=0)
        axes.set_ylim(-2, 102)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("accuracy (%)")

    def _is_sparse(self, curve):
        """Whether others have so many more points that a line through these would tell what was not measured."""
        return self.by_run and len(curve.rows) <= self.most / 2

    def handles(self):
        """The entries of the legend: runs, then what the line styles mean."""
        from matplotlib.lines import Line2D
        two = self.by_run and self.marked
        entries = [Line2D([], [], label=wrap(label, 60), **self._style(place, 0 if two else place))
                   for label, place in self.places.items()]
        for i, words in enumerate(self.variants if two and len(self.variants) > 1 else ()):
            sparse = words in self.sparse
            entries.append(Line2D([], [], color=GREY, linestyle="none" if sparse else LINES[i % len(LINES)], markersize=6,
                                  marker="o" if sparse else "none", label=wrap(", ".join(words), 60)))
        return [entry for entry in entries if entry.get_label()]


def _places(firsts, by_run):
    """{label: index of SERIES}: that of the defence for its first run, and any that is left for the others."""
    places = {}
    for label, curve in firsts.items():
        place = _PLACE_OF.get(curve.rows[0]["defense"]) if by_run else None
        if place is not None and place not in places.values():
            places[label] = place
    for label in firsts:
        if label not in places:
            places[label] = next((i for i in range(len(SERIES)) if i not in places.values()), len(places))
    return {label: places[label] for label in firsts}


def columns_of(count):
    return count if count <= 3 else 2


def start_figure(count, columns=None, height=2.9, sharex=False, sharey=True):
    """A figure 6.4 inches wide with `count` axes, each `height` high."""
    from matplotlib.figure import Figure
    columns = columns or columns_of(count)
    lines = math.ceil(count / columns)
    height = height if lines == 1 else 0.85 * height
    figure = Figure(figsize=(6.4, height * lines + 0.5))
    axes = figure.subplots(lines, columns, squeeze=False, sharex=sharex, sharey=sharey).flatten()
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, list(axes[:count])


def finish_figure(figure, title, shared, handles):
    """The title with the settings that all rows share, and a legend below that hides no data."""
    words = ", ".join(text.replace(" ", "\xa0") for text in shared.values())     # no line ends within a setting
    lines = [line.replace("\xa0", " ") for line in textwrap.wrap(words, 100)]
    figure.suptitle("\n".join([title, *lines]), x=0.01, ha="left")
    if handles:
        texts = [handle.get_label().splitlines() for handle in handles]
        columns = max(1, min(len(handles), 100 // (max(map(len, itertools.chain(*texts))) + 9)))
        figure.legend(handles=handles, loc="outside lower left", ncols=columns)
        width, height = figure.get_size_inches()
        entry = 0.04 + 0.13 * max(map(len, texts))       # inches, by its lines
        figure.set_size_inches(width, height + entry * math.ceil(len(handles) / columns))
    return figure


def error_bars(rows, name, scale=1):
    """[distances down, distances up] of the intervals of a result."""
    pairs = [(row[name] - row[f"{name}_low"], row[f"{name}_high"] - row[name]) for row in rows]
    return [[scale * max(distance, 0.0) for distance in side] for side in zip(*pairs, strict=True)]    # rounding may cross 0


def wrap(text, width):
    return "\n".join(textwrap.wrap(text, width))
