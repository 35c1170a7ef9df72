"""Rows of a result folder's csv files as curves: rows of different settings never share one. No torch, no matplotlib."""
import math
from dataclasses import dataclass
from pathlib import Path

from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.cli.text_tables import counted, fraction
from pyro_advbnn.reporting import csv_tables
from pyro_advbnn.reporting.paper import dataset_name, defense_name

_OF_RUN = ("network", "alpha", "prior_std", "checkpoint", "weights")
_OF_ATTACK = ("attack", "num_steps", "step_size", "attack_samples", "confidence_weight")
_TOLD_BY = {"step_size": ("epsilon",), "images": ("dataset", "num_examples", "seed")}   # settings that mostly tell another
_SCORES = {"entropy": "doubt: entropy of the prediction", "mutual_information": "doubt: mutual information"}
_PREDICTIONS = {"posterior": "prediction averaged over draws", "mean": "prediction of the mean network"}
_SHARED = ("dataset", "num_examples", "prediction", "prune_by", "epsilon", "attack", "num_steps", "step_size", "attack_samples",
           "num_samples", "seed", "alpha", "prior_std", "confidence_weight", "score")


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


def curves(rows, x, *, over_runs=False, names=None):
    """`rows` split into curves over the column `x`: rows of different settings never share one.

    over_runs: x is a setting of training, and a curve is of many runs, but of one of the checkpoints that a run has.
    names: {run: label}, default `labels(rows)`. Clean rows (epsilon 0) know no attack and belong to the curve of every attack.
    """
    across = ("run", "weights", x) if over_runs else ()
    names = names or (_labels_of_many(rows) if over_runs else labels(rows))
    groups = _in_order([_points(group, x) for group in _grouped(rows, x, across)], x, list(names))
    found = [Curve(names[group[0]["run"]], {}, group) for group in groups]
    return [Curve(curve.label, words, curve.rows) for curve, words in zip(found, _differences(found, x, across))]


def labels(rows):
    """{run: how readers know it}: its defence where no other run has the same, else, or for a mixture, its own name."""
    pairs = dict.fromkeys((row["run"], defense_name(row)) for row in rows)
    runs, names = [run for run, _ in pairs], [name for _, name in pairs]
    return {run: name if runs.count(run) == names.count(name) == 1 and "+" not in run else run for run, name in pairs}


def named(rows, *shown, names=None):
    """(the run's name, and the settings in which the rows of the run differ, but for those in `shown`; row) for each row.

    names: {run: name}, default `labels(rows)`.
    """
    names, told = names or labels(rows), {}
    for run in names:
        own = [settings(row) for row in rows if row["run"] == run]
        told[run] = {name for each in own for name in each
                     if name not in shown and len({other[name] for other in own if name in other}) > 1}
        if _checkpoints_tell_weights(rows, run):
            told[run] -= {"weights"}
        if is_told(own, "images"):
            told[run] -= {"images"}
    for row in rows:
        words = [text for name, text in settings(row).items() if name in told[row["run"]]]
        yield ", ".join([names[row["run"]], *words]), row


def _checkpoints_tell_weights(rows, run):
    """Whether the rows of a run have as many weights as checkpoints, so that the name of the one tells the other."""
    own = [row for row in rows if row["run"] == run]
    return len({row["checkpoint"] for row in own}) == len({row["weights"] for row in own})


def several_checkpoints(rows):
    """{checkpoint: the name of its file} of the runs that have rows of several."""
    found = dict.fromkeys((row["run"], row["checkpoint"]) for row in rows)
    runs = [run for run, _ in found]
    return {checkpoint: Path(checkpoint).name for run, checkpoint in found if runs.count(run) > 1}


def _labels_of_many(rows):
    """{run: label} for curves over many runs: at most the defence names them."""
    several = len({row["defense"] for row in rows}) > 1
    return {row["run"]: defense_name(row) if several else "" for row in rows}


def _grouped(rows, x, across):
    """The rows of each curve, as lists.

    A clean row over epsilon stands in every curve that has its other settings; over runs, a run of one checkpoint stands in the
    curve of every checkpoint.
    """
    groups, several, over_runs = {}, several_checkpoints(rows), "run" in across
    for row in sorted(rows, key=lambda row: (_is_clean(row), row["checkpoint"] not in several)):     # which join others last
        of_run = {name: row.get(name) for name in (*csv_tables.RUN_FIELDS, "quantity", "layer")}
        told = {name: value for name, value in (settings(row, x) | of_run).items() if name not in (x, *across)}
        joins = x == "epsilon" and _is_clean(row)
        if over_runs:
            told["checkpoint"] = several.get(row["checkpoint"])
            if told["checkpoint"] is None:               # the only one of its run
                del told["checkpoint"]
                joins = True
        key = frozenset(told.items())
        for group in [known for known in groups if joins and key <= known] or [key]:
            groups.setdefault(group, []).append(row)
    return list(groups.values())


def _points(rows, x):
    """Rows by x, one each of a run: a clean accuracy measured twice, beside two attacks, is one point."""
    points = {}
    for row in rows:
        points[place(row[x]), row["run"], row["checkpoint"]] = row       # the newest
    return [row for key, row in sorted(points.items(), key=lambda item: (item[0][0], str(item[0])))]


