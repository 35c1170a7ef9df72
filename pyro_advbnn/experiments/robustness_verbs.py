"""The verbs of evaluate that put a robustness figure to the test: an ensemble of attacks, and the signs of a weak one."""
import time
from collections import Counter
from typing import Annotated, Literal

from pyro_advbnn.attacks import catalogue
from pyro_advbnn.attacks.balls import BALLS
from pyro_advbnn.attacks.losses import AVERAGES
from pyro_advbnn.cli import text_tables
from pyro_advbnn.cli.flag_types import Count, Minutes, Queries, Range
from pyro_advbnn.evaluation import checks, worst_case
from pyro_advbnn.evaluation.examination import Examination
from pyro_advbnn.experiments.verbs import finish, verb
from pyro_advbnn.training import recipes

PositiveRadius = Annotated[float, Range(0, 10_000, open_low=True)]


@verb("robust")
def robust(
    runs,
    *,
    epsilon: PositiveRadius | None = None,
    norm: Literal[tuple(BALLS)] = "linf",
    attacks: list[str] | None = None,
    num_steps: Count = 40,
    attack_samples: Count = 20,
    average: Literal[AVERAGES] = "gradient",
    num_queries: Queries = 1000,
    num_samples: Count = 20,
    max_minutes: Minutes | None = None,
):
    """Accuracy in the worst case over an ensemble of attacks at one radius, image by image.

    An image is broken where the averaged prediction over fresh draws is wrong; what is so by four standard errors leaves
    the later attacks, and is counted on other draws. Rows per image go to evaluation/robust_examples.csv as they come, the
    result to evaluation/robust.csv; a command that was stopped goes on where it was.

    Args:
        epsilon: radius, of linf at most 1; default that of the data set's training (l2: 0.5).
        norm: of the perturbation, linf or l2.
        attacks: in this order, of noise, fgsm, pgd, pgd-margin, pgd-momentum, pgd-probability, apgd-ce, apgd-dlr,
            apgd-margin, apgd-t, square and cw (l2); apgd-t stands for apgd-t1 to apgd-t9, each led to another of the likeliest
            wrong classes, as in AutoAttack; NAME@mean attacks the network at the posterior's mean instead, NAME@pool:M an
            ensemble of M fixed draws; default noise,apgd-ce@mean,apgd-ce@pool:10,pgd,apgd-ce,apgd-dlr,apgd-t@mean,square, as
            far as they make sense (apgd-t without a posterior; of two classes apgd-margin for apgd-dlr).
        num_steps: of each gradient attack (cw: five times as many, in each of six searches).
        attack_samples: weight draws averaged in each gradient, each query and each comparison of noises.
        average: over the draws of the loss's gradient, or of the probability (one answer, one gradient); square and cw always
            take the probability.
        num_queries: of square.
        num_samples: weight draws averaged in each prediction, once to judge and once to count.
        max_minutes: start no further batch after this time; the result is then that of what was tried.
    """
    epsilon = epsilon or (recipes.training_epsilon(runs.dataset) if norm == "linf" else 0.5)
    ends = time.monotonic() + 60 * max_minutes if max_minutes else None
    ensembles = [_ensemble(run, attacks, catalogue.Strength(
        epsilon, num_steps, run.draws(attack_samples), num_queries, norm, average)) for run in runs]
    rows = [_break(runs, run, *ensemble, run.draws(num_samples), ends) for run, ensemble in zip(runs, ensembles, strict=True)]
    finish(runs, "robust", rows, [])


@verb("checks")
def check(
    runs,
    *,
    epsilon: Annotated[float | None, Range(0, 1, open_low=True)] = None,
    num_steps: Count = 20,
    attack_samples: Count = 20,
    num_samples: Count = 20,
    num_queries: Queries = 500,
):
    """The signs of a broken evaluation, each measured: held, did not hold, could not tell, does not apply.

    The attack under test is PGD with num_steps steps of 2.5 epsilon / num_steps and attack_samples draws per gradient.
    evaluation/checks.csv takes the verdicts, evaluation/many_draws.csv and the figure many_draws the accuracy against the
    number of draws per gradient.

    Args:
        epsilon: l_inf radius; default that of the data set's training.
        num_steps: PGD steps.
        attack_samples: weight draws averaged in each gradient.
        num_samples: weight draws averaged in each prediction.
        num_queries: of the black-box search (Square).
    """
    epsilon = recipes.training_epsilon(runs.dataset) if epsilon is None else epsilon
    rows = []
    for run in runs:
        found = _examined(runs, run, dict(epsilon=epsilon, num_steps=num_steps, attack_samples=run.draws(attack_samples),
                                          num_samples=run.draws(num_samples), num_queries=num_queries))
        verdicts = Counter(sorted(row["verdict"] for row in found))
        print(f"{run.name}: " + ", ".join(f"{number} {name}" for name, number in verdicts.items()))
        rows += found
    finish(runs, "checks", rows, ["many_draws"])


