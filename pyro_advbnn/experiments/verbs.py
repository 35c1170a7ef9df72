"""What the verbs of evaluate share: how a function of runs becomes one, the flags of a PGD attack, what stands at the end."""
import functools
import inspect
from importlib.util import find_spec
from inspect import Parameter
from typing import Annotated, Literal

from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.cli import help, python_calls
from pyro_advbnn.cli.flag_types import Count, Range
from pyro_advbnn.cli.python_calls import flag
from pyro_advbnn.experiments.evaluated_runs import opened
from pyro_advbnn.experiments.selection import Selection
from pyro_advbnn.reporting import figures, summaries
from pyro_advbnn.training import recipes

Radius = Annotated[float, Range(0, 1)]
StepSize = Annotated[float, Range(0, 1, open_low=True)] | Literal["auto"] | None


def verb(name):
    """A decorator: `function(runs, *, flags)` becomes the verb that takes the flags of a `Selection` in place of runs.

    What was run is logged with its command line.
    """
    def made(function):
        @functools.wraps(function)
        def command(*, of, **flags):
            with opened(of) as runs:
                function(runs, **flags)
                runs.log(help.command_line(f"pyro_advbnn.evaluate {name}", command, {"of": of, **flags}))

        own = list(inspect.signature(function).parameters.values())[1:]
        command.__signature__ = inspect.Signature([Parameter("of", Parameter.KEYWORD_ONLY, annotation=Selection), *own])
        command.__annotations__ = {"of": Selection, **function.__annotations__}
        return python_calls.from_python(command)

    return made


@python_calls.flags
class AttackFlags:
    """The PGD attack."""

    num_steps: Count = flag("PGD steps.", 20)
    step_size: StepSize = flag("PGD step; auto = 2.5 epsilon / num_steps; default 0.007 on cifar10, stl10 and imagenet143, "
        "else auto.")

    def pgd(self, dataset, epsilon, attack_samples=1, **more):
        """The `PGD` of a radius and a number of draws per gradient; more: its other settings."""
        return PGD(epsilon, chosen_step(dataset, self.step_size), self.num_steps, attack_samples, **more)

    def warn(self, dataset, epsilons):
        """`warn` for these radii."""
        warn([self.pgd(dataset, epsilon) for epsilon in epsilons])


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


def finish(runs, table, rows, drawn):
    """Print the rows as the report shows them, and how many were added to their table, and draw the figures."""
    show(table, rows, runs.folder)
    added = runs.num_added[table]
    known = f"; {len(rows) - added} were there already" if added < len(rows) else ""
    print(f"added {added} rows to {runs.table(table).path}{known}")
    draw_figures(runs.folder, drawn)


def show(table, rows, folder):
    """Print the tables of a report that are made of these rows, but for Table 1, whose numbers are in that by radius, too."""
    for summary in summaries.of(table, rows, folder):
        if not summary.name.startswith("table1"):
            print(summary.as_text())


def draw_figures(folder, names=None):
    """Draw the figures `names` of a result folder, by default all, and print where they are."""
    if find_spec("matplotlib") is None:
        return print("no figures: matplotlib is not installed (pip install pyro_advbnn[evaluation])")
    for path in figures.draw(folder, names):
        if path.suffix == ".svg":
            print(f"drew {path}")
