"""The tables of robustness: the worst case over several attacks, and the signs of a broken evaluation."""
from pathlib import Path

from pyro_advbnn.cli.text_tables import counted, percent, share
from pyro_advbnn.reporting import csv_tables
from pyro_advbnn.reporting.curves import common, labels, named, settings
from pyro_advbnn.reporting.paper import defense_name
from pyro_advbnn.reporting.summary import Summary

_RANGES = {"num_steps": "PGD steps", "num_samples": "draws per prediction", "num_queries": "queries of Square",
           "num_examples": "images"}


def headline(folder):
    """One sentence: how robust, under what attack, compared with what; "" where nothing was attacked.

    It is of the worst case over several attacks where there is one, of one attack whose points were judged likewise, else of
    PGD; of test images where there are any, the first row's norm, the newest weights, the images of an attack with many draws
    where there is one, the most of them, the middle of its radii, the longest attack that every checkpoint has met, else the
    longest on each, and the most draws. What was stopped before all attacks had seen all images is left out.
    """
    worst = [row for row in csv_tables.read(folder, "robust") if row["tried"] == row["attacks"]]
    worst = [row for row in worst if " " in row["attacks"]] or worst
    rows = worst or [row for row in csv_tables.read(folder, "accuracy") if row["epsilon"]]
    if not rows:
        return ""
    rows = [row for row in rows if ":" not in row["dataset"]] or rows                 # test images, else those held out
    rows = _same(rows, lambda row: (row["dataset"], row.get("norm")), rows[0])
    newest = {(row["run"], row["checkpoint"]): row["weights"] for row in rows}
    rows = [row for row in rows if row["weights"] == newest[row["run"], row["checkpoint"]]]
    strong = [row for row in rows if (row["attack_samples"] or 1) > 1] or rows
    most = max(strong, key=lambda row: row["num_examples"])
    rows, radii = (_same(some, lambda row: row["images"], most) for some in (rows, strong))
    radii = sorted({row["epsilon"] for row in radii})
    rows = [row for row in rows if row["epsilon"] == radii[(len(radii) - 1) // 2]]
    met = [{row["num_steps"] for row in rows if row["checkpoint"] == path} for path in {row["checkpoint"] for row in rows}]
    by_all = set.intersection(*met)
    rows = [row for row in rows if not by_all or row["num_steps"] == max(by_all)]
    rows = sorted(rows, key=lambda row: (row["num_steps"], row["attack_samples"] or 1, -row["accuracy"]))
    rows = sorted({(row["run"], row["checkpoint"]): row for row in rows}.values(), key=lambda row: -row["accuracy"])
    names, attack = labels(rows), "white-box PGD"
    if worst:
        attack = "the worst of several attacks on each image" if " " in rows[0]["attacks"] else rows[0]["attacks"]
    norm = ", in the l2 norm" if rows[0].get("norm") == "l2" else ""
    known = common(rows)
    chosen = [known[name] for name in ("epsilon", "num_steps", "attack_samples", "num_examples") if name in known]
    several = len({row["checkpoint"] for row in rows}) > len(names)
    told = []
    for row in rows:
        apart = [Path(row["checkpoint"]).name] * several + [counted(row["num_steps"], "step")] * (not by_all)
        subject = names[row["run"]] + (f" ({', '.join(apart)})" if apart else "")
        told.append(f"{subject} on {percent(row, interval=True)} %")
    return f"Under {attack} ({', '.join(chosen)}{norm}) these are right: {', '.join(told)}."


def _same(rows, of, example):
    return [row for row in rows if of(row) == of(example)]


def robust(rows, _):
    """Accuracy in the worst case over several attacks, one line per ensemble."""
    lines = [[name, defense_name(row), row["norm"], f"{row['epsilon']:g}", percent(row, interval=True),
              share(row["single_draw_accuracy"]), share(row["undecided"]), str(row["attack_samples"]),
              f"{row['num_examples']:,}", attacks(row)]
             for name, row in named(rows, "epsilon", "attack_samples", "num_examples",
                                    names={row["run"]: row["run"] for row in rows})]
    note = (f"{_settings(rows)}. Accuracy in % with its 95 % Wilson interval, of averaged predictions over fresh draws, in the "
            "worst case over the attacks, image by image; one draw: the mean accuracy of single draws on the same images; "
            "draws differ: % of the images on which they do not agree.")
    columns = ["run", "defence", "norm", "ε", "accuracy", "one draw", "draws differ", "draws per gradient", "images", "attacks"]
    return [Summary("robust", "Accuracy in the worst case over several attacks", columns, lines, note)]


def gains(rows, _):
    """Adv-BNN over its control in the worst case, one line for each seed of a pair; the verdicts by rule."""
    pairs, comparisons = dict.fromkeys(row["pair"] for row in rows), rows[-1]["comparisons"]
    lines = [[row["pair"], str(row["seed"]), share(row["accuracy"]), share(row["control_accuracy"]),
              f"{share(row['gain'])} [{share(row['gain_low'])}, {share(row['gain_high'])}]", f"{row['num_examples']:,}"]
             for row in rows]
    verdicts = [_verdict(pair, [row["gain_low"] > 0 for row in rows if row["pair"] == pair]) for pair in pairs]
    note = (f"Radius {rows[-1]['epsilon']:.3g}. Accuracy in % in the worst case over the ensemble of attacks; gain: the paired "
            f"difference on the same images, with its interval of {100 - 5 / comparisons:.4g} %, as the 5 % of error are "
            f"shared by {counted(comparisons, 'contender')}. It counts where it is above 0 in every seed. {' '.join(verdicts)}")
    columns = ["pair", "seed", "Adv-BNN", "its control", "gain", "images"]
    return [Summary("gains", "Adv-BNN over adversarial training with the same means, in the worst case", columns, lines, note)]


def _verdict(pair, above):
    if len(above) == 1:
        return f"{pair}: no verdict from one seed."
    return f"{pair}: {'a gain' if all(above) else 'no gain'}, above 0 in {sum(above)} of {len(above)} seeds."


def checks(rows, _):
    """The verdicts on the signs of a broken evaluation, one line per check."""
    lines = [[name, row["check"], row["verdict"], row["measured"], row["expected"]] for name, row in named(rows)]
    note = f"{_settings(rows)}. Judged by 95 % intervals; after arXiv 1902.06705, 1802.00420 and 1907.00895."
    return [Summary("checks", "Signs of a broken evaluation", ["run", "check", "verdict", "measured", "expected"], lines, note)]


def attacks(row):
    """The attacks of an ensemble, with those that had not seen all images when the time was up."""
    open_ones = [name for name in row["attacks"].split() if name not in (row["tried"] or "").split()]
    return " ".join(filter(None, (row["tried"], f"(unfinished: {' '.join(open_ones)})" if open_ones else "")))


def _settings(rows):
    """The settings that all rows share, and the range of those that no column shows where they differ."""
    ranges = []
    for name, noun in _RANGES.items():                   # of draws per prediction only where there is something to draw
        values = {row[name] for row in rows if row.get(name) is not None and (name in settings(row) or name == "num_queries")}
        ranges += [f"{min(values):,} to {max(values):,} {noun}"] if len(values) > 1 else []
    return ", ".join([*common(rows).values(), *ranges])
