"""Rows of evidence about subjects: computed where they are not in their table yet, written as soon as they are known."""
import hashlib
from functools import partial

from pyro_advbnn import datasets
from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.bayes.classifier import Classifier
from pyro_advbnn.evaluation import examples as adversarial_examples
from pyro_advbnn.evaluation import weight_statistics
from pyro_advbnn.evaluation.accuracy import attack_fields, robust_accuracy
from pyro_advbnn.evaluation.sweeps import (
    ensemble_accuracies,
    gradient_norms,
    steps_accuracies,
    transfer_accuracies,
    transfer_rate,
)
from pyro_advbnn.experiments.evaluated_images import image_digest, training_images
from pyro_advbnn.training import checkpoints
from pyro_advbnn.training.run_folders import check_writable


def white_box(subjects, subject, attack, num_samples):
    """The row of accuracy under an attack on the subject itself."""
    num_samples = subject.draws(num_samples)
    wanted = _settings(subjects, subject, attack, num_samples=num_samples)
    compute = partial(robust_accuracy, subject.classifier, subjects.batches(subject.images), attack, num_samples=num_samples)
    return _row(subjects, f"{subject.name} epsilon {attack.epsilon:g}", wanted, compute)


def ensemble(subjects, subject, attack, counts):
    """Rows of accuracy for each number of draws in a prediction."""
    counts = sorted({subject.draws(count) for count in counts})
    wanted = [_settings(subjects, subject, attack, num_samples=count) for count in counts]
    compute = partial(ensemble_accuracies, subject.classifier, subjects.batches(subject.images), attack, counts)
    return _rows(subjects, f"{subject.name} epsilon {attack.epsilon:g}", wanted, compute)


def steps(subjects, subject, attack, counts, num_samples):
    """Rows of accuracy for each number of steps of one attack."""
    num_samples = subject.draws(num_samples)
    wanted = [_settings(subjects, subject, attack.with_num_steps(count), num_samples=num_samples)
              for count in sorted(set(counts))]
    compute = partial(steps_accuracies, subject.classifier, subjects.batches(subject.images), attack, counts,
                      num_samples=num_samples)
    return _rows(subjects, f"{subject.name} to step {max(counts)}", wanted, compute)


def transfer_from(subjects, source, attack, num_samples):
    """Rows of Acc[B] and Acc[B|A] for the source A and every target B."""
    draws = {subject.name: subject.draws(num_samples) for subject in subjects}
    wanted = [_settings(subjects, target, attack, num_samples=draws[target.name])
              | {"source": source.name, "source_checkpoint": source.fields["checkpoint"],
                 "source_weights": source.fields["weights"]} for target in subjects]

    def compute(progress):
        clean = [_clean_accuracy(subjects, target, draws[target.name]) for target in subjects]
        rows = transfer_accuracies(source.classifier, {subject.name: subject.classifier for subject in subjects},
                                   subjects.batches(source.images), attack, num_samples=draws, progress=progress)
        return [row | {"accuracy_clean": known} for row, known in zip(rows.values(), clean, strict=True)]

    return _rows(subjects, f"from {source.name}", wanted, compute)


def with_rates(subjects, rows):
    """The rows of all sources, each with Acc[B|B] and rho; written to the table where they are not there yet."""
    white_box = {row["run"]: row["accuracy"] for row in rows if row["source"] == row["run"]}
    complete = []
    for row in rows:
        rate, note = transfer_rate(row["accuracy_clean"], row["accuracy"], white_box[row["run"]], row["num_examples"])
        complete.append(row | {"accuracy_white_box": white_box[row["run"]], "rho": rate, "note": note or None})
    if any(row["accuracy_white_box"] is None for row in rows):
        subjects.tables[0].add(complete)
    return complete


def describe_posterior(subjects, subject):
    """Write the density of log std and of signal-to-noise, and the summary by layer."""
    _, density, layers = subjects.tables
    if not density.select(**subject.fields):
        subjects.write(density, [subject.fields | row for row in weight_statistics.density_rows(subject.classifier)])
    if not layers.select(**subject.fields):
        subjects.write(layers, [subject.fields | row for row in weight_statistics.layer_rows(subject.classifier)])


