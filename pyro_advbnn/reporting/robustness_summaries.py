"""The tables of robustness: the worst case over several attacks, and the signs of a broken evaluation."""
import re

from pyro_advbnn.cli.text_tables import counted, share, with_interval
from pyro_advbnn.reporting.curves import common, named, settings
from pyro_advbnn.reporting.paper import defense_name
from pyro_advbnn.reporting.summary import Summary

_RANGES = {"num_steps": "PGD steps", "num_samples": "draws per prediction", "num_queries": "queries of Square",
           "num_examples": "images"}


def robust(rows, _):
    """Accuracy in the worst case over several attacks, one line per ensemble."""
    lines = [[name, defense_name(row), row["norm"], f"{row['epsilon']:g}", with_interval(row),
              *(share(row[name]) for name in ("unbroken", "single_draw_accuracy", "undecided")), str(row["attack_samples"]),
              f"{row['num_examples']:,}", attacks(row)]
             for name, row in named(rows, "epsilon", "attack_samples", "num_examples",
                                    names={row["run"]: row["run"] for row in rows})]
    note = (f"{_settings(rows)}. Accuracy in % with its 95 % Wilson interval, of averaged predictions over fresh draws, in the "
            "worst case over the attacks, image by image; unbroken: % of the images that none of the attacks breaks, which "
            "errs against a random network; one draw: the mean accuracy of single draws in the worst case; draws differ: % of "
            "the images on which they do not agree.")
    columns = ["run", "defence", "norm", "ε", "accuracy", "unbroken", "one draw", "draws differ", "draws per gradient",
               "images", "attacks"]
    return [Summary("robust", "Accuracy in the worst case over several attacks", columns, lines, note)]


def gains(rows, _):
    """Adv-BNN over its control in the worst case, one line for each seed of a pair; the verdicts by rule."""
    pairs, comparisons = dict.fromkeys(row["pair"] for row in rows), rows[-1]["comparisons"]
    lines = [[row["pair"], str(row["seed"]), share(row["accuracy"]), share(row["control_accuracy"]),
              with_interval(row, "gain"), f"{row['num_examples']:,}"]
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
    """The attacks of an ensemble, targeted ones joined, with those that had not seen all images when the time was up."""
    tried = (row["tried"] or "").split()
    open_ones = [name for name in row["attacks"].split() if name not in tried]
    return " ".join(filter(None, (_joined(tried), f"(unfinished: {_joined(open_ones)})" if open_ones else "")))


def _joined(names):
    return re.sub(r"(?<!\S)apgd-t\d(@\S+|)(?: apgd-t\d\1(?!\S))+", _as_range, " ".join(names))


def _as_range(targeted):
    ranks = list(map(int, re.findall(r"apgd-t(\d)", targeted[0])))
    follow = ranks == list(range(ranks[0], ranks[0] + len(ranks)))
    return f"apgd-t{ranks[0]}..{ranks[-1]}{targeted[1]}" if follow else targeted[0]


def _settings(rows):
    """The settings that all rows share, and the range of those that no column shows where they differ."""
    ranges = []
    for name, noun in _RANGES.items():                   # of draws per prediction only where there is something to draw
        values = {row[name] for row in rows if row.get(name) is not None and name in settings(row)}
        ranges += [f"{min(values):,} to {max(values):,} {noun}"] if len(values) > 1 else []
    return ", ".join([*common(rows).values(), *ranges])
