"""Trained runs that are evaluated, the images they are measured on, and the tables that take their rows."""
import os
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pyro_advbnn import datasets
from pyro_advbnn.attacks.modes import draws_anew
from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.bayes.mixture import Mixture
from pyro_advbnn.evaluation.accuracy import attack_fields
from pyro_advbnn.experiments.images import digest, evaluated_images, image_digest
from pyro_advbnn.networks import build_network, is_imported
from pyro_advbnn.reporting.csv_tables import Table
from pyro_advbnn.system import json_files
from pyro_advbnn.system.devices import describe_device, resolve_device
from pyro_advbnn.system.environment import environment
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.locks import locked
from pyro_advbnn.system.precision import arithmetic, resolve_precision
from pyro_advbnn.system.process_settings import process_settings
from pyro_advbnn.system.random_streams import separate_randomness
from pyro_advbnn.training import run_folders


@contextmanager
def opened(selection):
    """The `EvaluatedRuns` of a `Selection`, alone in their results' folder for the time inside.

    Raises InputError for what cannot be loaded, compared, or written, before any work.
    """
    folders = _folders(selection)
    configs = [run_folders.read_config(folder) for folder in folders]
    _check_alike(folders, configs, "--mixture" if selection.mixture else "--runs")
    _check_network(selection.network, folders, configs)
    out = selection.out or _default_out(folders)
    with process_settings(), locked(out / "evaluation"):
        yield EvaluatedRuns(selection, folders, configs, out)


@dataclass(frozen=True, eq=False)
class EvaluatedRun:
    """A trained classifier and its images.

    digest: of the images; fields: the columns `csv_tables.RUN_FIELDS` of its rows; image_fields: those that say on which
    images, in which batches and with which seed it is measured.
    """

    name: str
    folder: Path
    classifier: Any
    config: dict
    images: datasets.Images
    digest: str
    fields: dict
    image_fields: dict

    @property
    def is_mixture(self):
        return isinstance(self.classifier, Mixture)

    @cached_property
    def is_random(self):
        """Whether forward passes differ, by the defense or by the network itself, so that draws are worth averaging."""
        if self.is_mixture or DEFENSES[self.config["defense"]].random:
            return True
        (x, _), = datasets.batches(self.images.take(list(range(min(16, len(self.images))))), 16)
        return draws_anew(self.classifier, x)

    @property
    def is_bayesian(self):
        return not self.is_mixture and DEFENSES[self.config["defense"]].kind == "bayesian"

    def draws(self, count):
        """The number of draws to average where `count` are asked for: of a deterministic network all are the same."""
        return count if self.is_random else 1

    def counts(self, counts):
        """`draws` of each of several numbers, each once, in ascending order."""
        return sorted({self.draws(count) for count in counts})

    def settings(self, attack, /, **more):
        """The columns of a row that say what is measured: the run, the attack (None: clean) on itself, the images, and more."""
        return self.fields | {"source": "target"} | attack_fields(attack) | self.image_fields | more


