"""What the verbs of evaluate share: the flags of a PGD attack, the note on one that is too short, the figures at the end."""
from importlib.util import find_spec
from typing import Annotated, Literal

from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.cli import python_calls, text_tables
from pyro_advbnn.cli.flag_types import Count, Range
from pyro_advbnn.reporting import figures
from pyro_advbnn.training import recipes

Radius = Annotated[float, Range(0, 1)]
StepSize = Annotated[float, Range(0, 1, open_low=True)] | Literal["auto"] | None


@python_calls.flags
class Attack:
    """The flags of a PGD attack but for its radius and draws.

    Args:
        num_steps: PGD steps.
        step_size: PGD step; auto = 2.5 epsilon / num_steps; default 0.007 on cifar10, stl10 and imagenet143, else auto.
    """

    num_steps: Count = 20
    step_size: StepSize = None

    def pgd(self, dataset, epsilon, attack_samples=1, **more):
        """The `PGD` of a radius and a number of draws per gradient; more: its other settings."""
        return PGD(epsilon, chosen_step(dataset, self.step_size), self.num_steps, attack_samples, **more)


TWENTY_STEPS = Attack()


def chosen_step(dataset, step_size):
    """The PGD step that a flag asks for: a number, or None for 2.5 epsilon / num_steps."""
    step_size = recipes.default_step_size(dataset) if step_size is None else step_size
    return None if step_size == "auto" else step_size


def warn(attacks):
    """Print a note where the steps of `attacks`, of one length and number, cannot reach the border of their balls."""
    weak = [f"{attack.epsilon:g}" for attack in attacks if not attack.reaches_ball]
    if weak:
        print(f"note: {attacks[0].num_steps} steps of {attacks[0].step_size:g} cannot reach the border of the ball of "
              f"radius {', '.join(weak)}")


def finish(subjects, rows, command, drawn, columns):
    """Print the rows and what was added to the first of the subjects' tables, log the command, draw the figures.

    columns: {title: function of a row}; the run stands before them where there are several and no column is the target.
    """
    named = len(subjects) == 1 or "target" in columns
    print(text_tables.table(rows, columns if named else {"run": lambda row: row["run"], **columns}))
    table = subjects.tables[0]
    known = f"; {len(rows) - subjects.num_rows} were there already" if subjects.num_rows < len(rows) else ""
    print(f"added {subjects.num_rows} rows to {table.path}{known}")
    subjects.log(command)
    draw_figures(subjects.folder, drawn)


def draw_figures(folder, names=None):
    """Draw the figures `names` of a result folder, by default all, and print where they are."""
    if find_spec("matplotlib") is None:
        return print("no figures: matplotlib is not installed (pip install pyro_advbnn[evaluation])")
    for path in figures.draw(folder, names):
        if path.suffix == ".svg":
            print(f"drew {path}")
