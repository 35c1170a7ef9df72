"""The tables of a report, from the csv files of a result folder: our numbers, and beside them what was published. No torch."""
from dataclasses import dataclass, replace
from pathlib import Path

from pyro_advbnn.cli import text_tables
from pyro_advbnn.reporting import agreement, csv_tables, doubt_summaries, paper, run_descriptions, scrutiny_summaries
from pyro_advbnn.reporting.agreement import NONE
from pyro_advbnn.reporting.curves import (
    check,
    common,
    curves,
    defense_name,
    densities,
    fraction,
    labels,
    place,
    renewed_names,
    settings,
    span,
    transfer_groups,
)
from pyro_advbnn.system import files

_MOST_RADII = 7
_INTERVALS = "Accuracy in % with its 95 % Wilson interval"


@dataclass(frozen=True)
class Summary:
    """A table of texts. note: the settings, the source of the published numbers, and how agreement is computed."""

    name: str
    title: str
    columns: list
    rows: list
    note: str


def summaries(folder):
    """The summaries of all csv files in folder/evaluation that have rows, a list.   Raises InputError for a damaged one."""
    found = []
    for csv_name, makers in _MAKERS.items():
        rows = csv_tables.read(folder, csv_name)
        for row in rows:
            check(row)
        for maker in makers if rows else ():
            found += maker(rows, folder)
    return found


def write(folder):
    """Write folder/tables/<name>.md for each summary; the paths written, a list."""
    paths = []
    for summary in summaries(folder):
        path = Path(folder) / "tables" / f"{summary.name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as file:
            file.write(as_markdown(summary).encode())
        paths.append(path)
    return paths


def as_text(summary):
    """A summary as aligned text."""
    rows = [dict(zip(summary.columns, row, strict=True)) for row in summary.rows]
    table = text_tables.table(rows, {name: lambda row, name=name: row[name] for name in summary.columns})
    return "\n".join(filter(None, (summary.title, table, summary.note))) + "\n"


def as_markdown(summary):
    """A summary as Markdown: a heading, a table and the note."""
    lines = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in (summary.columns, *summary.rows)]
    lines.insert(1, "|" + " --- |" * len(summary.columns))
    return "\n\n".join(filter(None, (f"### {_escaped(summary.title)}", "\n".join(lines), _escaped(summary.note)))) + "\n"


def _escaped(text):
    for sign in ("\\", "|", "*", "<", "`", "]("):      # no bracket alone: intervals have them
        text = text.replace(sign, "\\" + sign)
    return text.replace("\n", " ")


def _table1(rows, _):
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    return [_table1_of([row for row in rows if row["dataset"] == dataset], dataset, f"-{dataset.replace(':', '-')}" * many)
            for many, dataset in zip([len(datasets) > 1] * len(datasets), datasets)]


def _table1_of(rows, dataset, suffix):
    radii, left_out = _radii(rows, dataset)
    lines, known = [], []
    for curve in curves(rows, "epsilon"):
        last, many = curve.rows[-1], _is_many(curve)
        name = _joined(curve.label, {name: text for name, text in curve.words.items() if name != "attack_samples"})
        cells = {row["epsilon"]: text_tables.percent(row, interval=True) for row in curve.rows}
        published = [_percent(paper.accuracy(dataset, last["defense"], radius, many)) for radius in radii]
        lines.append([name, "ours", str(last["attack_samples"] or NONE), *(cells.get(radius, NONE) for radius in radii)])
        known.append((defense_name(last), many, set(published) != {NONE}))
        lines += [[name, paper.accuracy_source(many), "many" if many else "1", *published]] if known[-1][2] else []
    note = (f"{left_out}{_shared(rows, 'epsilon')}. {_INTERVALS}; ε = 0: clean; {NONE}: not measured. "
            f"Published: {_where(dataset, known)}.")
    title = f"Table 1: accuracy (%) under white-box PGD on {paper.DATASET_NAMES.get(dataset, dataset)}"
    return Summary(f"table1{suffix}", title, ["defence", "numbers", "draws per gradient",
                                              *(f"ε = {radius:g}" for radius in radii)], lines, note)


