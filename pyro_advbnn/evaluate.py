"""python -m pyro_advbnn.evaluate VERB: what trained runs are worth, each figure of the paper, and one page of it all.

Every verb adds rows to a csv file below the results' folder as soon as it knows them, and never computes a row that is
there already: what was stopped goes on where it was.
"""
from typing import Annotated, Literal

from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.cli import commands, help, text_tables
from pyro_advbnn.cli.flag_types import Range
from pyro_advbnn.evaluation import weight_statistics
from pyro_advbnn.experiments import protocol, result_rows
from pyro_advbnn.experiments.robustness_verbs import check, robust
from pyro_advbnn.experiments.selection import Selection, Subjects, exclusive
from pyro_advbnn.experiments.uncertainty_verb import uncertainty
from pyro_advbnn.experiments.verbs import TWENTY_STEPS, Attack, Count, Radius, StepSize, chosen_step, draw_figures, finish, warn
from pyro_advbnn.reporting import report, summaries
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.training import recipes

_TABLES = {"epsilon": "accuracy", "alpha": "alpha", "prior_std": "prior_std", "run": "runs"}      # of accuracy, by --against


@exclusive
def accuracy(
    *,
    of: Selection,
    epsilons: list[Radius] | None = None,
    attack: Attack = TWENTY_STEPS,
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
    command = help.command_line("pyro_advbnn.evaluate accuracy", accuracy, locals())
    subjects = Subjects(of, _TABLES[against])
    epsilons = protocol.default_epsilons(subjects.dataset) if epsilons is None else list(dict.fromkeys(epsilons))
    rows = []
    warn([attack.pgd(subjects.dataset, epsilon) for epsilon in epsilons])
    for subject in subjects:
        for draws in sorted({subject.draws(count) for count in attack_samples}):
            for epsilon in epsilons:
                pgd = attack.pgd(subjects.dataset, epsilon, draws)
                rows.append(result_rows.white_box(subjects, subject, pgd, num_samples))
    finish(subjects, rows, command, [] if against == "run" else [_TABLES[against]], _COLUMNS)


@exclusive
def transfer(
    *,
    of: Selection,
    epsilon: Radius | None = None,
    attack: Attack = TWENTY_STEPS,
    attack_samples: Count = 1,
    num_samples: Count = 20,
):
    """Transfer attacks between all ordered pairs of runs, and their correlation rho, Eq. (14) (Fig. 3).

    rho(A->B) = (Acc[B] - Acc[B|A]) / (Acc[B] - Acc[B|B]): the share of B's loss of accuracy that an attack made on A
    brings. Where the drop below it is no larger than its 95% error, the cell tells the drop instead. One run alone gives its
    attack on itself, whose rho is 1.

    Args:
        epsilon: l_inf radius; default 0.06, as in the authors' script (imagenet143 0.02, digits 0.2).
        attack_samples: weight draws averaged in each attack gradient.
        num_samples: weight draws averaged in each prediction.
    """
    command = help.command_line("pyro_advbnn.evaluate transfer", transfer, locals())
    subjects = Subjects(of, "transfer")
    subjects.check_shared_images()
    epsilon = protocol.default_transfer_epsilon(subjects.dataset) if epsilon is None else epsilon
    rows = []
    warn([attack.pgd(subjects.dataset, epsilon)])
    for source in subjects:
        pgd = attack.pgd(subjects.dataset, epsilon, source.draws(attack_samples))
        rows += result_rows.transfer_from(subjects, source, pgd, num_samples)
    finish(subjects, result_rows.with_rates(subjects, rows), command, ["transfer"], {
        "source": lambda row: row["source"],
        "target": lambda row: row["run"],
        "rho": lambda row: row["note"] or f"{row['rho']:.2f}",
        "clean %": lambda row: f"{100 * row['accuracy_clean']:.1f}",
        "transferred %": text_tables.percent,
        "white-box %": lambda row: f"{100 * row['accuracy_white_box']:.1f}",
    })


@exclusive
def ensemble(
    *,
    of: Selection,
    epsilons: list[Radius] | None = None,
    num_samples: list[Count] = (1, 2, 3, 5, 10, 20, 50),
    attack: Attack = TWENTY_STEPS,
    attack_samples: Count = 1,
):
    """Accuracy against the number of draws that a prediction averages, all numbers from one pass (Fig. 5, left).

    Args:
        epsilons: l_inf radii; default 0,0.01,0.02 as in the paper (digits 0,0.1,0.2).
        num_samples: the numbers of draws.
        attack_samples: weight draws averaged in each attack gradient.
    """
    command = help.command_line("pyro_advbnn.evaluate ensemble", ensemble, locals())
    subjects = Subjects(of, "ensemble")
    epsilons = protocol.default_ensemble_epsilons(subjects.dataset) if epsilons is None else list(dict.fromkeys(epsilons))
    rows = []
    warn([attack.pgd(subjects.dataset, epsilon) for epsilon in epsilons])
    for subject in subjects:
        for epsilon in epsilons:
            pgd = attack.pgd(subjects.dataset, epsilon, subject.draws(attack_samples))
            rows += result_rows.ensemble(subjects, subject, pgd, num_samples)
    finish(subjects, rows, command, ["ensemble"], _COLUMNS)


@exclusive
def steps(
    *,
    of: Selection,
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
    command = help.command_line("pyro_advbnn.evaluate steps", steps, locals())
    subjects = Subjects(of, "steps")
    epsilon = recipes.training_epsilon(subjects.dataset) if epsilon is None else epsilon
    step = chosen_step(subjects.dataset, step_size)
    step = epsilon / 8 if step is None else step         # 2.5 epsilon / 20, whatever the number of steps
    warn([PGD(epsilon, step, max(num_steps))])
    rows = []
    for subject in subjects:
        for draws in sorted({subject.draws(count) for count in attack_samples}):
            pgd = PGD(epsilon, step, max(num_steps), draws)
            rows += result_rows.steps(subjects, subject, pgd, num_steps, num_samples)
    finish(subjects, rows, command, ["steps"], _COLUMNS)


@exclusive
def posterior(
    *,
    of: Selection,
    fractions: list[Annotated[float, Range(0, 1)]] = protocol.PRUNED_FRACTIONS,
    prune_by: list[Literal[weight_statistics.PRUNE_BY]] = weight_statistics.PRUNE_BY,
    save_fractions: list[Annotated[float, Range(0, 1)]] | None = None,
    epsilon: Radius | None = None,
    attack: Attack = TWENTY_STEPS,
    attack_samples: Count = 1,
    num_samples: Count = 20,
):
    """The posterior's log-std density with the prior's line (Fig. 4), by layer, signal-to-noise, and pruning by them.

    Pruned are the weights of the lowest |mean| / std, or of the largest std; then the accuracy, clean and under attack, of
    the averaged posterior and of the network at its mean is measured without them.

    Args:
        fractions: of all weights that are pruned.
        prune_by: which go first: signal_to_noise (the lowest), std (the largest).
        save_fractions: write the mean network pruned by these to pruned/RUN-CRITERION-FRACTION.pt, a plain state dict.
        epsilon: l_inf radius of the attack; default that of the data set's training.
        attack_samples: weight draws averaged in each attack gradient.
        num_samples: weight draws averaged in each prediction.
    """
    command = help.command_line("pyro_advbnn.evaluate posterior", posterior, locals())
    subjects = Subjects(of, "pruning", "density", "layers")
    epsilon = recipes.training_epsilon(subjects.dataset) if epsilon is None else epsilon
    pgd, rows = attack.pgd(subjects.dataset, epsilon, attack_samples), []
    warn([pgd])
    for subject in subjects:
        if not subject.is_bayesian:
            raise InputError(f"{subject.name} has no posterior: it was trained with --defense {subject.config['defense']}")
    for subject in subjects:
        result_rows.describe_posterior(subjects, subject)
        for by in prune_by:
            for fraction in fractions:
                rows += result_rows.pruned(subjects, subject, by, fraction, pgd, num_samples)
            for fraction in save_fractions or ():
                print(f"wrote {result_rows.save_pruned(subjects, subject, by, fraction)}")
    figures = ("log_std", "log_std_by_layer", "signal_to_noise", "pruning")
    finish(subjects, rows, command, figures, {
        "pruned by": lambda row: row["prune_by"],
        "fraction": lambda row: f"{row['fraction']:g}",
        "prediction": lambda row: row["prediction"],
        "epsilon": lambda row: f"{row['epsilon']:.5g}",
        "accuracy %": lambda row: text_tables.percent(row, interval=True),
    })


@exclusive
def gradients(*, of: Selection, num_samples: list[Count] = (1, 20)):
    """The mean l_1 norm of the loss's gradient by the image, on training and on test images (Eq. 11 to 13).

    What adversarial training regularises on the training images; whether the test images follow is the paper's argument
    for randomness. As many training images are taken as there are test images.

    Args:
        num_samples: weight draws that a gradient averages, one number or several.
    """
    command = help.command_line("pyro_advbnn.evaluate gradients", gradients, locals())
    subjects, rows = Subjects(of, "gradients"), []
    for subject in subjects:
        rows += result_rows.gradients(subjects, subject, num_samples)
    finish(subjects, rows, command, ["gradients"], {
        "split": lambda row: row["split"],
        "mean l_1 norm [95%]": lambda row: f"{row['l1_norm']:.4g} [{row['l1_norm_low']:.4g}, {row['l1_norm_high']:.4g}]",
        "draws": lambda row: row["num_samples"],
        "images": lambda row: row["num_examples"],
    })


@exclusive
def write_report(
    *,
    of: Selection,
    num_images: Annotated[int, Range(0, 50)] = 6,
    epsilon: Radius | None = None,
    attack: Attack = TWENTY_STEPS,
    attack_samples: Count = 1,
    num_samples: Count = 20,
):
    """One self-contained HTML page, report.html: what was run, all tables and figures there are, adversarial examples.

    The tables are written to tables/*.md too.

    Args:
        num_images: adversarial examples of each run: the first of a class-balanced choice by seed.
        epsilon: l_inf radius of their attack; default that of the data set's training.
        attack_samples: weight draws averaged in each attack gradient.
        num_samples: weight draws of each prediction.
    """
    command = help.command_line("pyro_advbnn.evaluate report", write_report, locals())
    subjects = Subjects(of, "examples")
    epsilon = recipes.training_epsilon(subjects.dataset) if epsilon is None else epsilon
    warn([attack.pgd(subjects.dataset, epsilon)])
    for subject in subjects if num_images else ():
        pgd = attack.pgd(subjects.dataset, epsilon, subject.draws(attack_samples))
        result_rows.examples(subjects, subject, pgd, num_samples, num_images)
    subjects.log(command)
    draw_figures(subjects.folder)
    for path in summaries.write(subjects.folder):
        print(f"wrote {path}")
    print(f"wrote {report.write(subjects.folder, _reported(subjects))}")


def _reported(subjects):
    """The run folders of the report: the subjects'; where these lie in OUT/runs, all that are there (None)."""
    folders = [subject.folder for subject in subjects]
    home = (subjects.folder / "runs").resolve()
    return None if all(folder.resolve().parent == home for folder in folders) else folders


_COLUMNS = {
    "epsilon": lambda row: f"{row['epsilon']:.5g}",
    "accuracy %": lambda row: text_tables.percent(row, interval=True),
    "steps x size": lambda row: f"{row['num_steps']} x {row['step_size']:.4g}",
    "reaches ball": lambda row: "yes" if row["reaches_ball"] else "no",
    "attack draws": lambda row: row["attack_samples"],
    "draws": lambda row: row["num_samples"],
    "images": lambda row: row["num_examples"],
}
VERBS = {"accuracy": accuracy, "transfer": transfer, "ensemble": ensemble, "steps": steps, "posterior": posterior,
         "gradients": gradients, "robust": robust, "checks": check, "uncertainty": uncertainty, "report": write_report}


def main(argv=None, under=""):
    """The command, for words that are given or those of the process.   under: as of `cli.run`."""
    commands.run(VERBS, argv, under=under, way_on="the same command goes on and does not compute again what it has written")


if __name__ == "__main__":
    main()