class EvaluatedRuns(list):
    """What `opened` yields: a list of `EvaluatedRun`, the mixture alone.   folder: takes the results. folders: of the runs."""

    def __init__(self, selection, folders, configs, folder):
        self.selection, self.seed, self.folder, self.folders = selection, selection.seed, folder, folders
        self.device, self.dataset = resolve_device(selection.device), configs[0]["dataset"]
        self.precision = resolve_precision(selection.precision, self.device)
        self.num_added, self.began = Counter(), time.perf_counter()
        self._images, self._tables = {}, {}
        found = list(map(self._load, folders, configs))
        super().__init__([_mixture(found)] if selection.mixture else found)

    def _load(self, folder, config):
        own = is_imported(config["network"]) and config["network"] == self.selection.network           # code of the user's
        network = build_network(config["network"], config["num_classes"], config["in_channels"]) if own else None
        classifier, config, path = run_folders.load_classifier(folder, self.selection.checkpoint, network, self.device)
        fields = run_folders.row_fields(config, path, digest(classifier.state_dict()))
        fields["dataset"] += ":held_out" if self.selection.split == "held_out" else ""
        fields["network"] += f":{self.precision}" if self.precision != "fp32" else ""
        images, images_digest = self._split(folder, config)
        image_fields = {"num_examples": len(images), "images": images_digest, "batch_size": self.selection.batch_size,
                        "seed": self.seed}
        return EvaluatedRun(fields["run"], folder, classifier, config, images, images_digest, fields, image_fields)

    def _split(self, folder, config):
        """The images to evaluate a run on, which runs of the same source share, and their digest."""
        source = folder if self.selection.split == "held_out" else (config["data_dir"], config["image_size"])
        if source not in self._images:
            images = evaluated_images(config, self.selection)
            self._images[source] = images.to(self.device), image_digest(images)
        return self._images[source]

    def check_shared_images(self):
        """Raises InputError where the runs are not measured on the same images."""
        _check_same_images(self, "--runs", f"{self.selection.split} images, so that an attack on one cannot be tried on the "
                                           f"other")

    def batches(self, run, images=None):
        """A run's images, or others, in batches, in their order."""
        return datasets.batches(run.images if images is None else images, self.selection.batch_size)

    @contextmanager
    def measuring(self, label, total, unit="image"):
        """The evaluation's own random stream, begun anew, its precision, and a progress callback; nothing outside changes."""
        with separate_randomness(self.seed), arithmetic(self.device, self.precision), _progress(label, total, unit) as progress:
            yield progress

    def table(self, name):
        """The `csv_tables.Table` of that name in the results' folder."""
        if name not in self._tables:
            self._tables[name] = Table(self.folder, name)
        return self._tables[name]

    def add(self, name, rows):
        """Write rows to a table at once, so that whatever stops the command later loses none of them."""
        self.table(name).add(rows)
        self.num_added[name] += len(rows)

    def add_new(self, name, rows):
        """`add` those rows that are not there."""
        self.add(name, [row for row in rows if not self.table(name).find(row)])

    def known(self, name, wanted):
        """Whether a table has a row for each of the settings in `wanted`."""
        return all(map(self.table(name).find, wanted))

    def rows(self, name, label, wanted, compute):
        """The rows of a table for the settings in `wanted`; those that are not there are computed, and written at once.

        compute(progress=callback) returns one mapping for each of `wanted`. label: of the progress bar.
        """
        if not self.known(name, wanted):
            with self.measuring(label, wanted[0]["num_examples"]) as progress:
                results = compute(progress=progress)
            self.add_new(name, [settings | result for settings, result in zip(wanted, results, strict=True)])
        return list(map(self.table(name).find, wanted))

    def row(self, name, label, wanted, compute):
        """`rows` of one setting: compute(progress=callback) returns one mapping."""
        return self.rows(name, label, [wanted], lambda progress: [compute(progress=progress)])[0]

    def log(self, command):
        """Note in evaluation/log.jsonl what was run, how long it took and where; a call that wrote nothing leaves no line."""
        if self.num_added.total():
            json_files.append_jsonl(self.folder / "evaluation" / "log.jsonl", {
                "command": command, "seconds": round(time.perf_counter() - self.began, 1), "rows": self.num_added.total(),
                "environment": environment() | {"device": describe_device(self.device)}})


def _mixture(runs):
    """Runs as one, whose name and columns are theirs, joined by + where they differ; of numbers none is then told."""
    _check_same_images(runs, "--mixture", "images to be measured on")
    values = {name: list(dict.fromkeys(run.fields[name] for run in runs)) for name in runs[0].fields}
    fields = dict.fromkeys(values)                       # None: of alphas or priors that differ
    for name, found in values.items():
        if len(found) == 1:
            fields[name] = found[0]
        elif name not in ("alpha", "prior_std"):
            fields[name] = "+".join(found)
    return replace(runs[0], name=fields["run"], classifier=Mixture(run.classifier for run in runs), fields=fields)


def _check_same_images(runs, flag, which):
    for run in runs:
        if run.digest != runs[0].digest:
            raise InputError(f"{flag}: {run.folder} and {runs[0].folder} have other {which}")


def _folders(selection):
    given = [name for name in ("run", "runs", "mixture") if getattr(selection, name) is not None]
    if len(given) != 1:
        raise InputError("give --run DIR, or --runs A,B,... to compare several, or --mixture A,B,... to evaluate them as one")
    folders = [selection.run] if selection.run else selection.runs or selection.mixture
    if selection.mixture and len(folders) < 2:
        raise InputError(f"--mixture needs two runs or more, got {folders[0]} alone")
    names = [Path(os.path.realpath(folder)).name for folder in folders]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"--{given[0]}: two runs are called {twice[0]}, and rows tell runs apart by the names of their "
                         f"folders")
    return folders


def _default_out(folders):
    homes = {Path(os.path.realpath(folder)).parent for folder in folders}
    if len(homes) > 1:
        raise InputError("the runs lie in several folders: give --out DIR for the results")
    first = folders[0] if folders[0].name not in ("", "..") else Path(os.path.realpath(folders[0]))
    return folders[0] if len(folders) == 1 else first.parent


def _check_alike(folders, configs, flag):
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        for name in ("dataset", "image_shape", "class_names"):
            if config[name] != configs[0][name]:
                raise InputError(f"{flag}: {folder} and {folders[0]} cannot be compared: they differ in {name}")


def _check_network(network, folders, configs):
    names = [config["network"] for config in configs]
    if network is not None and network not in names:
        raise InputError(f"--network {network} is not the run's, which is {names[0]}" if len(names) == 1 else
                         f"--network {network} is that of none of {', '.join(map(str, folders))}")


@contextmanager
def _progress(label, total, unit):
    """A callback (number done, of those correct) that moves a bar; silent where stderr is no terminal."""
    with tqdm(total=total, desc=label, leave=False, disable=None, unit=unit) as bar:
        def show(done, correct=None):
            bar.update(done - bar.n)
            if correct is not None:
                bar.set_postfix_str(f"accuracy {100 * correct / done:.1f} %")

        yield show
