"""The verb `report` of evaluate: adversarial examples, all tables and figures there are, one page of it all."""
import hashlib
from typing import Annotated

from pyro_advbnn import datasets
from pyro_advbnn.cli.flag_types import Count, Range
from pyro_advbnn.evaluation import examples
from pyro_advbnn.experiments.verbs import AttackFlags, Radius, draw_figures, verb
from pyro_advbnn.reporting import report, summaries
from pyro_advbnn.training import recipes


@verb("report")
def write_report(
    runs,
    *,
    num_images: Annotated[int, Range(0, 50)] = 6,
    epsilon: Radius | None = None,
    attack: AttackFlags,
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
    epsilon = recipes.training_epsilon(runs.dataset) if epsilon is None else epsilon
    attack.warn(runs.dataset, [epsilon])
    for run in runs if num_images else ():
        _examples(runs, run, attack.pgd(runs.dataset, epsilon, run.draws(attack_samples)), num_samples, num_images)
    draw_figures(runs.folder)
    for path in summaries.write(runs.folder):
        print(f"wrote {path}")
    print(f"wrote {report.write(runs.folder, _reported(runs))}")


def _examples(runs, run, attack, num_samples, num_images):
    """Write adversarial examples of a class-balanced choice of the images, with pictures under names of their own."""
    images = datasets.balanced_subset(run.images, min(num_images, len(run.images)), runs.seed).in_memory()
    wanted = run.fields | examples.settings(attack) | {
        "num_samples": run.draws(num_samples), "seed": runs.seed, "num_examples": len(images), "images": run.digest}
    home = runs.folder / "evaluation"
    stem = f"examples/{run.name}-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:8]}"
    known = runs.table("examples").select(**wanted)
    if known and all((home / row[f"{name}_image"]).is_file() for row in known for name in examples.PICTURES):
        return
    with runs.measuring(run.name, len(images)):
        rows = examples.make(run.classifier, images, attack, run.draws(num_samples), home, stem)
    runs.add("examples", [wanted | row for row in rows])


def _reported(runs):
    """The run folders of the report: those of runs; where these lie in OUT/runs, all that are there (None)."""
    home = (runs.folder / "runs").resolve()
    return None if all(folder.resolve().parent == home for folder in runs.folders) else runs.folders
