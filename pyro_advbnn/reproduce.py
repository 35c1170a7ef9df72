"""python -m pyro_advbnn.reproduce table1|fig2|...|all: the paper's evidence from nothing, each piece by one command.

A plan is a list of `train` and `evaluate` commands that anyone could give by hand. Trainings resume where they were,
evaluations compute only the rows that are not there yet, and reproduce.jsonl tells which commands are finished: the same
command given again goes on, whatever stopped it.
"""
from pyro_advbnn.cli import commands, python_calls
from pyro_advbnn.cli.flag_types import Seed
from pyro_advbnn.experiments.scales import Reproduction
from pyro_advbnn.train import train

_TOLD = {
    "table1": "Table 1: adversarial training and Adv-BNN under PGD, with one and with many draws per gradient.",
    "fig2": "Fig. 2: accuracy of the five defences against the radius of the attack.",
    "fig3": "Fig. 3: transfer attacks between the five defences, Eq. (14).",
    "fig4": "Fig. 4: density of the posterior's log std; and pruning by it, which section 3.3 only promises.",
    "fig5": "Fig. 5: accuracy against the draws of a prediction, and against the steps of the attack.",
    "alpha": "The claim below Table 1 that a smaller alpha buys back clean accuracy: alpha 1, 1/10, 1/50, 0 and the recipe's.",
    "prior": "The claim of Table 2 that the prior's std does not matter: 0.05, 0.1 and 0.15, and beside them the recipe's.",
    "lipschitz": "The paper's motivation, Eq. (11) to (13): l_1 norm of the input gradient on training and on test images.",
    "kl": "Beyond the paper: Adv-BNN with the KL of all weights, from Table 2 as printed to what trains; failures are shown.",
    "all": "All that the paper shows or claims, and the report.",
}


def _run(piece, of, **more):
    from pyro_advbnn import evaluate  # here, as torch takes seconds that --help need not wait for
    from pyro_advbnn.experiments import reproduction

    programs = {"train": train} | {f"evaluate {name}": made for name, made in evaluate.VERBS.items()}
    reproduction.run(piece, of, programs, **more)


def _verb(piece):
    def verb(*, of: Reproduction):
        _run(piece, of)

    verb.__doc__ = _TOLD[piece]
    return python_calls.from_python(verb)


@python_calls.from_python
def beyond(*, seeds: list[Seed] | None = None, of: Reproduction):
    """Beyond the paper: Adv-BNNs and a mixture, each against adversarial training with the same means; a verdict by rule.

    Args:
        seeds: of the trainings, one of each for every seed; default --seed alone, which gives no verdict.
    """
    _run("beyond", of, seeds=seeds)


VERBS = {piece: _verb(piece) for piece in _TOLD} | {"beyond": beyond}


def main(argv=None, under=""):
    """The command, for words that are given or those of the process.   under: as of `commands.run`."""
    commands.run(VERBS, argv, under=under, way_on="the same command goes on")


if __name__ == "__main__":
    main()