def _where(dataset, known):
    """Where numbers for Table 1 were published, and for what none were; known: [(defence, many draws, whether there are)]."""
    if not paper.epsilons(dataset):
        return f"nothing on {dataset}"
    named = {name for name, _, found in known if found}
    without = dict.fromkeys(f"{name} with {'many draws' if many else 'one draw'}" if name in named else name
                            for name, many, found in known if not found)
    end = f"; without a number at these radii: {', '.join(without)}" if without else ""
    return f"{paper.TABLE_1} for one draw per gradient, {paper.MANY_DRAWS_TABLE} for many{end}"


def _is_many(curve):
    """Whether the attack of a curve averaged several draws in each gradient."""
    return (curve.rows[-1]["attack_samples"] or 1) > 1


def _radii(rows, dataset):
    """The radii of the columns, and a sentence where not all fit: those of the paper's Table 1, else evenly chosen ones."""
    measured, wanted = sorted({row["epsilon"] for row in rows}), list(paper.epsilons(dataset))
    if not set(wanted) & set(measured):
        count = min(len(measured), _MOST_RADII)
        wanted = [measured[round(i * (len(measured) - 1) / max(count - 1, 1))] for i in range(count)]
    left_out = len(set(measured) - set(wanted))
    return wanted, f"Without {left_out} more radii that were measured. " if left_out else ""


def _accuracy(rows, _):
    """Fig. 2 as a table, one line per point."""
    lines = [[curve.text, f"{row['epsilon']:g}", text_tables.percent(row, interval=True),
              _percent(paper.accuracy(row["dataset"], row["defense"], row["epsilon"], _is_many(curve)))]
             for curve in curves(rows, "epsilon") for row in curve.rows]
    note = (f"{_shared(rows, 'epsilon')}. {_INTERVALS}. Published: {paper.TABLE_1}, and for many draws per "
            f"gradient {paper.MANY_DRAWS_TABLE}; Fig. 2 itself states no numbers; {NONE}: none.")
    return [Summary("accuracy", "Accuracy under white-box PGD by radius (Fig. 2)",
                    ["curve", "ε", "ours", "published"], lines, note)]


def _runs(rows, folder):
    """Runs of any kind side by side, in the order in which they were measured: clean, and attacked with one and many draws."""
    radii = sorted({row["epsilon"] for row in rows})
    order = list(dict.fromkeys(row["run"] for row in rows))
    configs = run_descriptions.read(run_descriptions.run_folders(Path(folder)))
    peculiar = run_descriptions.peculiarities({name: configs[name] for name in order if name in configs})
    found, lines = curves(rows, "epsilon", names={name: name for name in order}), []
    for curve in sorted(found, key=lambda curve: order.index(curve.rows[0]["run"])):
        last, cells = curve.rows[-1], {row["epsilon"]: text_tables.percent(row, interval=True) for row in curve.rows}
        lines.append([curve.label, defense_name(last), peculiar.get(last["run"]) or NONE, str(last["attack_samples"] or NONE),
                      *(cells.get(radius, NONE) for radius in radii)])
    told = ("Unlike most: settings that most of these runs have otherwise" if len(peculiar) == len(order) else
            "What a run is: its config.json, which does not lie here for all")
    note = f"{_shared(rows, 'epsilon')}. {_INTERVALS}; ε = 0: clean; {NONE}: not measured. {told}."
    columns = ["run", "defence", "unlike most", "draws per gradient", *(f"ε = {radius:.4g}" for radius in radii)]
    return [Summary("runs", "Runs compared: accuracy (%) under white-box PGD", columns, lines, note)]


