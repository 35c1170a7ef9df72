"""Transfer attacks (Fig. 3): their rows as maps of pairs that were measured alike, and heat maps in the colour of rho."""
from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.cli.text_tables import counted
from pyro_advbnn.evaluation.intervals import transfer_rate
from pyro_advbnn.reporting import paper
from pyro_advbnn.reporting.curves import common, is_told, labels, settings, several_checkpoints
from pyro_advbnn.reporting.figure_style import finish_figure, start_figure, wrap

_TOLD = ("dataset", "epsilon", "num_steps", "step_size", "num_examples", "images", "seed",
         "num_samples")
DARK = 0.684                                             # from this rho on a light text has the higher contrast (WCAG 2)


def transfer(rows):
    """Fig. 3: heat maps of rho, rows = source, columns = target, one for each group of settings."""
    maps = transfer_maps(rows)
    names = labels(rows)
    count = max(len({row["run"] for row in part}) for _, part in maps)
    figure, axes = start_figure(len(maps), columns=1, height=0.9 + 0.5 * count, sharey=False)
    for ax, (words, part) in zip(axes, maps, strict=True):
        _heat_map(ax, part, names)
        ax.set_title(", ".join(words.values()), loc="left")
    return finish_figure(figure, "Transfer of attacks: ρ = (Acc[B] − Acc[B|A]) / (Acc[B] − Acc[B|B])", common(rows), [])


def _heat_map(axes, rows, names):
    given, known = {row["source"] for row in rows}, list(names)
    sources = [*sorted(given - set(known)), *(run for run in known if run in given)]
    targets = [run for run in known if any(row["run"] == run for row in rows)]
    defenses = {row["run"]: row["defense"] for row in rows}
    cells = {(row["source"], row["run"]): row for row in rows}
    for i, source in enumerate(sources):
        for j, target in enumerate(targets):
            _cell(axes, j, i, cells.get((source, target)), paper.correlation(defenses.get(source), defenses[target]))
    axes.set(xlim=(0, len(targets)), ylim=(len(sources), 0), xlabel="target B", ylabel="source A")
    width = max(8, 58 // len(targets))
    axes.set_xticks([j + 0.5 for j in range(len(targets))], [wrap(names[run], width) for run in targets])
    axes.set_yticks([i + 0.5 for i in range(len(sources))], [wrap(names.get(run, run), 24) for run in sources])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _cell(axes, x, y, row, published):
    """A square in the colour of rho, in it rho and what the paper states, or why there is none; grey where there is no row."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle
    rho, colors = row and row["rho"], LinearSegmentedColormap.from_list("rho", ["#eef4fa", "#9ec5e3", "#3b7fb6", "#0b3c68"])
    shade = "#dddddd" if rho is None else colors(min(max(float(rho), 0.0), 1.0))
    style = {"color": "#0a0a0a" if rho is None or rho < DARK else "#fdfdfd", "ha": "center", "va": "center"}
    axes.add_patch(Rectangle((x + 0.02, y + 0.02), 0.96, 0.96, facecolor=shade, edgecolor="none"))
    if rho is not None:
        axes.text(x + 0.5, y + (0.38 if published else 0.5), f"{rho:.2f}", **style)
        if published:
            axes.text(x + 0.5, y + 0.72, f"paper ≈ {paper.span(published)}", fontsize=6, **style)
    elif row:
        axes.text(x + 0.5, y + 0.5, wrap(row["note"] or "no ρ", 12), fontsize=6, **style)


def transfer_maps(rows):
    """[({setting: text}, rows)]: each pair once in a map, the newest row; words: the settings in which the maps differ.

    The draws count where there is something to draw: per gradient of the source, per prediction of the target. A pair of
    deterministic networks stands in every map that has its other settings, and a run with one checkpoint in those of each
    checkpoint of the others.
    """
    defenses, told, maps = {row["run"]: row["defense"] for row in rows}, several_checkpoints(rows), {}
    for key, row in sorted(((_key(row, defenses, told), row) for row in rows), key=lambda pair: -len(pair[0])):
        for home in [home for home in maps if key <= home] or [key]:
            maps.setdefault(home, []).append(row)
    alike = {name for name, _ in frozenset.intersection(*maps)}
    if is_told(list(map(dict, maps)), "images"):
        alike.add("images")
    found = [({name: text for name, text in sorted(key) if name not in alike},
              {(row["source"], row["run"]): row for row in sorted(part, key=rows.index)})
             for key, part in maps.items()]
    return sorted(((words, with_rates(pairs.values())) for words, pairs in found), key=lambda pair: list(pair[0].items()))


def with_rates(rows):
    """The rows of one map, each with Acc[B|B] by the map's own attack on B and with rho."""
    white_box = {row["run"]: row["accuracy"] for row in rows if row["source"] == row["run"]}
    complete = []
    for row in rows:
        own = white_box.get(row["run"], row["accuracy_white_box"])
        accuracies = row["accuracy_clean"], row["accuracy"], own
        rate, note = (None, None) if own is None else transfer_rate(*accuracies, row["num_examples"])
        complete.append(row | {"accuracy_white_box": own, "rho": rate, "note": note or None})
    return complete


def _key(row, defenses, told):
    """What keeps pairs in different maps, a set of (setting, text)."""
    key = {name: text for name, text in settings(row).items() if name in _TOLD}
    checkpoints = {told[path] for path in (row["source_checkpoint"], row["checkpoint"]) if path in told}
    if checkpoints:
        key["checkpoint"] = " and ".join(sorted(checkpoints))
    source = DEFENSES.get(defenses.get(row["source"]))
    if (source is None or source.random) and row["attack_samples"] is not None:
        key["attack_samples"] = counted(row["attack_samples"], "draw", " per gradient")    # of the source, not the target
    return frozenset(key.items())
