"""What the config.json of a run must hold, so that one that was edited by hand is refused where it is read, not later."""
import re
import sys
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import pyro_advbnn
from pyro_advbnn import datasets
from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.bayes.settings import PRIORS
from pyro_advbnn.cli import flag_types
from pyro_advbnn.cli.choices import BatchNorm, CudaGraphs, Initialization, KLOver, Optimizer, Schedule
from pyro_advbnn.cli.flag_types import Range
from pyro_advbnn.cli.limits import BatchSize, Count, CountOrNone, Epochs, Images, ImagesOrNone, Seed, Side, Width, Workers
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.json_files import place_of_key
from pyro_advbnn.system.precision import PRECISIONS
from pyro_advbnn.training.recipes import RECIPES

Dimension = Annotated[int, Range(1, 1_000_000)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Std = Annotated[float, Range(0, open_low=True)] | str

_NEEDED = {
    "dataset": Literal[datasets.DATASETS], "data_dir": str | None, "image_size": Side | None, "subset": Images | None,
    "num_train": Images, "num_held_out": ImagesOrNone, "images_sha256": str, "image_shape": list[Dimension],
    "class_names": list[str], "augmentation": Literal[datasets.AUGMENTATIONS],
    "defense": Literal[tuple(DEFENSES)], "network": str, "width": Width | None, "num_classes": Dimension,
    "in_channels": Dimension, "init_from": str | None, "settings": dict, "seed": Seed, "device": str, "flags": dict,
    "classifier": dict, "patience": Epochs | None, "num_weights": Annotated[int, Range(1, 10**12)],
    "recipe": Literal[tuple(RECIPES)], "recipe_settings": dict, "environment": dict,
}
_OF_NEWER_RUNS = {
    "loading": Literal["memory", "stream"], "workers": Workers | None, "precision": Literal[PRECISIONS], "compile": bool,
    "cuda_graphs": CudaGraphs, "micro_batch": BatchSize | None, "batch_norm": BatchNorm, "tensorboard": bool,
    "deterministic": bool, "world_size": Annotated[int, Range(1, 1_000_000)],
    "job": str | None, "epochs_changed": list[dict],
}
_SETTINGS = {
    "batch_size": BatchSize, "validation": ImagesOrNone, "num_steps": CountOrNone, "attack_samples": Count,
    "num_samples": Count, "weight_decay": NotNegative, "prior": Literal[PRIORS], "kl_warmup": Share,
    "kl_over": KLOver, "initialization": Initialization, "schedule": Schedule, "epsilon": Share, "step_size": NotNegative,
    "stages": list[Annotated[float, Range(0, open_low=True)]], "optimizer": Optimizer,
    "learning_rate": Annotated[float, Range(0, open_low=True)], "prior_std": Std, "init_std": Std, "alpha": NotNegative,
    "epochs": Epochs, "network": str, "width": Width | None,
}
_SETTINGS_OF_NEWER_RUNS = {"weight_averaging": Annotated[float, Range(0, 1, open_high=True)], "running_statistics": Share}


def check(config, path):
    """Raises InputError where config, a dict read from path, lacks something, or holds what no training writes.

    One of a newer version may have keys that are `unknown` here: the format of its checkpoint decides whether it can be read.
    """
    _check_values(config, _NEEDED, path, "")
    strange = unknown(config)
    if strange and not is_newer(config):
        *within, key = strange[0]
        place = place_of_key(path, key, tuple(within))
        raise InputError(f"{place}: no training writes {_full_name(strange[0])}; remove it")
    _check_values(config, {name: kind for name, kind in _OF_NEWER_RUNS.items() if name in config}, path, "")
    settings = config["settings"]
    newer = {name: kind for name, kind in _SETTINGS_OF_NEWER_RUNS.items() if name in settings}
    _check_values(settings, _SETTINGS | newer, path, "settings.")
    shape, names = config["image_shape"], config["class_names"]
    if len(shape) != 3 or shape[0] != config["in_channels"] or len(names) != config["num_classes"]:
        raise InputError(f"{path}: image_shape, class_names, in_channels and num_classes contradict one another")
    kind = DEFENSES[config["defense"]].kind
    if (config["classifier"].get("kind") == "bayesian") != (kind == "bayesian"):
        raise InputError(f"{path}: classifier and defense contradict one another")


def unknown(config):
    """The keys, as tuples of names, that no training of this version gives a config or its settings."""
    strange = [(name,) for name in config if name not in _NEEDED | _OF_NEWER_RUNS]
    return strange + [("settings", name) for name in config["settings"] if name not in _SETTINGS | _SETTINGS_OF_NEWER_RUNS]


def _full_name(key):
    return ".".join(key) if len(key) > 1 else f"{key[0]} at the top level"


def is_newer(config):
    """Whether a config is one of a newer version of this package."""
    return _numbers(version(config)) > _numbers(pyro_advbnn.__version__)


def version(config):
    """The version of this package that wrote a config, as its environment tells; "" where that is not known."""
    versions = config["environment"].get("versions")
    return str(versions.get("pyro-advbnn") or "") if isinstance(versions, dict) else ""


def _numbers(version):
    release = re.match(r"[0-9]{1,9}(\.[0-9]{1,9})*", version)
    return [int(part) for part in release[0].split(".")] if release else []


def _check_values(found, kinds, path, prefix):
    for name, kind in kinds.items():
        if name not in found:
            raise InputError(f"{path} lacks {prefix}{name}")
        if not fits(found[name], kind):
            shown = repr(found[name])
            raise InputError(f"{path}: {prefix}{name} must be {_expected(kind)}, got {shown[:100]}")


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value, as JSON has it, is one that annotation allows."""
    return any(_is(value, member, bounds) for member, bounds in flag_types.members(annotation))


def _is(value, member, bounds):
    if member is NoneType:
        return value is None
    if get_origin(member) is Literal:
        return isinstance(value, str) and value in get_args(member)
    if get_origin(member) is list:
        return isinstance(value, list) and all(fits(element, get_args(member)[0]) for element in value)
    if member is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max and value in bounds
    return type(value) is member and (member is not int or value in bounds)


def _expected(kind):
    return {dict: "an object", list[dict]: "a list of objects"}.get(kind) or flag_types.expected(kind)
