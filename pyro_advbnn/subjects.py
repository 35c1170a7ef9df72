"""What an evaluation looks at: trained runs, the images they are measured on, and the folder that takes the results."""
import hashlib
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tqdm import tqdm

from pyro_advbnn import datasets, recipes, records, run_folders
from pyro_advbnn.cli import Range
from pyro_advbnn.configuration import load_images
from pyro_advbnn.defenses import DEFENSES
from pyro_advbnn.devices import describe_device, resolve_device
from pyro_advbnn.elbo import skip_validation
from pyro_advbnn.errors import InputError
from pyro_advbnn.evaluation import separate_randomness
from pyro_advbnn.networks import build_network, is_imported
from pyro_advbnn.tables import Table


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The flags that every evaluation takes.

    Args:
        run: run folder of a training.
        runs: several of them, as A,B,C; all of one data set.
        out: folder that takes evaluation/ and figures/; default the run itself, or the folder that holds all the runs.
        split: test, or held_out: the images that the run split off its training set, for choosing hyper-parameters.
        num_test: use a class-balanced subset of the split, chosen by seed.
        batch_size: images attacked at once.
        checkpoint: best (by held-out accuracy; the last, where nothing was held out) or last.
        data_dir: folder of the data set, where it has moved since the training.
        network: package.module:function once more, for runs that trained a network of your own.
        seed: of the weight draws and of the subset.
        device: auto (cuda if present), cpu, cuda or cuda:N.
    """

    run: Path | None = None
    runs: list[Path] | None = None
    out: Path | None = None
    split: Literal["test", "held_out"] = "test"
    num_test: Annotated[int | None, Range(1)] = None
    batch_size: Annotated[int, Range(1)] = 500
    checkpoint: Literal["best", "last"] = "best"
    data_dir: Path | None = None
    network: str | None = None
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    device: str = "auto"


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained classifier and its images. fields: the columns `tables.RUN_FIELDS` of its rows."""

    name: str
    folder: Path
    classifier: Any
    config: dict
    images: datasets.Images
    fields: dict

    @property
    def is_random(self):
        """Whether two forward passes differ, so that draws are worth averaging."""
        return DEFENSES[self.config["defense"]].random

    @property
    def is_bayesian(self):
        return DEFENSES[self.config["defense"]].kind == "bayesian"

    def draws(self, count):
        """The number of draws to average where `count` are asked for: of a deterministic network all are the same."""
        return count if self.is_random else 1


class Subjects(list):
    """The subjects that a `Selection` names, loaded and found fit for one another before any work.

    folder: takes the results. Raises InputError for what cannot be loaded, compared, or written.
    """

    def __init__(self, selection, *table_names):
        skip_validation()
        self.selection, self.seed = selection, selection.seed
        self.device = resolve_device(selection.device)
        folders = _folders(selection)
        configs = [run_folders.read_config(folder) for folder in folders]
        _check_alike(folders, configs)
        self.folder = selection.out or _default_out(folders)
        self.tables = [Table(self.folder, name) for name in table_names]
        self._images = {}
        super().__init__(map(self._load, folders, configs))
        check_writable(self.folder / "evaluation")
        self.dataset = configs[0]["dataset"]
        self.began, self.num_rows = time.perf_counter(), 0

    def _load(self, folder, config):
        classifier, config, path = run_folders.load_classifier(
            folder, self.selection.checkpoint, _own_network(config, self.selection.network), self.device)
        held_out = self.selection.split == "held_out"
        fields = run_folders.row_fields(config, path, _digest(classifier))
        fields["dataset"] += ":held_out" if held_out else ""
        key = folder if held_out else ""
        if key not in self._images:
            self._images[key] = _images(config, self.selection).to(self.device)
        _check_images(self._images[key], config, self.selection.split)
        return Subject(fields["run"], folder, classifier, config, self._images[key], fields)

    def batches(self, images):
        """The images in batches, in their order."""
        return datasets.batches(images, self.selection.batch_size)

    @contextmanager
    def measuring(self, label, total):
        """The evaluation's own random stream, begun anew, and a progress callback; nothing outside is disturbed."""
        with separate_randomness(self.seed), _Bar(label, total) as bar:
            yield bar

    def write(self, table, rows):
        """Add rows to one of the tables at once, so that whatever stops the command later loses none of them."""
        table.add(rows)
        self.num_rows += len(rows)

    def log(self, command):
        """Note in evaluation/log.jsonl what was run, how long it took and where; a call that wrote nothing leaves no line."""
        if self.num_rows:
            records.append_jsonl(self.folder / "evaluation" / "log.jsonl", {
                "command": command, "seconds": round(time.perf_counter() - self.began, 1), "rows": self.num_rows,
                "environment": records.environment() | {"device": describe_device(self.device)}})


