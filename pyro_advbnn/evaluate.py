"""python -m pyro_advbnn.evaluate VERB: what trained runs are worth, each figure of the paper, and one page of it all.

Every verb adds rows to a csv file below the results' folder as soon as it knows them, and never computes a row that is
there already: what was stopped goes on where it was.
"""
from pyro_advbnn.cli import commands
from pyro_advbnn.experiments.accuracy_verbs import accuracy, ensemble, steps, transfer
from pyro_advbnn.experiments.posterior_verbs import gradients, posterior
from pyro_advbnn.experiments.report_verb import write_report
from pyro_advbnn.experiments.robustness_verbs import check, robust
from pyro_advbnn.experiments.uncertainty_verb import uncertainty

VERBS = {
    "accuracy": accuracy,                                # Table 1, Fig. 2
    "transfer": transfer,                                # Fig. 3
    "ensemble": ensemble,                                # Fig. 5, left
    "steps": steps,                                      # Fig. 5, right
    "posterior": posterior,                              # Fig. 4
    "gradients": gradients,                              # Eq. (11) to (13)
    "robust": robust,
    "checks": check,
    "uncertainty": uncertainty,
    "report": write_report,
}


def main(argv=None, under=""):
    """The command, for words that are given or those of the process.   under: as of `commands.run`."""
    commands.run(VERBS, argv, under=under, way_on="the same command goes on and does not compute again what it has written")


if __name__ == "__main__":
    main()
