"""What a run's config.json must look like, since it may come from anywhere: every value of its kind and within its range."""
import math

from pyro_advbnn.errors import InputError

_COUNT, _COUNT_OR_NONE, _SHARE, _POSITIVE = (int, 1), (int, 0), (float, 0, 1), (float, 0)
_FIELDS = {
    "dataset": str, "defense": str, "network": str, "settings": dict, "images_sha256": str, "image_shape": [_COUNT],
    "class_names": [str], "num_classes": (int, 1, 100_000), "in_channels": (int, 1, 16), "classifier": dict,
}
_OPTIONAL = {                                            # older runs lack some, and some may be null
    "data_dir": str, "image_size": _COUNT, "loading": str, "workers": _COUNT_OR_NONE, "subset": _COUNT,
    "num_train": _COUNT, "num_held_out": _COUNT_OR_NONE, "augmentation": str, "width": (int, 1, 4096), "init_from": str,
    "recipe": str, "recipe_settings": dict, "seed": (int, 0, 2**31 - 1), "precision": str, "compile": bool,
    "cuda_graphs": str, "micro_batch": _COUNT, "batch_norm": str, "device": str, "world_size": _COUNT, "patience": _COUNT,
    "tensorboard": bool, "flags": dict, "environment": dict, "num_weights": _COUNT_OR_NONE,
}
_KNOWN_TO_ALL = ("data_dir", "image_size", "subset", "num_train", "num_held_out", "augmentation", "width", "init_from",
                 "recipe", "seed", "device", "patience", "flags")
_SETTINGS = {
    "batch_size": _COUNT, "epochs": _COUNT, "num_steps": _COUNT_OR_NONE, "attack_samples": _COUNT, "num_samples": _COUNT,
    "validation": _COUNT_OR_NONE, "epsilon": _SHARE, "step_size": _SHARE, "learning_rate": _POSITIVE, "alpha": _POSITIVE,
    "weight_decay": _POSITIVE, "kl_warmup": _SHARE, "optimizer": str, "schedule": str, "stages": [_POSITIVE],
    "initialization": str, "network": str, "prior": str, "kl_over": str,
}
_CHOICES = {"optimizer": ("adam", "sgd"), "schedule": ("stages", "cosine", "constant"), "kl_over": ("all", "last"),
            "initialization": ("default", "authors"), "batch_norm": ("sync", "broadcast"), "loading": ("memory", "stream"),
            "cuda_graphs": ("auto", "on", "off"), "precision": ("fp32", "tf32", "bf16")}


def check(config, where):
    """Raises InputError, naming `where` and the value, unless `config` is what a training writes."""
    if not isinstance(config, dict) or not set(_FIELDS) <= set(config):
        raise InputError(f"{where} is no run folder: its config.json is not that of a training")
    optional = {name: kind for name, kind in _OPTIONAL.items() if config.get(name) is not None}
    _check_all(config, _FIELDS | optional, where)
    _check_all(config["settings"], _SETTINGS, f"{where}: settings")
    for name in _KNOWN_TO_ALL:
        _require(name in config, where, f"{name} is missing")
    for name in ("num_held_out", "seed", "flags", "augmentation", "device"):
        _require(config[name] is not None, where, f"{name} is missing")
    _require(isinstance(config["classifier"].get("kind"), str), where, "classifier has no kind")
    for name in ("width", "prior_std", "init_std"):
        found = config["settings"].get(name, {})
        _require(found is None or isinstance(found, str) or _is(found, _POSITIVE), where, f"{name} cannot be {_short(found)}")
    _require(len(config["class_names"]) == config["num_classes"], where, "class_names and num_classes differ")
    _require(len(config["image_shape"]) == 3 and config["image_shape"][0] == config["in_channels"], where,
             f"image_shape {config['image_shape']} does not fit in_channels {config['in_channels']}")


def _check_all(values, kinds, where):
    for name, kind in kinds.items():
        _require(name in values, where, f"{name} is missing")
        _require(_is(values[name], kind), where, f"{name} cannot be {_short(values[name])}")
        if name in _CHOICES:
            _require(values[name] in _CHOICES[name], where,
                     f"{name} must be one of {', '.join(_CHOICES[name])}, got {_short(values[name])}")


def _is(value, kind):
    if isinstance(kind, list):
        return isinstance(value, list) and bool(value) and all(_is(item, kind[0]) for item in value)
    if not isinstance(kind, tuple):
        return isinstance(value, kind)
    number, low, high = (*kind, math.inf)[:3]
    allowed = int if number is int else (int, float)
    return isinstance(value, allowed) and not isinstance(value, bool) and low <= value <= high and abs(value) < 2**63


def _require(condition, where, complaint):
    if not condition:
        raise InputError(f"{where}: config.json is damaged: {complaint}")


def _short(value):
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