def _transfer(rows, _):
    names, renewed = labels(rows), renewed_names(rows)
    defenses = {row["run"]: row["defense"] for row in rows if row["run"] not in renewed}
    lines, agree = [], []
    for words, part in transfer_groups(rows):
        for row in part:
            published = paper.correlation(defenses.get(row["source"]), row["defense"])
            agree.append(agreement.check_rho(row["rho"], published))
            lines.append([
                _joined(names.get(row["source"], row["source"]), words), names[row["run"]], _percent(row["accuracy_clean"]),
                text_tables.percent(row, interval=True), _percent(row["accuracy_white_box"]),
                row["note"] or NONE if row["rho"] is None else f"{row['rho']:.2f}",
                f"≈ {span(published)}" if published else NONE, agree[-1]])
    note = (f"{_shared(rows)}. ρ = (Acc[B] − Acc[B|A]) / (Acc[B] − Acc[B|B]), Eq. (14); where the denominator's 95 % interval "
            f"holds 0, the drop stands instead. {_claim('transfer')} Agrees: within {agreement.NEAR:g} of what the paper states"
            f"{agreement.count_agreeing(agree)}.")
    return [Summary("transfer", "Transfer of attacks from source A to target B (Fig. 3)",
                    ["source A", "target B", "Acc[B]", "Acc[B|A]", "Acc[B|B]", "ρ", "paper", "agrees"], lines, note)]


def _wide(name, title, x, header, check, asks, *, across=()):
    """A maker of the table of one sweep: a line per curve, a column per x, then check(rows of the curve) -> (text, verdict)."""
    def make(rows, _):
        values = sorted({row[x] for row in rows}, key=place)
        lines, agree = [], []
        for curve in curves(rows, x, across=across):
            cells = [[_percent(row["accuracy"]) for row in curve.rows if row[x] == value] for value in values]
            text, verdict = check(curve.rows)
            agree.append(verdict)
            lines.append([curve.text or "all runs", *(", ".join(cell) or NONE for cell in cells), text, verdict])
        note = (f"{_shared(rows, x)}. Accuracy in %, by {header}. {_claim(name)} {asks} Changes are in points with a 95 % "
                f"interval, as if the two accuracies were of different images{agreement.count_agreeing(agree)}.")
        columns = [value if isinstance(value, str) else fraction(value) if x == "alpha" else f"{value:g}" for value in values]
        return [Summary(name, title, ["curve", *columns, "change", "agrees"], lines, note)]
    return make


def _layers(rows, folder):
    names, order = labels(rows), list(dict.fromkeys(row["layer"] for row in rows))
    lines = [[curve.text, row["layer"], f"{row['num_weights']:,}", *(_decimal(row[name]) for name in (
        "prior_log_std", "log_std_q05", "log_std_median", "log_std_q95", "log10_signal_to_noise_median"))]
        for curve in curves(rows, "layer") for row in sorted(curve.rows, key=lambda row: order.index(row["layer"]))]
    density = [row for row in csv_tables.read(folder, "density") if row["quantity"] == "log_std" and row["layer"] == "all"]
    modes = {curve.text: agreement.count_modes(densities(curve))
             for curve in curves(density, "left", names=labels(density) | names)}
    counts = "; ".join(f"{name}: {count}, {'yes' if count == 2 else 'no'}" for name, count in modes.items())
    note = (f"{_shared(rows)}. Log std: natural logarithm of the posterior's standard deviations; signal-to-noise: log10 of "
            f"|mean| / std. {_claim('layers')} Modes of ours over all weights, and whether that agrees: {counts or NONE} "
            f"(a mode: a maximum that stands 10 % of the highest above the valleys beside it, after averaging 5 bins).")
    return [Summary("layers", "The posterior by layer (Fig. 4)", ["run", "parameter", "weights", "prior log std", "log std 5 %",
                                                                  "median", "95 %", "signal-to-noise"], lines, note)]


def _pruning(rows, folder):
    """The sweep over fractions, and what pruning by std begins with where the rows of the layers show it."""
    make = _wide("pruning", "Accuracy after pruning", "fraction", "fraction of the weights pruned", agreement.check_pruning,
                 "Change: the largest fraction up to which no loss is seen, the 95 % interval of the change reaching 0. "
                 "Agrees, for clean images pruned by std: there is such a fraction above 0.")
    summary, = make(rows, folder)
    names, layers, told = labels(rows), csv_tables.read(folder, "layers"), []
    for run, weights in dict.fromkeys((row["run"], row["weights"]) for row in rows if row["prune_by"] == "std"):
        first = agreement.first_by_std([row for row in layers if (row["run"], row["weights"]) == (run, weights)])
        told += [f"{names[run]}: those of {', '.join(first)}"] if first else []
    end = f" Pruning by std begins with the parameters of widest prior, whose median std is the largest ({'; '.join(told)})."
    return [replace(summary, note=summary.note + end * bool(told))]


