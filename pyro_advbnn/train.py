"""python -m pyro_advbnn.train: train one defence on one data set."""
import functools
from importlib.util import find_spec

from pyro_advbnn.cli import commands, python_calls
from pyro_advbnn.system.errors import reason
from pyro_advbnn.training.flags import Attack, Data, Machine, Method, Run, Schedule


@python_calls.from_python
def train(*, run: Run, data: Data, method: Method, attack: Attack, training: Schedule, machine: Machine):
    """Train one defence on one data set into a run folder. What no flag says comes from the recipe.

    The test split is never opened. The batches' crops and flips, their order and the weights' draws each have a random
    stream of their own, so that a run that was interrupted and resumed ends with the same weights.

    Under torchrun several processes train one classifier: each draws its own weights and takes its part of every batch.

    From Python each flag is an argument: train(out="runs/a", epochs=3), and the figure of the run is not drawn.
    """
    _start(run, data, method, attack, training, machine)


def _start(*groups, at_end=None):
    flags = {name: value for group in groups for name, value in vars(group).items() if value is not None}
    from pyro_advbnn.system import distributed  # here, as torch takes seconds that --help need not wait for
    from pyro_advbnn.training import session

    distributed.run(session.start, flags, at_end)


@functools.wraps(train)
def _command(**groups):
    _start(*groups.values(), at_end=_draw)


def _draw(folder):
    """Draw the course of the run where matplotlib is installed; a failure is a line and costs no training."""
    if find_spec("matplotlib") is None:
        return
    try:
        from pyro_advbnn.reporting import figures  # here, as drawing takes a second that a refusal need not wait for

        figures.draw(folder, ["training"])
    except Exception as error:
        print(f"note: {folder / 'figures' / 'training.svg'} is not drawn: {reason(error)}", flush=True)


def main(argv=None, under=""):
    """The command, for words that are given or those of the process.   under: as of `commands.run`."""
    commands.run(_command, argv, processes=True, under=under)


if __name__ == "__main__":
    main()
