"""The tables of a report, from the csv files of a result folder: our numbers, and beside them what was published. No torch."""
import math
from dataclasses import dataclass
from pathlib import Path

from pyro_advbnn import paper, records, tables
from pyro_advbnn.plots import common, curves, densities, fraction, labels, place, settings, span, transfer_groups

NONE = "-"                                               # nothing measured, or nothing published
_NEAR = 0.05                                             # of rho: the paper gives its values as approximate
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
        rows = tables.read(folder, csv_name)
        for maker in makers if rows else ():
            found += maker(rows, folder)
    return found


def write(folder):
    """Write folder/tables/<name>.md for each summary; the paths written, a list."""
    paths = []
    for summary in summaries(folder):
        path = Path(folder) / "tables" / f"{summary.name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        with records.replacing(path) as file:
            file.write(as_markdown(summary).encode())
        paths.append(path)
    return paths


def as_text(summary):
    """A summary as aligned text."""
    rows = [dict(zip(summary.columns, row, strict=True)) for row in summary.rows]
    table = records.table(rows, {name: lambda row, name=name: row[name] for name in summary.columns})
    return "\n".join(filter(None, (summary.title, table, summary.note))) + "\n"


def as_markdown(summary):
    """A summary as Markdown: a heading, a table and the note."""
    lines = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in (summary.columns, *summary.rows)]
    lines.insert(1, "|" + " --- |" * len(summary.columns))
    return "\n\n".join(filter(None, (f"### {_escaped(summary.title)}", "\n".join(lines), _escaped(summary.note)))) + "\n"


def _escaped(text):
    for sign in "\\|*<":
        text = text.replace(sign, "\\" + sign)
    return text.replace("\n", " ")


def difference(before, after):
    """(after - before, low, high): the difference of two rows' accuracies with its 95 % interval, in points of percent.

    From the Wilson intervals of both (Newcombe 1998, method 10), as if of different images. They are of the same images, so
    that the difference varies less: the interval is too wide rather than too narrow. It says nothing about training anew.
    """
    a, b = [(row["accuracy"], row["accuracy_low"], row["accuracy_high"]) for row in (after, before)]
    change = a[0] - b[0]
    low, high = change - math.hypot(a[0] - a[1], b[2] - b[0]), change + math.hypot(a[2] - a[0], b[0] - b[1])
    return 100 * change, 100 * low, 100 * high


def _table1(rows, _):
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    return [_table1_of([row for row in rows if row["dataset"] == dataset], dataset, f"-{dataset.replace(':', '-')}" * many)
            for many, dataset in zip([len(datasets) > 1] * len(datasets), datasets)]


def _table1_of(rows, dataset, suffix):
    radii, left_out = _radii(rows, dataset)
    lines = []
    for curve in curves(rows, "epsilon"):
        last, many = curve.rows[-1], _is_many(curve)
        name = _joined(curve.label, {name: text for name, text in curve.words.items() if name != "attack_samples"})
        cells = {row["epsilon"]: records.percent(row, interval=True) for row in curve.rows}
        published = [_percent(paper.accuracy(dataset, last["defense"], radius, many)) for radius in radii]
        lines.append([name, "ours", str(last["attack_samples"] or NONE), *(cells.get(radius, NONE) for radius in radii)])
        lines.append([name, paper.accuracy_source(many), "many" if many else "1", *published])
    where = (f"{paper.TABLE_1} for one draw per gradient, {paper.MANY_DRAWS_TABLE} for many; {NONE}: none"
             if paper.epsilons(dataset) else f"nothing on {dataset}")
    note = f"{left_out}{_shared(rows, 'epsilon')}. {_INTERVALS}; ε = 0: clean. Published: {where}."
    title = f"Table 1: accuracy (%) under white-box PGD on {paper.DATASET_NAMES.get(dataset, dataset)}"
    return Summary(f"table1{suffix}", title, ["defence", "numbers", "draws per gradient",
                                              *(f"ε = {radius:g}" for radius in radii)], lines, note)


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
    lines = [[curve.text, f"{row['epsilon']:g}", records.percent(row, interval=True),
              _percent(paper.accuracy(row["dataset"], row["defense"], row["epsilon"], _is_many(curve)))]
             for curve in curves(rows, "epsilon") for row in curve.rows]
    note = (f"{_shared(rows, 'epsilon')}. {_INTERVALS}. Published: {paper.TABLE_1}, and for many draws per "
            f"gradient {paper.MANY_DRAWS_TABLE}; Fig. 2 itself states no numbers; {NONE}: none.")
    return [Summary("accuracy", "Accuracy under white-box PGD by radius (Fig. 2)",
                    ["curve", "ε", "ours", "published"], lines, note)]