def pruned(subjects, subject, by, fraction, attack, num_samples):
    """Rows without the pruned weights: averaged posterior and mean network, clean and attacked."""
    rest, rows = weight_statistics.prune(subject.classifier, fraction, by), []
    for prediction, classifier in {"posterior": rest, "mean": Classifier(rest.mean_network())}.items():
        draws, attack_samples = (num_samples, attack.attack_samples) if prediction == "posterior" else (1, 1)
        for epsilon in dict.fromkeys((0.0, attack.epsilon)):
            tried = PGD(epsilon, attack.step_size, attack.num_steps, attack_samples)
            wanted = _settings(subjects, subject, tried, num_samples=draws, prune_by=by, fraction=fraction,
                               prediction=prediction)
            compute = partial(robust_accuracy, classifier, subjects.batches(subject.images), tried, num_samples=draws)
            rows.append(_row(subjects, f"{subject.name} without {fraction:g} by {by}", wanted, compute))
    return rows


def save_pruned(subjects, subject, by, fraction):
    """Write the mean network without the pruned weights as a plain state dict; its path."""
    path = subjects.folder / "pruned" / f"{subject.name}-{by}-{fraction:g}.pt"
    check_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save_state_dict(path, weight_statistics.prune(subject.classifier, fraction, by).mean_network())
    return path


def gradients(subjects, subject, counts):
    """Rows of the input gradient's mean l_1 norm, on training images and on as many others, for each number of draws."""
    train, _ = training_images(subject.config, subjects.selection.data_dir)
    if len(train) > len(subject.images):
        train = datasets.balanced_subset(train, len(subject.images), subjects.seed)
    splits = {"train": (train.to(subjects.device), image_digest(train)),
              subjects.selection.split: (subject.images, subject.digest)}
    rows = []
    for split, (images, digest) in splits.items():
        for draws in sorted({subject.draws(count) for count in counts}):
            wanted = subject.fields | _images(subjects, subject) | {
                "split": split, "num_samples": draws, "num_examples": len(images), "images": digest}
            compute = partial(gradient_norms, subject.classifier, subjects.batches(images), num_samples=draws)
            rows.append(_row(subjects, f"{subject.name} {split}", wanted, compute))
    return rows


def examples(subjects, subject, attack, num_samples, num_images):
    """Write adversarial examples of a class-balanced choice of the images, with pictures under names of their own."""
    table, = subjects.tables
    images = datasets.balanced_subset(subject.images, min(num_images, len(subject.images)), subjects.seed).in_memory()
    wanted = subject.fields | adversarial_examples.settings(attack) | {
        "num_samples": subject.draws(num_samples), "seed": subjects.seed, "num_examples": len(images),
        "images": subject.digest}
    home, stem = subjects.folder / "evaluation", f"examples/{subject.name}-{_short_digest(wanted)}"
    pictures = [home / row[f"{name}_image"] for row in table.select(**wanted) for name in adversarial_examples.PICTURES]
    if pictures and all(path.is_file() for path in pictures):
        return
    with subjects.measuring(subject.name, len(images)):
        rows = adversarial_examples.make(subject.classifier, images, attack, subject.draws(num_samples), home, stem)
    subjects.write(table, [wanted | row for row in rows])


def _short_digest(settings):
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def _settings(subjects, subject, attack, **more):
    return subject.fields | {"source": "target"} | attack_fields(attack) | _images(subjects, subject) | more


def _images(subjects, subject):
    return {"num_examples": len(subject.images), "images": subject.digest, "batch_size": subjects.selection.batch_size,
            "seed": subjects.seed}


def _row(subjects, label, wanted, compute):
    """The row for the settings in `wanted`; see `_rows`."""
    return _rows(subjects, label, [wanted], lambda progress: [compute(progress=progress)])[0]


def _rows(subjects, label, wanted, compute):
    """The rows for the settings in `wanted` from the command's table; those that are not there are computed and written.

    compute(progress=callback) returns one mapping for each of `wanted`.
    """
    table = subjects.tables[0]
    if not all(map(table.find, wanted)):
        with subjects.measuring(label, wanted[0]["num_examples"]) as progress:
            results = compute(progress=progress)
        rows = [settings | result for settings, result in zip(wanted, results, strict=True)]
        subjects.write(table, [row for row in rows if not table.find(row)])
    return [table.find(settings) for settings in wanted]


def _clean_accuracy(subjects, subject, num_samples):
    known = subjects.tables[0].select(**subject.fields, num_samples=num_samples, **_images(subjects, subject))
    if known:
        return known[0]["accuracy_clean"]
    with subjects.measuring(f"{subject.name} clean", len(subject.images)) as progress:
        row = robust_accuracy(subject.classifier, subjects.batches(subject.images), num_samples=num_samples,
                              progress=progress)
    return row["accuracy"]
