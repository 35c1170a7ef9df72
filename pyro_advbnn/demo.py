"""python -m pyro_advbnn.demo: three defences on scikit-learn's digits, attacked, in one table; minutes on two cores."""
import tempfile
from pathlib import Path

from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.cli import commands, python_calls, text_tables
from pyro_advbnn.cli.flag_types import Seed
from pyro_advbnn.experiments.accuracy_verbs import white_box
from pyro_advbnn.experiments.evaluated_runs import opened
from pyro_advbnn.experiments.selection import Selection
from pyro_advbnn.reporting import paper
from pyro_advbnn.system.locks import locked
from pyro_advbnn.system.process_settings import process_settings
from pyro_advbnn.train import train
from pyro_advbnn.training import run_folders


@python_calls.from_python
def demo(*, seed: Seed = 0, out: Path | None = None):
    """Train no defence, adversarial training and Adv-BNN on digits, then attack them on the 360 test images.

    Args:
        seed: of all random streams.
        out: folder for the three runs; default a temporary one.
    """
    if out is not None:
        run_folders.refuse_existing(out, hint="")
        with locked(out):
            return _demo(out, seed)
    with tempfile.TemporaryDirectory() as folder:
        _demo(Path(folder), seed)


@process_settings(num_threads=1)    # networks this small gain nothing from a second thread, and lose much where it is not free
def _demo(folder, seed):
    """Rows of each defence: clean, 20-step PGD with one draw per gradient and, where draws differ, with ten."""
    rows = []
    for defense in ("none", "adv", "advbnn"):
        train(dataset="digits", defense=defense, seed=seed, out=folder / defense)
        with opened(Selection(run=folder / defense, seed=seed)) as runs:
            run, = runs
            attacks = [PGD(0.0, 0.025, 20), *(PGD(0.2, 0.025, 20, draws) for draws in run.counts([1, 10]))]
            rows.append([white_box(runs, run, attack, 20) for attack in attacks])
        print()
    _print(rows)


def _print(rows_by_defense):
    """One line per defence; a deterministic network, whose every draw is the same, has one figure under PGD."""
    print("accuracy % [95% interval] on the 360 test images of digits; PGD: l_inf radius 0.2, 20 steps of 0.025;\n"
          "predictions of Adv-BNN average 20 draws of the weights, its attackers 1 or 10 draws per gradient")
    print(text_tables.table(rows_by_defense, {
        "defence": lambda rows: paper.DEFENSE_NAMES[rows[0]["defense"]],
        "clean": lambda rows: text_tables.with_interval(rows[0]),
        "PGD, 1 draw": lambda rows: text_tables.with_interval(rows[1]),
        "PGD, 10 draws": lambda rows: text_tables.with_interval(rows[-1]),
    }))


def main(argv=None, under=""):
    """The command, for words that are given or those of the process.   under: as of `commands.run`."""
    commands.run(demo, argv, under=under, way_on="without --out its runs are gone")


if __name__ == "__main__":
    main()