def _transfer(rows, _):
    names, defenses = labels(rows), {row["run"]: row["defense"] for row in rows}
    lines, agree = [], []
    for words, part in transfer_groups(rows):
        for row in part:
            published = paper.correlation(defenses.get(row["source"]), row["defense"])
            agree.append(_within(row["rho"], published))
            lines.append([
                _joined(names.get(row["source"], row["source"]), words), names[row["run"]], _percent(row["accuracy_clean"]),
                records.percent(row, interval=True), _percent(row["accuracy_white_box"]),
                row["note"] or NONE if row["rho"] is None else f"{row['rho']:.2f}",
                f"≈ {span(published)}" if published else NONE, agree[-1]])
    note = (f"{_shared(rows)}. ρ = (Acc[B] − Acc[B|A]) / (Acc[B] − Acc[B|B]), Eq. (14); where the denominator's 95 % interval "
            f"holds 0, the drop stands instead. {_claim('transfer')} Agrees: within {_NEAR:g} of what the paper states"
            f"{_count(agree)}.")
    return [Summary("transfer", "Transfer of attacks from source A to target B (Fig. 3)",
                    ["source A", "target B", "Acc[B]", "Acc[B|A]", "Acc[B|B]", "ρ", "paper", "agrees"], lines, note)]


def _within(rho, published):
    if rho is None or published is None:
        return NONE
    low, high = published
    if rho < low - _NEAR:
        return "no, lower"
    return "no, higher" if rho > high + _NEAR else "yes"


def _wide(name, title, x, header, check, asks, *, across=()):
    """A maker of the table of one sweep: a line per curve, a column per x, then check(rows of the curve) -> (text, verdict)."""
    def make(rows, _):
        values = sorted({row[x] for row in rows}, key=place)
        lines, verdicts = [], []
        for curve in curves(rows, x, across=across):
            cells = [[_percent(row["accuracy"]) for row in curve.rows if row[x] == value] for value in values]
            text, verdict = check(curve.rows)
            verdicts.append(verdict)
            lines.append([curve.text or "all runs", *(", ".join(cell) or NONE for cell in cells), text, verdict])
        note = (f"{_shared(rows, x)}. Accuracy in %, by {header}. {_claim(name)} {asks} Changes are in points with a 95 % "
                f"interval, as if the two accuracies were of different images{_count(verdicts)}.")
        columns = [value if isinstance(value, str) else fraction(value) if x == "alpha" else f"{value:g}" for value in values]
        return [Summary(name, title, ["curve", *columns, "change", "agrees"], lines, note)]
    return make


def _no_change(first, last, x):
    """The change between two rows, and whether it can be none."""
    text, low, high = _change(first, last, f"{first[x]:g}", f"{last[x]:g}")
    return text, "yes" if low <= 0 <= high else "no, lower" if high < 0 else "no, higher"


def _change(first, last, start, end):
    """(text, low, high) of the difference of two rows."""
    change, low, high = difference(first, last)
    texts = [f"{value:+.1f}" if abs(value) >= 0.05 else "0.0" for value in (change, low, high)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}], {start} to {end}", low, high


def _check_ensemble(rows):
    low, high = paper.ENOUGH_DRAWS
    enough = [row for row in rows if low <= row["num_samples"] <= high]
    if not enough or enough[0] is rows[-1]:
        return NONE, NONE
    return _no_change(enough[0], rows[-1], "num_samples")


def _check_steps(rows):
    enough = [row for row in rows if row["num_steps"] >= paper.ENOUGH_STEPS]
    return _no_change(enough[0], rows[-1], "num_steps") if len(enough) > 1 else (NONE, NONE)


def _check_pruning(rows):
    """The largest fraction up to which no accuracy is lost that the intervals could tell; agreement of the clean one."""
    if rows[0]["fraction"] != 0 or len(rows) == 1:
        return NONE, NONE
    kept = rows[0]
    for row in rows[1:]:
        if difference(rows[0], row)[2] < 0:
            break
        kept = row
    text = f"no loss seen up to {kept['fraction']:g}"
    return text, NONE if rows[0]["epsilon"] else "yes" if kept["fraction"] > 0 else "no"


def _check_alpha(rows):
    """Whether the clean accuracy of the smallest alpha > 0 is above that of the largest."""
    rows = [row for row in rows if row["alpha"]]
    if len({row["alpha"] for row in rows}) < 2:
        return NONE, NONE
    text, low, high = _change(rows[-1], rows[0], fraction(rows[-1]["alpha"]), fraction(rows[0]["alpha"]))
    if rows[0]["epsilon"]:
        return text, NONE
    return text, "yes" if low > 0 else "no" if high < 0 else "undecided"


def _check_prior_std(rows):
    """Whether the highest accuracy can be told from the lowest."""
    if len({row["prior_std"] for row in rows}) < 2:
        return NONE, NONE
    first, last = sorted(rows, key=lambda row: row["accuracy"])[::len(rows) - 1]
    text, low, _ = _change(first, last, first["prior_std"], last["prior_std"])
    return text, "yes" if low <= 0 else "no"


