"""python -m pyro_advbnn.demo: three defences on scikit-learn's digits, attacked, in one table; minutes on two cores."""
import tempfile
from pathlib import Path
from typing import Annotated

from pyro_advbnn import cli, datasets, records, run_folders
from pyro_advbnn.attacks import PGD
from pyro_advbnn.cli import Range
from pyro_advbnn.evaluation import robust_accuracy, separate_randomness
from pyro_advbnn.train import train

_DEFENSES = {"none": "no defence", "adv": "adversarial training", "advbnn": "Adv-BNN"}


def demo(*, seed: Annotated[int, Range(0, 2**31 - 1)] = 0, out: Path | None = None):
    """Train no defence, adversarial training and Adv-BNN on digits, then attack them on the 360 test images.

    Args:
        seed: of all random streams.
        out: folder for the three runs; default a temporary one.
    """
    if out is not None:
        run_folders.refuse_existing(out)
        return _demo(out, seed)
    with tempfile.TemporaryDirectory() as folder:
        _demo(Path(folder), seed)


def _demo(folder, seed):
    rows = []
    for defense in _DEFENSES:
        train(dataset="digits", defense=defense, seed=seed, out=folder / defense)
        rows += _evaluate(folder / defense, seed)
        print()
    _print(rows)


def _evaluate(folder, seed):
    """Rows: clean, 20-step PGD with one draw per gradient, and with ten."""
    classifier, config, path = run_folders.load_classifier(folder)
    batches = datasets.batches(datasets.load("digits", "test"), 360)
    known = {"dataset": "digits", "network": config["network"], "defense": config["defense"], "source": "target",
             "seed": seed, "checkpoint": str(path)}
    attacks = [None, *(PGD(0.2, 0.025, 20, attack_samples) for attack_samples in (1, 10))]
    rows = []
    for attack in attacks:
        with separate_randomness(seed):
            rows.append(known | robust_accuracy(classifier, batches, attack, num_samples=20))
    (folder / "evaluation").mkdir()
    records.append_csv(folder / "evaluation" / "accuracy.csv", rows)
    return rows


def _print(rows):
    """One line per defence, its three accuracies beside each other."""
    lines = [rows[i:i + 3] for i in range(0, len(rows), 3)]
    print(f"accuracy % [95% interval] on the {rows[0]['num_examples']} test images of digits, predictions averaged over "
          f"20 draws; PGD: l_inf radius 0.2, 20 steps of 0.025")
    print(records.table(lines, {
        "defence": lambda line: _DEFENSES[line[0]["defense"]],
        "clean": lambda line: records.percent(line[0], interval=True),
        "PGD, 1 draw per gradient": lambda line: records.percent(line[1], interval=True),
        "PGD, 10 draws per gradient": lambda line: records.percent(line[2], interval=True),
    }))


if __name__ == "__main__":
    cli.run(demo)
