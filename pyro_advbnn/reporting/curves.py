"""Rows of a result folder's csv files as curves: rows of different settings never share one. No torch, no matplotlib."""
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.reporting import csv_tables, paper
from pyro_advbnn.system.errors import InputError

_DETERMINISTIC = tuple(name for name, defense in DEFENSES.items() if not defense.random)
_OF_RUN = ("network", "alpha", "prior_std", "checkpoint", "weights")
_NEEDED = ("accuracy", "accuracy_low", "accuracy_high", "l1_norm", "l1_norm_low", "l1_norm_high", "share", "right",
           "num_weights", "log_std_q05", "log_std_median", "log_std_q95", "accuracy_clean", "accuracy_white_box")
_NEEDED_TEXTS = ("run", "dataset", "network", "defense")
_SETTINGS = ("alpha", "epsilon", "num_steps", "step_size", "attack_samples", "num_samples", "num_examples", "seed",
             "batch_size")
_OF_ATTACK = ("attack", "num_steps", "step_size", "attack_samples", "confidence_weight")
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


def curves(rows, x, *, across=(), names=None):
    """`rows` split into curves over the column `x`: rows of different settings never share one.

    across: columns in which the rows of one curve may differ as well; names: {run: label}, default `labels(rows)`. Clean
    rows (epsilon 0) know no attack and belong to the curve of every attack. Raises InputError for rows without a number.
    """
    names, groups = names or labels(rows), {}
    if "run" in across:                                  # no curve is of one run: at most the defence names it
        names = {row["run"]: defense_name(row) if len({row["defense"] for row in rows}) > 1 else "" for row in rows}
    for row in sorted(rows, key=_is_clean):              # what may belong to several comes last
        key = frozenset(_identity(row, x, across).items())
        homes = [home for home in groups if key <= home] if _is_clean(row) and x == "epsilon" else []
        for home in homes or [key]:
            groups.setdefault(home, []).append(row)
    renewed = set() if "run" in across else renewed_names(rows)
    found = [Curve(names[group[0]["run"]] + f" ({defense_name(group[0])})" * (group[0]["run"] in renewed), {},
                   _in_order(group, x)) for group in groups.values()]
    found.sort(key=lambda curve: _rank(curve.rows[-1], x, list(names)))
    return [Curve(curve.label, words, curve.rows) for curve, words in zip(found, _differences(found, x, across))]


def labels(rows):
    """{run: how readers know it}: the name of its defence where no other run shown has the same, else the run's own."""
    defenses, renewed = {row["run"]: defense_name(row) for row in rows}, renewed_names(rows)
    counts = list(defenses.values())
    return {run: run if run in renewed or counts.count(defense) > 1 else defense for run, defense in defenses.items()}


def renewed_names(rows):
    """The names that runs of several defences have had, one after another; their rows must not be taken for each other's."""
    seen = {}
    for row in rows:
        seen.setdefault(row["run"], set()).add(row["defense"])
    return {run for run, defenses in seen.items() if len(defenses) > 1}


def defense_name(row):
    """The defence of a row as readers know it."""
    return paper.DEFENSE_NAMES.get(row["defense"], row["defense"])


def settings(row, x=None):
    """{name: text} of what a row was measured with, without `x` and without what means nothing for it."""
    draws = _draws(row)
    averaged = " per gradient" if "l1_norm" in row else " per prediction"
    texts = {
        "dataset": paper.DATASET_NAMES.get(row["dataset"], row["dataset"]), "network": row["network"],
        "prediction": _PREDICTIONS.get(row.get("prediction")),
        "prune_by": _text(row, "prune_by", lambda name: f"pruned by {name.replace('_', '-')}"),
        "epsilon": _text(row, "epsilon", lambda value: f"ε = {value:g}" if value else "clean"),
        "attack": row.get("attack") if row.get("attack") != "pgd" or "confidence_weight" in row else None,
        "num_steps": _text(row, "num_steps", _counted("PGD step")), "step_size": _step(row, x),
        "attack_samples": draws and _text(row, "attack_samples", _counted("draw", " per gradient")),
        "confidence_weight": _text(row, "confidence_weight", "confidence weight {:g}".format),
        "num_samples": draws and _text(row, "num_samples", _counted("draw", averaged)),
        "num_examples": _text(row, "num_examples", _counted("image")), "seed": _text(row, "seed", "seed {}".format),
        "score": _SCORES.get(row.get("score")),
        "alpha": _text(row, "alpha", lambda value: f"α = {fraction(value)}"),
        "prior_std": _text(row, "prior_std", "prior std {}".format),
        "checkpoint": _text(row, "checkpoint", lambda path: Path(path).name), "weights": row["weights"],
    }
    hidden = {x, *(_OF_ATTACK if _is_clean(row) else ())}
    return {name: text for name, text in texts.items() if text and name not in hidden}


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
    if name in ("attack_samples", "num_samples") and not all(map(_draws, rows)):
        return " where random"
    return " where Bayesian" if name in ("alpha", "prior_std") and any(row.get(name) is None for row in rows) else ""


def _draws(row):
    """Whether the numbers of draws mean something for a row."""
    return row["defense"] not in _DETERMINISTIC and row.get("prediction") != "mean"


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
    own = {name: row.get(name) for name in (*csv_tables.RUN_FIELDS, "quantity", "layer")}
    return {name: value for name, value in (settings(row, x) | own).items() if name not in (x, *across)}


def _in_order(rows, x):
    """Rows by x, one each of a run: a clean accuracy measured twice, beside two attacks, is one point."""
    points = {}
    for row in rows:
        check(row, x)
        points.setdefault((place(row[x]), row["run"], row["checkpoint"], row["weights"]), row)
    return [row for key, row in sorted(points.items(), key=lambda item: (item[0][0], str(item[0])))]


def check(row, x=None):
    """Raises InputError for a row without one of the texts or numbers that every row of its kind has, or with an odd one."""
    for name in _NEEDED_TEXTS:
        if row.get(name) is None:
            raise InputError(f"a csv file is damaged: a row of the run {row['run']} has no {name}")
    for name in _SETTINGS:
        if row.get(name) is not None and not 0 <= row[name] < math.inf:
            raise InputError(f"a csv file is damaged: a row of the run {row['run']} has {name} {row[name]!r:.40}")
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


def transfer_groups(rows):
    """[({setting: text}, rows)]: the pairs measured alike, each pair once; words: the settings in which the groups differ.

    The draws count where there is something to draw: per gradient of the source, per prediction of the target.
    """
    defense_of, groups = {row["run"]: row["defense"] for row in rows}, {}
    for row in sorted(rows, key=lambda row: -_transfer_draws(row, defense_of)):    # what may belong to several comes last
        check(row, "epsilon")
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


def densities(curve):
    """The heights of the histogram in a curve over "left"; a density per unit of what was counted."""
    if any(row["right"] <= row["left"] for row in curve.rows):
        raise InputError(f"density.csv is damaged: a bin of the run {curve.rows[0]['run']} has no width")
    return [row["share"] / (row["right"] - row["left"]) for row in curve.rows]


def span(bounds):
    """(low, high) as text: "0.85" or "0.5–0.6"."""
    low, high = bounds
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"