def _gradients(rows, _):
    lines, agree = [], []
    for curve in curves(rows, "split"):
        by_split = {row["split"]: row for row in curve.rows}
        train, test = by_split.get("train"), by_split.get("test")
        both = train and test
        ratio = f"{test['l1_norm'] / train['l1_norm']:.2f}" if both and train["l1_norm"] else NONE
        verdict = NONE
        if both and curve.rows[0]["defense"] == "adv":
            verdict = agreement.check_gradients(train, test)
        agree.append(verdict)
        lines.append([curve.text, *(_norm(by_split.get(split)) for split in ("train", "test")), ratio, verdict])
    note = (f"{_shared(rows, 'split')}. Mean l1 norm of the gradient of the loss by the image, with its 95 % interval. "
            f"{_claim('gradients')} Agrees, for adversarial training: that of test is larger, beyond the 95 % interval "
            f"of the difference{agreement.count_agreeing(agree)}.")
    return [Summary("gradients", "Input gradients on training and test images (Eq. 11 to 13)",
                    ["run", "train", "test", "test / train", "agrees"], lines, note)]


def _norm(row):
    return f"{row['l1_norm']:.4g} [{row['l1_norm_low']:.4g}, {row['l1_norm_high']:.4g}]" if row else NONE


def _joined(label, words):
    return ", ".join([label, *words.values()])


def _shared(rows, x=None):
    """The settings of all rows, and what a network is, as a sentence without its full stop."""
    networks = sorted({settings(row)["network"] for row in rows})
    return ", ".join([*common(rows, x).values(), f"network {' and '.join(networks)}"])


def _claim(name):
    claim = paper.CLAIMS[name]
    return f"The paper ({claim.source}): {claim.text}."


def _percent(value):
    return NONE if value is None else f"{100 * value:.1f}"


def _decimal(value):
    return NONE if value is None else f"{value:.2f}"


_SAME = "Agrees: the 95 % interval of the change holds 0."
_RUNS = ("run", "checkpoint", "weights")
_MAKERS = {
    "accuracy": (_table1, _accuracy),
    "runs": (_runs,),
    "transfer": (_transfer,),
    "ensemble": (_wide("ensemble", "Accuracy by draws per prediction (Fig. 5, left)", "num_samples", "draws per prediction",
                       agreement.check_ensemble,
                       f"Change: from the fewest draws in that range to the most measured. {_SAME}"),),
    "steps": (_wide("steps", "Accuracy by PGD steps (Fig. 5, right)", "num_steps", "PGD steps", agreement.check_steps,
                    f"Change: from the fewest steps >= {paper.ENOUGH_STEPS} to the most measured. {_SAME}"),),
    "layers": (_layers,),
    "pruning": (_pruning,),
    "alpha": (_wide("alpha", "Accuracy by the factor α of the KL", "alpha", "alpha", agreement.check_alpha,
                    "Change: from the largest alpha to the smallest above 0. Agrees: that of the clean accuracy, with its "
                    "interval, lies above 0.",
                    across=(*_RUNS, "alpha")),),
    "prior_std": (_wide("prior_std", "Accuracy by the prior's standard deviation", "prior_std", "prior std",
                        agreement.check_prior_std,
                        "Change: from the lowest accuracy to the highest, its interval for all pairs at once (Bonferroni). "
                        f"{_SAME}",
                        across=(*_RUNS, "prior_std")),),
    "gradients": (_gradients,),
    "uncertainty": (lambda rows, _: [Summary(*doubt_summaries.uncertainty(rows))],),
    "detection": (lambda rows, _: [Summary(*doubt_summaries.detection(rows))],),
    "robust": (lambda rows, _: [Summary(*scrutiny_summaries.robust(rows))],),
    "checks": (lambda rows, _: [Summary(*scrutiny_summaries.checks(rows))],),
}
