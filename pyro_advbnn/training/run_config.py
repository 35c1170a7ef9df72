"""What the config.json of a run must hold: the declarations that read flags check it, too, where it is read."""
import json
from typing import Annotated, Literal

from pyro_advbnn.cli import flag_types
from pyro_advbnn.cli.flag_types import Range
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.training.flags import ANNOTATIONS

FORMAT = 4                                               # another one is refused
_Number = Annotated[int, Range(1, 10**12)]
_OBJECTS = ("settings", "flags", "classifier", "recipe_settings", "environment")
_FLAGS = ("dataset", "data_dir", "image_size", "workers", "augmentation", "defense", "network", "width", "init_from", "recipe",
          "seed", "device", "precision", "compile", "cuda_graphs", "micro_batch", "batch_norm", "deterministic", "patience",
          "tensorboard")
_SETTINGS = ("batch_size", "validation", "num_steps", "attack_samples", "num_samples", "weight_decay", "weight_averaging",
             "batch_statistics", "prior", "kl_warmup", "kl_over", "initialization", "schedule", "epsilon", "step_size",
             "stages", "optimizer", "learning_rate", "prior_std", "init_std", "alpha", "epochs", "network", "width",
             "class_weights", "awp", "awp_start", "rho", "curvature")
_OWN = {
    "subset": ANNOTATIONS["num_train"], "num_train": _Number, "num_held_out": ANNOTATIONS["validation"], "images_sha256": str,
    "image_shape": list[_Number], "class_names": list[str], "num_classes": _Number, "in_channels": _Number,
    "num_weights": _Number, "loading": Literal["memory", "stream"], "world_size": _Number, "job": str | None,
}
_KINDS = ANNOTATIONS | _OWN | {"data_dir": str | None, "init_from": str | None, "step_size": Annotated[float, Range(0)],
                               "alpha": Annotated[float, Range(0)],
                               "stages": list[Annotated[float, Range(0, open_low=True)]]}
_MAY_BE_NULL = {"data_dir", "image_size", "subset", "workers", "width", "init_from", "patience", "micro_batch", "job",
                "class_weights", "rho", "curvature"}
_OF_A_RUN = ("dataset", "image_size", "subset", "images_sha256", "class_names", "augmentation", "defense", "network", "width",
             "num_classes", "in_channels", "init_from", "recipe", "seed", "batch_norm", "deterministic", "num_weights")


def check(config, path):
    """Raises InputError where config, a dict read from path, is of another format, lacks something, or has it wrong."""
    if config.get("format") != FORMAT:
        raise InputError(f"{path} is of format {config.get('format', 0)!r:.100}; this version reads format {FORMAT} alone")
    for name in _OBJECTS:
        if not isinstance(config.get(name), dict):
            raise InputError(f"{path}: {name} must be an object, got {config.get(name)!r:.100}")
    _check_values(config, (*_FLAGS, *_OWN), path, "")
    _check_values(config["settings"], _SETTINGS, path, "settings.")


def _check_values(found, names, path, prefix):
    for name in names:
        if name not in found:
            raise InputError(f"{path} lacks {prefix}{name}")
        value, where = found[name], f"{path}: {prefix}{name}"
        if flag_types.take(where, value, _KINDS[name]) != value or value is None and name not in _MAY_BE_NULL:
            raise InputError(f"{where} cannot be {value!r:.100}")


def check_same_run(folder, config, path, saved):
    """Raises InputError where the checkpoint at path, with the config saved in it, is not of the run of folder/config.json."""
    ours, theirs = _identity(config), _identity(saved)
    for name in ours:
        if ours[name] != theirs.get(name):
            raise InputError(f"{path} is not of the run that {folder}/config.json tells of: their {name} differ, "
                             f"{ours[name]!r:.100} there and {theirs.get(name)!r:.100} here")


def _identity(config):
    """{name: value} of what makes a run this one, as JSON has it."""
    values = {name: config.get(name) for name in _OF_A_RUN}
    values |= {f"settings.{name}": value for name, value in config.get("settings", {}).items() if name != "epochs"}
    return json.loads(json.dumps(values | {"classifier": config.get("classifier")}))
