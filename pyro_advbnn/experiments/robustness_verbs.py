"""The verbs of evaluate that put a robustness figure to the test: an ensemble of attacks, and the signs of a weak one."""
import time
from typing import Annotated, Literal

from pyro_advbnn.attacks import catalogue
from pyro_advbnn.attacks.balls import BALLS
from pyro_advbnn.attacks.losses import AVERAGES
from pyro_advbnn.cli import help, text_tables
from pyro_advbnn.cli.flag_types import Minutes, Queries, Range
from pyro_advbnn.evaluation import checks, worst_case
from pyro_advbnn.evaluation.accuracy import attack_fields
from pyro_advbnn.experiments.selection import Selection, Subjects, exclusive
from pyro_advbnn.experiments.verbs import Count, finish
from pyro_advbnn.reporting import robustness_summaries
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.training import recipes

TABLES = ("robust", "robust_examples", "checks", "many_draws")
PositiveRadius = Annotated[float, Range(0, 10_000, open_low=True)]


@exclusive
def robust(
    *,
    of: Selection,
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

    An image is broken where the averaged prediction over fresh draws is wrong; what is so by two standard errors leaves the
    later attacks, and is counted on other draws. Rows per image go to evaluation/robust_examples.csv as they come, the
    result to evaluation/robust.csv; a command that was stopped goes on where it was.

    Args:
        epsilon: radius; default that of the data set's training (l2: 0.5).
        norm: of the perturbation, linf or l2.
        attacks: in this order, of noise, fgsm, pgd, pgd-margin, pgd-momentum, pgd-probability, apgd-ce, apgd-dlr, square and
            cw (l2); NAME@mean attacks the network at the posterior's mean instead, NAME@pool:M an ensemble of M fixed
            draws; default noise,apgd-ce@mean,apgd-ce@pool:10,pgd,apgd-ce,apgd-dlr,square, as far as they make sense.
        num_steps: of each gradient attack (cw: five times as many, in each of six searches).
        attack_samples: weight draws averaged in each gradient, each query and each comparison of noises.
        average: over the draws of the loss's gradient, or of the probability (one answer, one gradient); square and cw always
            take the probability.
        num_queries: of square.
        num_samples: weight draws averaged in each prediction, once to judge and once to count.
        max_minutes: start no further batch after this time; the result is then that of what was tried.
    """
    command = help.command_line("pyro_advbnn.evaluate robust", robust, locals())
    subjects = Subjects(of, "robust", "robust_examples")
    epsilon = epsilon or (recipes.training_epsilon(subjects.dataset) if norm == "linf" else 0.5)
    if norm == "linf" and epsilon > 1:
        raise InputError(f"--epsilon must be a number in (0, 1], the range of the images, got {epsilon:g}")
    ends = time.monotonic() + 60 * max_minutes if max_minutes else None
    ensemble = {subject.name: _ensemble(subject, attacks, catalogue.Strength(
        epsilon, num_steps, subject.draws(attack_samples), num_queries, norm, average)) for subject in subjects}
    rows = [_break(subjects, subject, *ensemble[subject.name], subject.draws(num_samples), ends) for subject in subjects]
    finish(subjects, rows, command, [], {
        "norm": lambda row: row["norm"],
        "epsilon": lambda row: f"{row['epsilon']:.5g}",
        "accuracy %": lambda row: text_tables.percent(row, interval=True),
        "one draw %": lambda row: f"{100 * row['single_draw_accuracy']:.1f}",
        "attacks": robustness_summaries.attacks,
        "attack draws": lambda row: row["attack_samples"],
        "draws": lambda row: row["num_samples"],
        "images": lambda row: row["num_examples"],
    })


@exclusive
def check(
    *,
    of: Selection,
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
    command = help.command_line("pyro_advbnn.evaluate checks", check, locals())
    subjects = Subjects(of, "checks", "many_draws")
    epsilon = recipes.training_epsilon(subjects.dataset) if epsilon is None else epsilon
    rows = [row for subject in subjects for row in _examined(
        subjects, subject, dict(epsilon=epsilon, num_steps=num_steps, attack_samples=subject.draws(attack_samples),
                                num_samples=subject.draws(num_samples), num_queries=num_queries))]
    for subject in subjects:
        verdicts = [row["verdict"] for row in rows if row["run"] == subject.name]
        print(f"{subject.name}: " + ", ".join(f"{verdicts.count(name)} {name}" for name in dict.fromkeys(sorted(verdicts))))
    finish(subjects, rows, command, ["many_draws"],
           {name: lambda row, name=name: row[name] for name in ("check", "verdict", "measured", "expected")})


def _ensemble(subject, names, strength):
    if names is None:
        names = catalogue.default_names(subject.is_random, subject.is_bayesian, subject.config["num_classes"], strength.norm)
    return catalogue.build(names, strength), strength


def _break(subjects, subject, attacks, strength, num_samples, ends):
    """Attack, write every batch's rows at once, print the course and write the result."""
    result, examples = subjects.tables
    settings = subject.fields | vars(strength) | _images(subjects, subject) | {"num_samples": num_samples}
    classes, rows, computed = subject.config["class_names"], [], 0
    known = {(row["attack"], row["index"]): row for row in examples.select(**settings)}
    with subjects.measuring(subject.name, len(subject.images)) as bar:
        for name, found in worst_case.attacked(subject.classifier, subjects.batches(subject.images), attacks,
                                               num_samples=num_samples, seed=subjects.seed, known=_lookup(known),
                                               stop=lambda: ends and time.monotonic() > ends):
            if not _lookup(known)(name, [row["index"] for row in found]):
                computed += len(found)
                examples.add([settings | row | {name: classes[row[name]] for name in ("label", "predicted")} for row in found])
            rows += found
            bar(*_progress(rows))
    open_ones = worst_case.unfinished(rows, attacks, len(subject.images))
    _tell(subject, rows, [worst_case.CLEAN, *attacks], open_ones)
    row = settings | {"attacks": " ".join(attacks)} | worst_case.summary(rows) | {
        "tried": " ".join(name for name in attacks if name not in open_ones)}
    if computed or result.find(row) is None:
        subjects.write(result, [row])
    return result.find(row)


def _progress(rows):
    """(images tried at all, those of them that stand) for the bar."""
    found = worst_case.worst_rows(rows).values()
    return len(found), sum(not row["broken"] for row in found)


def _lookup(known):
    def rows(name, indices):
        found = [known.get((name, index)) for index in indices]
        return found if all(found) else None
    return rows


def _tell(subject, rows, names, open_ones):
    print(f"{subject.name}: accuracy in the worst case, after each attack")
    print(text_tables.table(worst_case.course(rows, [name for name in names if any(row["attack"] == name for row in rows)]), {
        "attack": lambda row: row["attack"],
        "images": lambda row: row["num_attacked"],
        "left": lambda row: row["num_removed"],
        "accuracy %": lambda row: text_tables.percent(row, interval=True),
        "one draw %": lambda row: f"{100 * row['single_draw_accuracy']:.1f}",
        "draws differ %": lambda row: f"{100 * row['undecided']:.1f}",
        "seconds": lambda row: f"{row['seconds']:.1f}",
    }))
    if open_ones:
        print(f"the time was up before {', '.join(open_ones)} had seen all images: the same command goes on")


def _examined(subjects, subject, settings):
    """The rows of all checks; those that are not in the table are measured and written, one by one."""
    table, many_draws = subjects.tables
    exam = checks.Examination(subject.classifier, subjects.batches(subject.images), seed=subjects.seed,
                              paper_step=recipes.default_step_size(subjects.dataset), **settings)
    shared = subject.fields | {"num_samples": exam.num_samples} | _images(subjects, subject)
    settings, rows = shared | settings, []
    with subjects.measuring(subject.name, len(checks.CHECKS)) as bar:
        for name, measure in checks.CHECKS.items():
            if table.find(settings | {"check": name}) is None:
                subjects.write(table, [settings | {"check": name} | vars(measure(exam))])
            rows.append(table.find(settings | {"check": name}))
            bar(len(rows), sum(row["verdict"] == checks.HELD for row in rows))
        for attack in checks.many_draws(exam):
            row = shared | {"source": "target"} | attack_fields(attack)
            if many_draws.find(row) is None:
                subjects.write(many_draws, [row | exam.accuracy(attack)])
    return rows


def _images(subjects, subject):
    return {"num_examples": len(subject.images), "images": subject.digest, "batch_size": subjects.selection.batch_size,
            "seed": subjects.seed}
