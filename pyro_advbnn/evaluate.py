"""python -m pyro_advbnn.evaluate accuracy: accuracy of a trained run under PGD, on the test split."""
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from tqdm import tqdm

from pyro_advbnn import cli, datasets, recipes, records, run_folders
from pyro_advbnn.attacks import PGD
from pyro_advbnn.cli import Range
from pyro_advbnn.configuration import load_images
from pyro_advbnn.defenses import DEFENSES
from pyro_advbnn.devices import resolve_device
from pyro_advbnn.elbo import skip_validation
from pyro_advbnn.errors import InputError
from pyro_advbnn.evaluation import robust_accuracy, separate_randomness
from pyro_advbnn.networks import build_network, is_imported


def accuracy(
    *,
    run: Path,
    epsilons: list[Annotated[float, Range(0, 1)]] | None = None,
    num_steps: Annotated[int, Range(1)] = 20,
    step_size: Annotated[float, Range(0, 1, open_low=True)] | Literal["auto"] | None = None,
    attack_samples: Annotated[int, Range(1)] = 1,
    num_samples: Annotated[int, Range(1)] = 20,
    split: Literal["test", "held_out"] = "test",
    num_test: Annotated[int | None, Range(1)] = None,
    batch_size: Annotated[int, Range(1)] = 500,
    checkpoint: Literal["best", "last"] = "best",
    data_dir: Path | None = None,
    network: str | None = None,
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0,
    device: str = "auto",
):
    """Accuracy of averaged predictions under white-box PGD at one or many radii.

    Prints a table with 95% Wilson intervals and adds its rows to DIR/evaluation/accuracy.csv.

    Args:
        run: run folder of a training.
        epsilons: l_inf radii, as 0,8/255 or 0:0.07:0.005; default: those of the paper's Table 1 for the data set.
        num_steps: PGD steps.
        step_size: PGD step; auto = 2.5 epsilon / num_steps; default 0.007 on cifar10, stl10 and imagenet143, else auto.
        attack_samples: weight draws averaged in each attack gradient; 1 is the paper's weak attack, 10 and more are
            honest.
        num_samples: weight draws averaged in each prediction.
        split: test, or held_out: the images that the run split off its training set, for choosing hyper-parameters.
        num_test: use a class-balanced subset of the split, chosen by seed.
        batch_size: images attacked at once.
        checkpoint: best (by held-out accuracy; the last, where nothing was held out) or last.
        data_dir: folder of the data set, where it has moved since the training.
        network: package.module:function once more, for a run that trained a network of your own.
        seed: of the weight draws and of the subset.
        device: auto (cuda if present), cpu, cuda or cuda:N.
    """
    skip_validation()
    place = resolve_device(device)
    config = run_folders.read_config(run)
    own_network = _own_network(config, network)
    classifier, config, path = run_folders.load_classifier(run, checkpoint, own_network, place)
    images = _images(config, split, data_dir, num_test, seed).to(place)
    if DEFENSES[config["defense"]].kind == "deterministic":
        attack_samples = num_samples = 1                 # every draw is the same
    table = _table(run)
    epsilons = recipes.default_epsilons(config["dataset"]) if epsilons is None else epsilons
    step_size = recipes.default_step_size(config["dataset"]) if step_size is None else step_size
    attacks = [PGD(e, None if step_size == "auto" else step_size, num_steps, attack_samples) for e in epsilons]
    _warn(attacks)
    batches = datasets.batches(images, batch_size)
    known = run_folders.row_fields(config, path, seed)
    if split == "held_out":
        known["dataset"] += ":held_out"
    rows = []
    for attack in attacks:
        with separate_randomness(seed), _bar(attack, images) as bar:
            rows.append(known | robust_accuracy(classifier, batches, attack, num_samples=num_samples, progress=bar))
    _report(table, rows)


def _own_network(config, network):
    if network is None:
        return None
    if network != config["network"]:
        raise InputError(f"--network {network} is not the run's, which is {config['network']}")
    return build_network(network, config["num_classes"], config["in_channels"]) if is_imported(network) else None


def _images(config, split, data_dir, num_test, seed):
    data_dir = data_dir or config["data_dir"]
    if split == "held_out":
        images = _held_out(config, data_dir)
    else:
        images = datasets.load(config["dataset"], "test", data_dir, image_size=config["image_size"])
    shape, names = list(images.images.shape[1:]), list(images.class_names)
    if shape != config["image_shape"] or names != config["class_names"]:
        raise InputError(f"the {split} images are not like those of the training: {tuple(shape)} and {len(names)} classes, "
                         f"not {tuple(config['image_shape'])} and {config['num_classes']}")
    if num_test and num_test > len(images):
        raise InputError(f"--num_test {num_test} is more than the {len(images)} {split} images of {config['dataset']}")
    return datasets.balanced_subset(images, num_test, seed) if num_test else images


def _held_out(config, data_dir):
    images, held_out, digest = load_images(config["dataset"], data_dir, config["image_size"], config["subset"],
                                           config["num_held_out"], config["seed"], "cpu")
    if held_out is None or digest != config["images_sha256"]:
        why = "the run held no images out" if held_out is None else "the training images are not those of the run"
        raise InputError(f"--split held_out: {why}")
    return held_out


def _warn(attacks):
    weak = [f"{attack.epsilon:g}" for attack in attacks if not attack.reaches_ball]
    if weak:
        print(f"note: {attacks[0].num_steps} steps of {attacks[0].step_size:g} cannot reach the border of the ball of "
              f"radius {', '.join(weak)}")


class _bar:
    """A progress bar over the images, for `robust_accuracy`; silent where stderr is no terminal."""

    def __init__(self, attack, images):
        self._bar = tqdm(total=len(images), desc=f"epsilon {attack.epsilon:g}", leave=False,
                         disable=not sys.stderr.isatty(), unit="image")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def __call__(self, total, correct):
        self._bar.update(total - self._bar.n)
        self._bar.set_postfix_str(f"accuracy {100 * correct / total:.1f} %")


def _table(run):
    """The csv file that takes the rows, found good before any work."""
    path = run / "evaluation" / "accuracy.csv"
    records.read_table(path)
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent} cannot be made: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path.parent} cannot be written to")
    return path


def _report(path, rows):
    print(records.table(rows, {
        "epsilon": lambda row: f"{row['epsilon']:.5g}",
        "accuracy %": lambda row: records.percent(row, interval=True),
        "steps x size": lambda row: f"{row['num_steps']} x {row['step_size']:.4g}",
        "reaches ball": lambda row: "yes" if row["reaches_ball"] else "no",
        "attack draws": lambda row: row["attack_samples"],
        "draws": lambda row: row["num_samples"],
        "images": lambda row: row["num_examples"],
    }))
    records.append_csv(path, rows)
    print(f"added to {path}")


if __name__ == "__main__":
    cli.run({"accuracy": accuracy})