def _layers(rows, folder):
    names, order = labels(rows), list(dict.fromkeys(row["layer"] for row in rows))
    lines = [[curve.text, row["layer"], f"{row['num_weights']:,}", *(_decimal(row[name]) for name in (
        "prior_log_std", "log_std_q05", "log_std_median", "log_std_q95", "log10_signal_to_noise_median"))]
        for curve in curves(rows, "layer") for row in sorted(curve.rows, key=lambda row: order.index(row["layer"]))]
    density = [row for row in tables.read(folder, "density") if row["quantity"] == "log_std" and row["layer"] == "all"]
    modes = {curve.text: count_modes(densities(curve)) for curve in curves(density, "left", names=labels(density) | names)}
    counts = "; ".join(f"{name}: {count}, {'yes' if count == 2 else 'no'}" for name, count in modes.items())
    note = (f"{_shared(rows)}. Log std: natural logarithm of the posterior's standard deviations; signal-to-noise: log10 of "
            f"|mean| / std. {_claim('layers')} Modes of ours over all weights, and whether that agrees: {counts or NONE} "
            f"(a mode: a maximum that stands 10 % of the highest above the valleys beside it, after averaging 5 bins).")
    return [Summary("layers", "The posterior by layer (Fig. 4)", ["run", "parameter", "weights", "prior log std", "log std 5 %",
                                                                  "median", "95 %", "signal-to-noise"], lines, note)]


def count_modes(heights, *, prominence=0.1, window=5):
    """The number of modes of a histogram: maxima whose prominence is the given share of the highest, once smoothed."""
    half = window // 2
    padded = [0.0] * half + list(heights) + [0.0] * half
    smooth = [sum(padded[i:i + window]) / window for i in range(len(heights))]
    least, count, peak, valley = prominence * max(smooth), 0, 0.0, 0.0
    rising = True
    for height in [*smooth, 0.0]:
        if rising:
            peak = max(peak, height)
            if height <= peak - least:
                rising, valley, count = False, height, count + 1
        else:
            valley = min(valley, height)
            if height >= valley + least:
                rising, peak = True, height
    return count


def _gradients(rows, _):
    lines, verdicts = [], []
    for curve in curves(rows, "split"):
        by_split = {row["split"]: row for row in curve.rows}
        train, test = by_split.get("train"), by_split.get("test")
        both = train and test
        ratio = f"{test['l1_norm'] / train['l1_norm']:.2f}" if both and train["l1_norm"] else NONE
        verdict = NONE
        if both and curve.rows[0]["defense"] == "adv":
            verdict = "yes" if test["l1_norm_low"] > train["l1_norm_high"] else "no"
        verdicts.append(verdict)
        lines.append([curve.text, *(_norm(by_split.get(split)) for split in ("train", "test")), ratio, verdict])
    note = (f"{_shared(rows, 'split')}. Mean l1 norm of the gradient of the loss by the image, with its 95 % interval. "
            f"{_claim('gradients')} Agrees, for adversarial training: the interval of test lies above that of train"
            f"{_count(verdicts)}.")
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


def _count(verdicts):
    """How many of the lines agree, as the end of a sentence."""
    decided = [verdict for verdict in verdicts if verdict != NONE]
    agreeing = sum(verdict == "yes" for verdict in decided)
    return f": {agreeing} of {len(decided)} agree" if decided else ": nothing to compare here"


def _percent(value):
    return NONE if value is None else f"{100 * value:.1f}"


def _decimal(value):
    return NONE if value is None else f"{value:.2f}"


_SAME = "Agrees: the 95 % interval of the change holds 0."
_RUNS = ("run", "checkpoint", "weights")
_MAKERS = {
    "accuracy": (_table1, _accuracy),
    "transfer": (_transfer,),
    "ensemble": (_wide("ensemble", "Accuracy by draws per prediction (Fig. 5, left)", "num_samples", "draws per prediction",
                       _check_ensemble, f"Change: from the fewest draws in that range to the most measured. {_SAME}"),),
    "steps": (_wide("steps", "Accuracy by PGD steps (Fig. 5, right)", "num_steps", "PGD steps", _check_steps,
                    f"Change: from the fewest steps >= {paper.ENOUGH_STEPS} to the most measured. {_SAME}"),),
    "layers": (_layers,),
    "pruning": (_wide("pruning", "Accuracy after pruning", "fraction", "fraction of the weights pruned", _check_pruning,
                      "Change: the largest fraction up to which no loss is seen, the 95 % interval of the change reaching 0. "
                      "Agrees, for clean images: there is such a fraction above 0."),),
    "alpha": (_wide("alpha", "Accuracy by the factor α of the KL", "alpha", "alpha", _check_alpha,
                    "Change: from the largest alpha to the smallest above 0. Agrees: that of the clean accuracy, with its "
                    "interval, lies above 0.",
                    across=(*_RUNS, "alpha")),),
    "prior_std": (_wide("prior_std", "Accuracy by the prior's standard deviation", "prior_std", "prior std", _check_prior_std,
                        f"Change: from the lowest accuracy to the highest. {_SAME}", across=(*_RUNS, "prior_std")),),
    "gradients": (_gradients,),
}