def check_writable(folder):
    """Make `folder`.   Raises InputError where that fails or nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} cannot be written to")


def _folders(selection):
    if (selection.run is None) == (selection.runs is None):
        raise InputError("give --run DIR, or --runs A,B,... to compare several")
    folders = [selection.run] if selection.run else selection.runs
    names = [folder.resolve().name for folder in folders]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"--runs: two runs are called {twice[0]}, and rows tell runs apart by the names of their folders")
    return folders


def _default_out(folders):
    return folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.resolve() for folder in folders]))


def _check_alike(folders, configs):
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        for name in ("dataset", "image_shape", "class_names"):
            if config[name] != configs[0][name]:
                raise InputError(f"--runs: {folder} and {folders[0]} cannot be compared: their {name} differ")


def _own_network(config, network):
    if network is None:
        return None
    if network != config["network"]:
        raise InputError(f"--network {network} is not the run's, which is {config['network']}")
    return build_network(network, config["num_classes"], config["in_channels"]) if is_imported(network) else None


def _images(config, selection):
    data_dir = selection.data_dir or config["data_dir"]
    if selection.split == "held_out":
        images = _held_out(config, data_dir)
    else:
        images = datasets.load(config["dataset"], "test", data_dir, image_size=config["image_size"])
    if selection.num_test and selection.num_test > len(images):
        raise InputError(f"--num_test {selection.num_test} is more than the {len(images)} {selection.split} images of "
                         f"{config['dataset']}")
    return datasets.balanced_subset(images, selection.num_test, selection.seed) if selection.num_test else images


def _check_images(images, config, split):
    shape, names = list(images.images.shape[1:]), list(images.class_names)
    if shape != config["image_shape"] or names != config["class_names"]:
        raise InputError(f"the {split} images are not like those of the training: {tuple(shape)} and {len(names)} classes, "
                         f"not {tuple(config['image_shape'])} and {config['num_classes']}")


def training_images(config, data_dir=None):
    """(the images that the run of `config` was trained on, those that it held out or None), on the CPU."""
    images, held_out, digest = load_images(config["dataset"], data_dir or config["data_dir"], config["image_size"],
                                           config["subset"], config["num_held_out"], config["seed"], "cpu")
    if digest != config["images_sha256"]:
        raise InputError("the training images are not those of the run")
    return images, held_out


def _held_out(config, data_dir):
    _, held_out = training_images(config, data_dir)
    if held_out is None:
        raise InputError("--split held_out: the run held no images out")
    return held_out


def _digest(classifier):
    """The first 12 hex digits of the SHA-256 of the classifier's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(classifier.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()[:12]


class _Bar:
    """A progress bar over images, a callback (number done, of those correct); silent where stderr is no terminal."""

    def __init__(self, label, total):
        self._bar = tqdm(total=total, desc=label, leave=False, disable=not sys.stderr.isatty(), unit="image")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def __call__(self, total, correct):
        self._bar.update(total - self._bar.n)
        self._bar.set_postfix_str(f"accuracy {100 * correct / total:.1f} %")


def default_attack_step(dataset, step_size):
    """The PGD step that a flag asks for: a number, or None for 2.5 epsilon / num_steps."""
    step_size = recipes.default_step_size(dataset) if step_size is None else step_size
    return None if step_size == "auto" else step_size
