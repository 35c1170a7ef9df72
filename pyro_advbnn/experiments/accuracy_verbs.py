"""Accuracy under white-box PGD and under attacks that are transferred: Table 1, Fig. 2, 3 and 5."""
from dataclasses import replace
from functools import partial
from typing import Literal

from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.cli.flag_types import Count
from pyro_advbnn.evaluation.accuracy import robust_accuracy
from pyro_advbnn.evaluation.sweeps import ensemble_accuracies, steps_accuracies, transfer_accuracies
from pyro_advbnn.experiments import protocol
from pyro_advbnn.experiments.verbs import AttackFlags, Radius, StepSize, chosen_step, finish, verb, warn
from pyro_advbnn.reporting.transfer_figure import with_rates
from pyro_advbnn.training import recipes

_TABLES = {"epsilon": "accuracy", "alpha": "alpha", "prior_std": "prior_std", "run": "runs"}     # by --against


@verb("accuracy")
def accuracy(
    runs,
    *,
    epsilons: list[Radius] | None = None,
    attack: AttackFlags,
    attack_samples: list[Count] = (1,),
    num_samples: Count = 20,
    against: Literal[tuple(_TABLES)] = "epsilon",
):
    """Accuracy of averaged predictions under white-box PGD, of one run or several in one figure (Table 1, Fig. 2).

    Prints a table with 95% Wilson intervals, adds its rows to evaluation/accuracy.csv and draws figures/accuracy.

    Args:
        epsilons: l_inf radii, as 0,8/255 or 0:0.07:0.005; default: those of the paper's Table 1 for the data set.
        attack_samples: weight draws averaged in each attack gradient, one number or several; 1 is the paper's weak
            attack, 10 and more are honest.
        num_samples: weight draws averaged in each prediction.
        against: what the figure has on its axis, for runs that differ in alpha or prior_std, or "run" for a table of runs of
            any kind, evaluation/runs.csv, without a figure; names the csv file too.
    """
    table = _TABLES[against]
    epsilons = protocol.default_epsilons(runs.dataset) if epsilons is None else list(dict.fromkeys(epsilons))
    attack.warn(runs.dataset, epsilons)
    rows = [white_box(runs, run, attack.pgd(runs.dataset, epsilon, draws), num_samples, table)
            for run in runs for draws in run.counts(attack_samples) for epsilon in epsilons]
    finish(runs, table, rows, [] if against == "run" else [table])


def white_box(runs, run, attack, num_samples, table="accuracy"):
    """The row of a run's accuracy under an attack on itself, from the table or computed and written to it."""
    num_samples = run.draws(num_samples)
    compute = partial(robust_accuracy, run.classifier, runs.batches(run), attack, num_samples=num_samples)
    return runs.row(table, f"{run.name} epsilon {attack.epsilon:g}", run.settings(attack, num_samples=num_samples), compute)


@verb("transfer")
def transfer(runs, *, epsilon: Radius | None = None, attack: AttackFlags, attack_samples: Count = 1, num_samples: Count = 20):
    """Transfer attacks between all ordered pairs of runs, and their correlation rho, Eq. (14) (Fig. 3).

    rho(A->B) = (Acc[B] - Acc[B|A]) / (Acc[B] - Acc[B|B]): the share of B's loss of accuracy that an attack made on A
    brings. Where the drop below it is no larger than its 95% error, the cell tells the drop instead. One run alone gives its
    attack on itself, whose rho is 1.

    Args:
        epsilon: l_inf radius; default 0.06, as in the authors' script (imagenet143 0.02, digits 0.2).
        attack_samples: weight draws averaged in each attack gradient.
        num_samples: weight draws averaged in each prediction.
    """
    runs.check_shared_images()
    epsilon = protocol.default_transfer_epsilon(runs.dataset) if epsilon is None else epsilon
    attack.warn(runs.dataset, [epsilon])
    rows = []
    for source in runs:
        rows += _from(runs, source, attack.pgd(runs.dataset, epsilon, source.draws(attack_samples)), num_samples)
    finish(runs, "transfer", _with_rates(runs, rows), ["transfer"])