def _ensemble(run, names, strength):
    if names is None:
        has_mean = run.is_bayesian or run.is_mixture
        names = catalogue.default_names(run.is_random, has_mean, run.config["num_classes"], strength.norm)
    return catalogue.build(catalogue.spelled_out(names, run.config["num_classes"]), strength), strength


def _break(runs, run, attacks, strength, num_samples, ends):
    """Attack, write every batch's rows at once, print the course and write the result."""
    results = runs.table("robust")                       # one that cannot take the result is refused here
    settings = run.fields | vars(strength) | run.image_fields | {"num_samples": num_samples}
    rows, computed = _attacked(runs, run, attacks, settings, ends)
    open_ones = worst_case.unfinished(rows, attacks, len(run.images))
    _tell(run, rows, [worst_case.CLEAN, *attacks], open_ones)
    row = settings | {"attacks": " ".join(attacks)} | worst_case.summary(rows) | {
        "tried": " ".join(name for name in attacks if name not in open_ones)}
    known = results.find(row)
    if computed or not known or known["tried"] != row["tried"]:
        runs.add("robust", [row])
    return results.find(row)


def _attacked(runs, run, attacks, settings, ends):
    """(the rows of all images and attacks, whether some of them were not in the table yet), until the clock shows `ends`."""
    classes, rows, computed = run.config["class_names"], [], False
    before = {(row["attack"], row["index"]): row for row in runs.table("robust_examples").select(**settings)}

    def known(name, indices):
        return [before[name, index] for index in indices if (name, index) in before]

    with runs.measuring(run.name, len(run.images)) as progress:
        for name, found in worst_case.attacked(run.classifier, runs.batches(run), attacks,
                                               num_samples=settings["num_samples"], seed=runs.seed, known=known,
                                               stop=lambda: ends and time.monotonic() > ends):
            new = [row for row in found if (name, row["index"]) not in before]
            if new:
                computed = True
                runs.add("robust_examples", [settings | row | {name: classes[row[name]] for name in ("label", "predicted")}
                                             for row in new])
            rows += found
            worst = worst_case.worst_rows(rows).values()
            progress(len(worst), sum(not row["broken"] for row in worst))
    return rows, computed


def _tell(run, rows, names, open_ones):
    print(f"{run.name}: accuracy in the worst case, after each attack")
    print(text_tables.table(worst_case.course(rows, [name for name in names if any(row["attack"] == name for row in rows)]), {
        "attack": lambda row: row["attack"],
        "images": lambda row: row["num_attacked"],
        "removed": lambda row: row["num_removed"],
        "accuracy %": text_tables.with_interval,
        "unbroken %": lambda row: text_tables.share(row["unbroken"]),
        "one draw %": lambda row: text_tables.share(row["single_draw_accuracy"]),
        "draws differ %": lambda row: text_tables.share(row["undecided"]),
        "seconds": lambda row: f"{row['seconds']:.1f}",
    }))
    if open_ones:
        print(f"the time was up before {', '.join(open_ones)} had seen all images: the same command goes on")


def _examined(runs, run, settings):
    """The rows of all checks; those that are not in the table are measured and written, one by one."""
    examination = Examination(run.classifier, runs.batches(run), seed=runs.seed,
                              paper_step=recipes.default_step_size(runs.dataset), **settings)
    settings, rows, table = run.fields | run.image_fields | settings, [], runs.table("checks")
    with runs.measuring(run.name, len(checks.CHECKS), "check") as progress:
        for name, measure in checks.CHECKS.items():
            wanted = settings | {"check": name}
            if not table.find(wanted):
                runs.add("checks", [wanted | vars(measure(examination))])
            rows.append(table.find(wanted))
            progress(len(rows))
        for attack in checks.many_draws(examination):
            wanted = run.settings(attack, num_samples=examination.num_samples)
            if not runs.known("many_draws", [wanted]):
                runs.add("many_draws", [wanted | examination.accuracy(attack)])
    return rows
