"""What an evaluation looks at: trained runs, the images they are measured on, and the folder that takes the results."""
import functools
import os
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from pyro_advbnn import datasets
from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.cli import python_calls
from pyro_advbnn.cli.flag_types import BatchSize, Images, Seed
from pyro_advbnn.experiments.evaluated_images import digest, evaluated_images, image_digest
from pyro_advbnn.networks import build_network, is_imported
from pyro_advbnn.reporting.csv_tables import Table
from pyro_advbnn.system import json_files, locks
from pyro_advbnn.system.devices import describe_device, resolve_device
from pyro_advbnn.system.environment import environment
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.precision import float32_products
from pyro_advbnn.system.process_settings import process_settings
from pyro_advbnn.system.random_streams import separate_randomness
from pyro_advbnn.training import run_folders


@python_calls.flags
class Selection:
    """The flags that every evaluation takes.

    Args:
        run: run folder of a training.
        runs: several of them, as A,B,C; all of one data set.
        out: folder that takes evaluation/ and figures/; default the run itself, or the folder in which all the runs lie.
        split: test, or held_out: the images that the run split off its training set, for choosing hyper-parameters.
        num_test: use a class-balanced subset of the split, chosen by seed.
        batch_size: images attacked at once; they share the draws of a random network.
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
    num_test: Images | None = None
    batch_size: BatchSize = 500
    checkpoint: Literal["best", "last"] = "best"
    data_dir: Path | None = None
    network: str | None = None
    seed: Seed = 0
    device: str = "auto"


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained classifier and its images. fields: the columns `tables.RUN_FIELDS` of its rows; digest: of the images."""

    name: str
    folder: Path
    classifier: Any
    config: dict
    images: datasets.Images
    digest: str
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


_held = []                                               # a stack of locks for each `exclusive` verb that is at work


def exclusive(verb):
    """`verb`, a command, which from its `Subjects` on to its end has the results' folder to itself."""

    verb = python_calls.from_python(verb)

    @functools.wraps(verb)
    def command(**flags):
        with process_settings(), ExitStack() as stack:
            _held.append(stack)
            stack.callback(_held.pop)
            return verb(**flags)

    return command


class Subjects(list):
    """The subjects that a `Selection` names, loaded and found fit for one another before any work.

    folder: takes the results; an `exclusive` verb has the lock of its evaluation/ from here on.

    Raises InputError for what cannot be loaded, compared, or written.
    """

    def __init__(self, selection, *table_names):
        self.selection, self.seed = selection, selection.seed
        self.device = resolve_device(selection.device)
        folders = _folders(selection)
        configs = [run_folders.read_config(folder) for folder in folders]
        _check_alike(folders, configs)
        _check_network(selection.network, folders, configs)
        self.folder = selection.out or _default_out(folders)
        run_folders.check_writable(self.folder / "evaluation")
        self._lock()
        self.tables = [Table(self.folder, name) for name in table_names]
        self._images = {}
        super().__init__(map(self._load, folders, configs))
        self.dataset = configs[0]["dataset"]
        self.began, self.num_rows = time.perf_counter(), 0

    def _lock(self):
        if _held:
            _held[-1].enter_context(locks.locked(self.folder / "evaluation"))

    def _load(self, folder, config):
        classifier, config, path = run_folders.load_classifier(
            folder, self.selection.checkpoint, self._own_network(config), self.device)
        fields = run_folders.row_fields(config, path, digest(classifier.state_dict()))
        images, images_digest = self._split(folder, config)
        fields["dataset"] += ":held_out" if self.selection.split == "held_out" else ""
        return Subject(fields["run"], folder, classifier, config, images, images_digest, fields)

    def _own_network(self, config):
        """The network of the user's own that the flag names, for the runs that have it."""
        name = self.selection.network
        if name is None or not is_imported(name) or name != config["network"]:
            return None
        return build_network(name, config["num_classes"], config["in_channels"])

    def _split(self, folder, config):
        """The images to evaluate a run on, which runs of the same source share, and their digest."""
        source = folder if self.selection.split == "held_out" else (config["data_dir"], config["image_size"])
        if source not in self._images:
            images = evaluated_images(config, self.selection)
            self._images[source] = images.to(self.device), image_digest(images)
        return self._images[source]

    def check_shared_images(self):
        """Raises InputError where the subjects are not measured on the same images."""
        for subject in self:
            if subject.digest != self[0].digest:
                raise InputError(f"--runs: {subject.folder} and {self[0].folder} have other {self.selection.split} images, "
                                 f"so that an attack on one cannot be tried on the other")

    def batches(self, images):
        """The images in batches, in their order."""
        return datasets.batches(images, self.selection.batch_size)

    @contextmanager
    def measuring(self, label, total):
        """The evaluation's own random stream, begun anew, float32 in full, and a progress callback; nothing outside changes."""
        with separate_randomness(self.seed), float32_products("fp32"), _Bar(label, total) as bar:
            yield bar

    def write(self, table, rows):
        """Add rows to one of the tables at once, so that whatever stops the command later loses none of them."""
        table.add(rows)
        self.num_rows += len(rows) if table is self.tables[0] else 0

    def log(self, command):
        """Note in evaluation/log.jsonl what was run, how long it took and where; a call that wrote nothing leaves no line."""
        if self.num_rows:
            json_files.append_jsonl(self.folder / "evaluation" / "log.jsonl", {
                "command": command, "seconds": round(time.perf_counter() - self.began, 1), "rows": self.num_rows,
                "environment": environment() | {"device": describe_device(self.device)}})


def _folders(selection):
    if (selection.run is None) == (selection.runs is None):
        raise InputError("give --run DIR, or --runs A,B,... to compare several")
    folders = [selection.run] if selection.run else selection.runs
    names = [Path(os.path.realpath(folder)).name for folder in folders]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"--runs: two runs are called {twice[0]}, and rows tell runs apart by the names of their folders")
    return folders


def _default_out(folders):
    homes = {Path(os.path.realpath(folder)).parent for folder in folders}
    if len(folders) > 1 and len(homes) > 1:
        raise InputError("--runs lie in several folders: give --out DIR for the results")
    return folders[0] if len(folders) == 1 else folders[0].parent


def _check_alike(folders, configs):
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        for name in ("dataset", "image_shape", "class_names"):
            if config[name] != configs[0][name]:
                raise InputError(f"--runs: {folder} and {folders[0]} cannot be compared: their {name} differ")


def _check_network(network, folders, configs):
    names = [config["network"] for config in configs]
    if network is not None and network not in names:
        raise InputError(f"--network {network} is not the run's, which is {names[0]}" if len(names) == 1 else
                         f"--network {network} is that of none of {', '.join(map(str, folders))}")


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