def _in_order(groups, x, runs):
    """The groups by run, then by their settings."""
    columns = [name for name in ("epsilon", "attack_samples", "num_samples", "num_steps") if name != x]

    def rank(row):
        told = {name: text for name, text in settings(row, x).items() if name != "images"}       # a digest has no order
        return runs.index(row["run"]), [place(row.get(name)) for name in columns], sorted(told.items())
    return sorted(groups, key=lambda group: rank(group[-1]))


def _differences(found, x, across):
    """For each curve the settings in which not all are alike; of those of a run only where its curves differ in them."""
    of_all = [row for curve in found for row in curve.rows]
    told = several_checkpoints(of_all)
    rows = [min(curve.rows, key=lambda row: (_is_clean(row), row["checkpoint"] not in told)) for curve in found]
    all_settings, alike = [settings(row, x) for row in rows], set(across)
    for name in {name for each in all_settings for name in each}:
        values = {(curve.label if name in _OF_RUN else "", each[name])
                  for curve, each in zip(found, all_settings) if name in each}
        if len(values) == len({label for label, _ in values}):
            alike.add(name)
    alike |= {name for name in _TOLD_BY if is_told(all_settings, name)}
    hidden = [alike | ({"weights"} if _checkpoints_tell_weights(of_all, row["run"]) else set()) for row in rows]
    return [{name: text for name, text in each.items() if name not in names} for each, names in zip(all_settings, hidden)]


def is_told(all_settings, name):
    """Whether the other settings already tell the one of that name, "step_size" or "images"."""
    known = {(*map(each.get, _TOLD_BY[name]), each.get(name)) for each in all_settings}
    return len(known) == len({values[:-1] for values in known})


def settings(row, x=None):
    """{name: text} of what a row was measured with, without `x` and without what means nothing for it."""
    draws, gradient = is_random(row), " per gradient"
    own_images = x == "split" or row["dataset"].endswith(":held_out")                # each run's are its own
    texts = {
        "dataset": dataset_name(row), "network": row["network"], "prediction": _PREDICTIONS.get(row.get("prediction")),
        "prune_by": _text(row, "prune_by", lambda name: f"pruned by {name.replace('_', '-')}"),
        "epsilon": _text(row, "epsilon", lambda value: f"ε = {value:g}" if value else "clean"),
        "attack": row.get("attack") if row.get("attack") != "pgd" or "confidence_weight" in row else None,
        "num_steps": _text(row, "num_steps", lambda count: counted(count, "PGD step")), "step_size": _step(row, x),
        "attack_samples": draws and _text(row, "attack_samples", lambda count: counted(count, "draw", gradient)),
        "average": draws and _text(row, "average", "mean {} of the draws".format),
        "num_queries": _text(row, "num_queries", "{:,} queries of Square".format),
        "confidence_weight": _text(row, "confidence_weight", "confidence weight {:g}".format),
        "num_samples": draws and _text(row, "num_samples", lambda count: counted(
            count, "draw", gradient if "l1_norm" in row else " per prediction")),
        "num_examples": _text(row, "num_examples", lambda count: counted(count, "image")),
        "images": None if own_images else _text(row, "images", "images {}".format),
        "seed": _text(row, "seed", "seed {}".format), "score": _SCORES.get(row.get("score")),
        "alpha": _text(row, "alpha", lambda value: f"α = {fraction(value)}"),
        "prior_std": _text(row, "prior_std", "prior std {}".format),
        "checkpoint": _text(row, "checkpoint", lambda path: Path(path).name), "weights": row["weights"],
    }
    hidden = {x, *(_OF_ATTACK if _is_clean(row) else ())}
    return {name: text for name, text in texts.items() if text and name not in hidden}


def _text(row, name, write):
    return None if row.get(name) is None else write(row[name])


def _step(row, x):
    """The PGD step in words; one that follows the radius has one text for all radii."""
    size, count = row.get("step_size"), row.get("num_steps")
    if size is None:
        return None
    follows = x != "num_steps" and count and math.isclose(size * count, 2.5 * (row["epsilon"] or 0), rel_tol=1e-5)
    return "step 2.5 ε / steps" if follows else f"step {size:g}"


def common(rows, x=None):
    """{name: text} of the settings that all rows share, as far as they have them; nothing about their networks.

    A text that means nothing for some of the rows says for which it does: "10 draws per gradient where random".
    """
    seen = {}
    for row in rows:
        for name, text in settings(row, x).items():
            seen.setdefault(name, set()).add(text)
    return {name: seen[name].pop() + _where(rows, name) for name in _SHARED if len(seen.get(name, ())) == 1}


def _where(rows, name):
    if name in ("attack_samples", "num_samples") and not all(map(is_random, rows)):
        return " where random"
    return " where Bayesian" if name in ("alpha", "prior_std") and any(row.get(name) is None for row in rows) else ""


def is_random(row):
    """Whether the numbers of draws mean something for a row."""
    known = DEFENSES.get(row["defense"])
    return (known is None or known.random or (row.get("num_samples") or 1) > 1) and row.get("prediction") != "mean"


def _is_clean(row):
    return row.get("epsilon") == 0


def place(value):
    """A key that sorts numbers by size, then texts, then None."""
    if value is None:
        return 2, 0.0, ""
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value


def densities(curve):
    """The heights of the histogram in a curve over "left"; a density per unit of what was counted."""
    return [row["share"] / (row["right"] - row["left"]) for row in curve.rows]