def _from(runs, source, attack, num_samples):
    """Rows of Acc[B] and Acc[B|A] for the source A and every target B."""
    draws = {run.name: run.draws(num_samples) for run in runs}
    origin = {"source": source.name, "source_checkpoint": source.fields["checkpoint"],
              "source_weights": source.fields["weights"]}
    wanted = [target.settings(attack, num_samples=draws[target.name], **origin) for target in runs]

    def compute(progress):
        clean = [_clean_accuracy(runs, target, draws[target.name]) for target in runs]
        rows = transfer_accuracies(source.classifier, {run.name: run.classifier for run in runs},
                                   runs.batches(source), attack, num_samples=draws, progress=progress)
        return [row | {"accuracy_clean": known} for row, known in zip(rows.values(), clean, strict=True)]

    return runs.rows("transfer", f"from {source.name}", wanted, compute)


def _clean_accuracy(runs, run, num_samples):
    known = runs.table("transfer").select(**run.fields, num_samples=num_samples, **run.image_fields)
    if known:
        return known[0]["accuracy_clean"]
    with runs.measuring(f"{run.name} clean", len(run.images)) as progress:
        return robust_accuracy(run.classifier, runs.batches(run), num_samples=num_samples, progress=progress)["accuracy"]


def _with_rates(runs, rows):
    """The rows of all sources, each with Acc[B|B] and rho; written to the table where they are not there yet."""
    complete = with_rates(rows)
    new = [full for full, row in zip(complete, rows, strict=True) if row["accuracy_white_box"] is None]
    if new:
        runs.table("transfer").add(new)
    return complete


@verb("ensemble")
def ensemble(
    runs,
    *,
    epsilons: list[Radius] | None = None,
    num_samples: list[Count] = protocol.ENSEMBLE_DRAWS,
    attack: AttackFlags,
    attack_samples: Count = 1,
):
    """Accuracy against the number of draws that a prediction averages, all numbers from one pass (Fig. 5, left).

    Args:
        epsilons: l_inf radii; default 0,0.01,0.02 as in the paper (digits 0,0.1,0.2).
        num_samples: the numbers of draws.
        attack_samples: weight draws averaged in each attack gradient.
    """
    epsilons = protocol.default_ensemble_epsilons(runs.dataset) if epsilons is None else list(dict.fromkeys(epsilons))
    attack.warn(runs.dataset, epsilons)
    rows = []
    for run in runs:
        counts = run.counts(num_samples)
        for epsilon in epsilons:
            pgd = attack.pgd(runs.dataset, epsilon, run.draws(attack_samples))
            rows += runs.rows("ensemble", f"{run.name} epsilon {epsilon:g}",
                              [run.settings(pgd, num_samples=count) for count in counts],
                              partial(ensemble_accuracies, run.classifier, runs.batches(run), pgd, counts))
    finish(runs, "ensemble", rows, ["ensemble"])


@verb("steps")
def steps(
    runs,
    *,
    epsilon: Radius | None = None,
    num_steps: list[Count] = protocol.FIGURE_5_STEPS,
    step_size: StepSize = None,
    attack_samples: list[Count] = (1,),
    num_samples: Count = 20,
):
    """Accuracy against the number of PGD steps, read at each number off one attack (Fig. 5, right).

    Args:
        epsilon: l_inf radius; default that of the data set's training.
        num_steps: the numbers of steps.
        step_size: PGD step, the same for all; auto = epsilon / 8; default 0.007 on cifar10, stl10 and imagenet143, else
            auto.
        attack_samples: weight draws averaged in each attack gradient, one number or several.
        num_samples: weight draws averaged in each prediction.
    """
    epsilon = recipes.training_epsilon(runs.dataset) if epsilon is None else epsilon
    step = chosen_step(runs.dataset, step_size)
    step = epsilon / 8 if step is None else step         # 2.5 epsilon / 20, whatever the number of steps
    warn([PGD(epsilon, step, max(num_steps))])
    rows = []
    for run in runs:
        averaged = run.draws(num_samples)
        for draws in run.counts(attack_samples):
            pgd = PGD(epsilon, step, max(num_steps), draws)
            wanted = [run.settings(replace(pgd, num_steps=count), num_samples=averaged) for count in sorted(set(num_steps))]
            rows += runs.rows("steps", f"{run.name} to step {max(num_steps)}", wanted, partial(
                steps_accuracies, run.classifier, runs.batches(run), pgd, num_steps, num_samples=averaged))
    finish(runs, "steps", rows, ["steps"])
