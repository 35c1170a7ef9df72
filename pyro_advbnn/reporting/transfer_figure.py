"""The heat map of transfer attacks (Fig. 3): a cell for each pair of runs, in the colour of its rho."""
from pyro_advbnn.reporting import paper
from pyro_advbnn.reporting.curves import common, labels, span, transfer_groups
from pyro_advbnn.reporting.figure_style import finish_figure, start_figure, wrap


def transfer(rows):
    """Fig. 3: heat maps of rho, rows = source, columns = target, one for each group of settings."""
    maps = transfer_groups(rows)
    names = labels(rows)
    count = max(len({row["run"] for row in part}) for _, part in maps)
    figure, axes = start_figure(len(maps), columns=1, height=0.9 + 0.5 * count, sharey=False)
    for ax, (words, part) in zip(axes, maps, strict=True):
        _heat_map(ax, part, names)
        ax.set_title(", ".join(words.values()), loc="left")
    return finish_figure(figure, "Transfer of attacks: ρ = (Acc[B] − Acc[B|A]) / (Acc[B] − Acc[B|B])", common(rows), [])


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
    axes.set_xticks([j + 0.5 for j in range(len(targets))], [wrap(names[run], width) for run in targets])
    axes.set_yticks([i + 0.5 for i in range(len(sources))], [wrap(names.get(run, run), 24) for run in sources])
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
        text = wrap(row["note"] or "no ρ", 12)
        axes.text(x + 0.5, y + 0.5, text, color=color, ha="center", va="center", fontsize=6)
        return
    axes.text(x + 0.5, y + (0.38 if published else 0.5), f"{rho:.2f}", color=color, ha="center", va="center")
    if published:
        axes.text(x + 0.5, y + 0.72, f"paper ≈ {span(published)}", color=color, ha="center", va="center", fontsize=6)
