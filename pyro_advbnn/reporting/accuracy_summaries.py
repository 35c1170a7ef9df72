"""Tables of accuracy against the radius of the attack: Table 1, Fig. 2, and runs of any kind side by side."""
from pyro_advbnn.cli.text_tables import NONE, share, with_interval
from pyro_advbnn.reporting import paper, run_descriptions
from pyro_advbnn.reporting.curves import curves
from pyro_advbnn.reporting.paper import dataset_name, defense_name
from pyro_advbnn.reporting.summary import INTERVALS, Summary, shared

_MOST_RADII = 7


def table1(rows, _):
    """Table 1, one for each data set: our accuracies, and below them those that were published."""
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    return [_table1_of([row for row in rows if row["dataset"] == dataset], dataset,
                       f"-{dataset.replace(':', '-')}" if dataset != datasets[0] else "") for dataset in datasets]


def _table1_of(rows, dataset, suffix):
    radii, left_out = _radii(rows, dataset)
    lines, known = [], []
    for curve in curves(rows, "epsilon"):
        last, many = curve.rows[-1], _is_many(curve)
        words = [text for name, text in curve.words.items() if name != "attack_samples"]
        name = ", ".join([curve.label, *words])
        published = [share(paper.accuracy(dataset, last["defense"], radius, many)) for radius in radii]
        lines.append([name, "ours", str(last["attack_samples"] or NONE), *_cells(curve, radii)])
        known.append((defense_name(last), many, set(published) != {NONE}))
        if known[-1][2]:
            lines.append([name, paper.MANY_DRAWS_TABLE if many else paper.TABLE_1, "many" if many else "1", *published])
    note = (f"{left_out}{shared(rows, 'epsilon')}. {INTERVALS}; ε = 0: clean; {NONE}: not measured. "
            f"Published: {_where(dataset, known)}.")
    return Summary(f"table1{suffix}", f"Table 1: accuracy (%) under white-box PGD on {dataset_name(rows[0])}",
                   ["defence", "numbers", "draws per gradient", *(f"ε = {radius:g}" for radius in radii)], lines, note)


def _radii(rows, dataset):
    """The radii of the columns, and a sentence where not all fit: those of the paper's Table 1, else evenly chosen ones."""
    measured, wanted = sorted({row["epsilon"] for row in rows}), list(paper.epsilons(dataset))
    if not set(wanted) & set(measured) - {0.0}:
        count = min(len(measured), _MOST_RADII)
        wanted = [measured[round(i * (len(measured) - 1) / max(count - 1, 1))] for i in range(count)]
    left_out = len(set(measured) - set(wanted))
    return wanted, f"Not shown: {left_out} of the measured radii. " if left_out else ""


def _is_many(curve):
    """Whether the attack of a curve averaged several draws in each gradient."""
    return (curve.rows[-1]["attack_samples"] or 1) > 1


def _cells(curve, radii):
    known = {row["epsilon"]: with_interval(row) for row in curve.rows}
    return [known.get(radius, NONE) for radius in radii]


def _where(dataset, known):
    """Where numbers for Table 1 were published, and for what none were; known: [(defence, many draws, whether there are)]."""
    if not paper.epsilons(dataset):
        return f"nothing on {dataset}"
    named = {name for name, _, found in known if found}
    without = dict.fromkeys(f"{name} with {'many draws' if many else 'one draw'}" if name in named else name
                            for name, many, found in known if not found)
    end = f"; without a number at these radii: {', '.join(without)}" if without else ""
    return f"{paper.TABLE_1} for one draw per gradient, {paper.MANY_DRAWS_TABLE} for many{end}"


def accuracy(rows, _):
    """Fig. 2 as a table, one line per point."""
    lines = [[curve.text, f"{row['epsilon']:g}", with_interval(row),
              share(paper.accuracy(row["dataset"], row["defense"], row["epsilon"], _is_many(curve)))]
             for curve in curves(rows, "epsilon") for row in curve.rows]
    note = (f"{shared(rows, 'epsilon')}. {INTERVALS}. Published: {paper.TABLE_1}, and for many draws per "
            f"gradient {paper.MANY_DRAWS_TABLE}; Fig. 2 itself states no numbers; {NONE}: none.")
    return [Summary("accuracy", "Accuracy under white-box PGD by radius (Fig. 2)",
                    ["curve", "ε", "ours", "published"], lines, note)]


def runs(rows, folder):
    """Runs of any kind side by side, in the order in which they were measured: clean, and attacked with one and many draws."""
    radii = sorted({row["epsilon"] for row in rows})
    order = list(dict.fromkeys(row["run"] for row in rows))
    configs = run_descriptions.read(run_descriptions.run_folders(folder))
    peculiar = run_descriptions.peculiarities({name: configs[name] for name in order if name in configs})
    found, lines = curves(rows, "epsilon", names={name: name for name in order}), []
    for curve in sorted(found, key=lambda curve: order.index(curve.rows[0]["run"])):
        last = curve.rows[-1]
        words = [text for name, text in curve.words.items() if name not in ("attack_samples", "alpha", "prior_std")]
        lines.append([", ".join([curve.label, *words]), defense_name(last), peculiar.get(last["run"]) or NONE,
                      str(last["attack_samples"] or NONE), *_cells(curve, radii)])
    told = ("Unlike most: settings that most of these runs have otherwise" if len(peculiar) == len(order) else
            "What a run is: its config.json, which does not lie here for all")
    note = f"{shared(rows, 'epsilon')}. {INTERVALS}; ε = 0: clean; {NONE}: not measured. {told}."
    columns = ["run", "defence", "unlike most", "draws per gradient", *(f"ε = {radius:.4g}" for radius in radii)]
    return [Summary("runs", "Runs compared: accuracy (%) under white-box PGD", columns, lines, note)]
