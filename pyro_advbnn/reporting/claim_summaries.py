"""Tables beside which the paper says something in words: each line ends in whether our numbers agree with it."""
import math
from functools import partial

from pyro_advbnn.cli.text_tables import NONE, decimal, fraction, share, shown, with_interval
from pyro_advbnn.reporting import agreement, csv_tables, paper
from pyro_advbnn.reporting.curves import curves, densities, labels, place
from pyro_advbnn.reporting.summary import Summary, claim, shared
from pyro_advbnn.reporting.transfer_figure import transfer_maps

_SAME = "Agrees: the 95 % interval of the change holds 0."


SWEEPS = {                                               # title, x, x in words, check(rows of a curve), what it asks
    "ensemble": ("Accuracy by draws per prediction (Fig. 5, left)", "num_samples", "draws per prediction",
                 partial(agreement.check_no_change, "num_samples", *paper.ENOUGH_DRAWS),
                 f"Change: from the fewest draws in that range to the most measured. {_SAME}"),
    "steps": ("Accuracy by PGD steps (Fig. 5, right)", "num_steps", "PGD steps",
              partial(agreement.check_no_change, "num_steps", paper.ENOUGH_STEPS, math.inf),
              f"Change: from the fewest steps >= {paper.ENOUGH_STEPS} to the most measured. {_SAME}"),
    "pruning": ("Accuracy after pruning", "fraction", "fraction of the weights pruned", agreement.check_pruning,
                "Change: the largest fraction up to which no loss is seen, the 95 % interval of the change reaching 0. "
                "Agrees, for clean images pruned by std: there is such a fraction above 0."),
    "alpha": ("Accuracy by the factor α of the KL", "alpha", "alpha", agreement.check_alpha,
              "Change: from the largest alpha to the smallest above 0. Agrees: that of the clean accuracy, with its interval, "
              "lies above 0. Not judged where runs share an alpha."),
    "prior_std": ("Accuracy by the prior's standard deviation", "prior_std", "prior std", agreement.check_prior_std,
                  "Change: from the lowest accuracy to the highest, auto left out, its interval for all pairs at once "
                  f"(Bonferroni). {_SAME} Not judged where runs share a std."),
}


def sweep(name, rows, _):
    """The table of one sweep: a line per curve, a column per x."""
    title, x, words, check, asked = SWEEPS[name]
    values = sorted({row[x] for row in rows}, key=place)
    lines = []
    for curve in curves(rows, x, over_runs=x in ("alpha", "prior_std")):
        cells = [[share(row["accuracy"]) for row in curve.rows if row[x] == value] for value in values]
        lines.append([curve.text or "all runs", *(", ".join(cell) or NONE for cell in cells), *check(curve.rows)])
    note = (f"{shared(rows, x)}. Accuracy in %, by {words}. {claim(name)} {asked} Changes are in points with a 95 % interval, "
            f"as if the two accuracies were of different images{agreement.count_agreeing(lines)}.")
    heads = [(fraction if x == "alpha" else shown)(value) for value in values]
    return [Summary(name, title, ["curve", *heads, "change", "agrees"], lines, note)]


def transfer(rows, _):
    """Fig. 3: the three accuracies of each pair and its rho, beside what the paper states of it."""
    names, lines = labels(rows), []
    defenses = {row["run"]: row["defense"] for row in rows}
    for words, part in transfer_maps(rows):
        for row in part:
            published = paper.correlation(defenses.get(row["source"]), row["defense"])
            lines.append([
                ", ".join([names.get(row["source"], row["source"]), *words.values()]), names[row["run"]],
                share(row["accuracy_clean"]), with_interval(row), share(row["accuracy_white_box"]),
                row["note"] or NONE if row["rho"] is None else decimal(row["rho"]),
                f"≈ {paper.span(published)}" if published else NONE, agreement.check_rho(row["rho"], published)])
    note = (f"{shared(rows)}. ρ = (Acc[B] − Acc[B|A]) / (Acc[B] − Acc[B|B]), Eq. (14); where the denominator's 95 % interval "
            f"holds 0, the drop stands instead. {claim('transfer')} Agrees: within {agreement.NEAR:g} of what the paper states"
            f"{agreement.count_agreeing(lines)}.")
    return [Summary("transfer", "Transfer of attacks from source A to target B (Fig. 3)",
                    ["source A", "target B", "Acc[B]", "Acc[B|A]", "Acc[B|B]", "ρ", "paper", "agrees"], lines, note)]


def layers(rows, folder):
    """Fig. 4 as a table, one line per parameter; the modes of the density over all weights in the note."""
    names, order = labels(rows), list(dict.fromkeys(row["layer"] for row in rows))
    lines = [[curve.text, row["layer"], f"{row['num_weights']:,}", *(decimal(row[name]) for name in (
        "prior_log_std", "log_std_q05", "log_std_median", "log_std_q95", "log10_signal_to_noise_median"))]
        for curve in curves(rows, "layer") for row in sorted(curve.rows, key=lambda row: order.index(row["layer"]))]
    density = [row for row in csv_tables.read(folder, "density") if row["quantity"] == "log_std" and row["layer"] == "all"]
    modes = {curve.text: agreement.count_modes(densities(curve))
             for curve in curves(density, "left", names=labels(density) | names)}
    counts = "; ".join(f"{name}: {count}, {'yes' if count == 2 else 'no'}" for name, count in modes.items())
    note = (f"{shared(rows)}. Log std: natural logarithm of the posterior's standard deviations; signal-to-noise: log10 of "
            f"|mean| / std. {claim('layers')} Modes of ours over all weights, and whether that agrees: {counts or NONE} "
            f"(a mode: a maximum that stands 10 % of the highest above the valleys beside it, after averaging 5 bins). "
            f"After few steps the stds are still those of the start, and layers of different size are modes of their own.")
    return [Summary("layers", "The posterior by layer (Fig. 4)", ["run", "parameter", "weights", "prior log std", "log std 5 %",
                                                                  "median", "95 %", "signal-to-noise"], lines, note)]


def gradients(rows, _):
    """The norms of Eq. (11) to (13) on training images and on test or held-out ones, and how far apart they are."""
    lines, others = [], " or ".join(sorted({row["split"].replace("_", " ") for row in rows} - {"train"})) or "test"
    for curve in curves(rows, "split"):
        train = next((row for row in curve.rows if row["split"] == "train"), None)
        other = next((row for row in curve.rows if row["split"] != "train"), None)       # test, or held out
        both = train and other
        lines.append([curve.text, _norm(train), _norm(other),
                      decimal(other["l1_norm"] / train["l1_norm"]) if both and train["l1_norm"] else NONE,
                      agreement.check_gradients(train, other) if both and train["defense"] == "adv" else NONE])
    note = (f"{shared(rows, 'split')}. Mean l1 norm of the gradient of the loss by the image, with its 95 % interval. "
            f"{claim('gradients')} Agrees, for adversarial training: that of {others} is larger, beyond the 95 % interval "
            f"of the difference{agreement.count_agreeing(lines)}.")
    return [Summary("gradients", f"Input gradients on training and {others} images (Eq. 11 to 13)",
                    ["run", "train", others, f"{others} / train", "agrees"], lines, note)]


def _norm(row):
    return with_interval(row, "l1_norm", "{:.4g}".format) if row else NONE
