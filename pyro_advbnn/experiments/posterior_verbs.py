"""What a posterior holds (Fig. 4), what is left of it without some weights, and the gradients that it averages."""
from functools import partial
from typing import Annotated, Literal

from pyro_advbnn import datasets
from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.bayes.classifier import Classifier
from pyro_advbnn.cli.flag_types import Count, Range
from pyro_advbnn.evaluation import weight_statistics
from pyro_advbnn.evaluation.accuracy import robust_accuracy
from pyro_advbnn.evaluation.inputs import NotFiniteAnswer
from pyro_advbnn.evaluation.sweeps import gradient_norms
from pyro_advbnn.experiments import protocol
from pyro_advbnn.experiments.images import image_digest
from pyro_advbnn.experiments.verbs import AttackFlags, Radius, finish, verb
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.training import checkpoints, recipes
from pyro_advbnn.training.configuration import images_of


@verb("posterior")
def posterior(
    runs,
    *,
    fractions: list[Annotated[float, Range(0, 1)]] = protocol.PRUNED_FRACTIONS,
    prune_by: list[Literal[weight_statistics.PRUNE_BY]] = weight_statistics.PRUNE_BY,
    save_fractions: list[Annotated[float, Range(0, 1)]] | None = None,
    epsilon: Radius | None = None,
    attack: AttackFlags,
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
    for run in runs:
        if run.is_mixture:
            raise InputError(f"{run.name} has no posterior of its own: it is a mixture; give its runs as --runs")
        if not run.is_bayesian:
            raise InputError(f"{run.name} has no posterior: it was trained with --defense {run.config['defense']}")
    epsilon = recipes.training_epsilon(runs.dataset) if epsilon is None else epsilon
    attack.warn(runs.dataset, [epsilon])
    pgd, rows = attack.pgd(runs.dataset, epsilon, attack_samples), []
    for run in runs:
        _describe(runs, run)
        for by in prune_by:
            for fraction in fractions:
                rows += _pruned(runs, run, by, fraction, pgd, num_samples)
            for fraction in save_fractions or ():
                print(f"wrote {_save_pruned(runs, run, by, fraction)}")
    finish(runs, "pruning", rows, ("log_std", "log_std_by_layer", "signal_to_noise", "pruning"))


def _describe(runs, run):
    """Write the density of log std and of signal-to-noise, and the summary by layer."""
    fields = run.fields | {"network": run.config["network"]}               # in whatever precision it computes
    for table, described in (("density", weight_statistics.density_rows), ("layers", weight_statistics.layer_rows)):
        if not runs.table(table).select(**fields):
            runs.add(table, [fields | row for row in described(run.classifier)])


def _pruned(runs, run, by, fraction, attack, num_samples):
    """Rows without the pruned weights: averaged posterior and mean network, clean and attacked; none where that answers NaN."""
    rest, rows, label = weight_statistics.prune(run.classifier, fraction, by), [], f"{run.name} without {fraction:g} by {by}"
    for prediction, classifier in {"posterior": rest, "mean": Classifier(rest.mean_network())}.items():
        draws, attack_samples = (num_samples, attack.attack_samples) if prediction == "posterior" else (1, 1)
        for epsilon in dict.fromkeys((0.0, attack.epsilon)):
            tried = PGD(epsilon, attack.step_size, attack.num_steps, attack_samples)
            wanted = run.settings(tried, num_samples=draws, prune_by=by, fraction=fraction, prediction=prediction)
            compute = partial(robust_accuracy, classifier, runs.batches(run), tried, num_samples=draws)
            try:
                rows.append(runs.row("pruning", label, wanted, compute))
            except NotFiniteAnswer as error:              # as where a weight is divided by its norm
                print(f"note: {label}, {prediction}: left out, as {error}")
                break
    return rows


def _save_pruned(runs, run, by, fraction):
    """Write the mean network without the pruned weights as a plain state dict; its path."""
    path = runs.folder / "pruned" / f"{run.name}-{by}-{fraction:g}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save_state_dict(path, weight_statistics.prune(run.classifier, fraction, by).mean_network())
    return path


@verb("gradients")
def gradients(runs, *, num_samples: list[Count] = (1, 20)):
    """The mean l_1 norm of the loss's gradient by the image, on training and on test images (Eq. 11 to 13).

    What adversarial training regularises on the training images; whether the test images follow is the paper's argument
    for randomness. As many training images are taken as there are test images.

    Args:
        num_samples: weight draws that a gradient averages, one number or several.
    """
    for run in runs:
        if run.is_mixture:
            raise InputError(f"{run.name} has no training images of its own: it is a mixture; give its runs as --runs")
    rows = [row for run in runs for row in _gradients(runs, run, run.counts(num_samples))]
    finish(runs, "gradients", rows, ["gradients"])


def _gradients(runs, run, counts):
    train, _ = images_of(run.config, "cpu", runs.selection.data_dir)
    if len(train) > len(run.images):
        train = datasets.stratified_subset(train, len(run.images), runs.seed)
    rows = []
    for split, images, digest in (("train", train.to(runs.device), image_digest(train)),
                                  (runs.selection.split, run.images, run.digest)):
        for draws in counts:
            wanted = run.fields | run.image_fields | {"split": split, "num_samples": draws, "num_examples": len(images),
                                                      "images": digest}
            compute = partial(gradient_norms, run.classifier, runs.batches(run, images), num_samples=draws)
            rows.append(runs.row("gradients", f"{run.name} {split}", wanted, compute))
    return rows
