"""Flags that say nothing beside the others, and checkpoints that contradict their run: refused before any work."""
import json

from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.system.errors import InputError

_OF_POSTERIORS = ("alpha", "prior", "prior_std", "init_std", "kl_over", "kl_warmup")
_OF_DRAWS = ("attack_samples", "num_samples")
# What a run's config.json and its checkpoints must both say, where both say it; so must settings (but for the epochs) and
# those flags that no resumption may change.
_OF_A_RUN = ("dataset", "image_size", "subset", "num_train", "num_held_out", "images_sha256", "image_shape", "class_names",
             "augmentation", "defense", "network", "width", "num_classes", "in_channels", "init_from", "recipe",
             "recipe_settings", "seed", "batch_norm", "deterministic", "classifier", "num_weights")
MAY_CHANGE_ON_RESUME = ("epochs", "max_minutes", "patience", "tensorboard", "data_dir", "device", "network", "workers",
                        "precision", "compile", "cuda_graphs", "micro_batch")
_NOTHING = object()


def check_meaning(defense, flags):
    """Raises InputError for a flag, of those given, that the defense has no use for."""
    kind = DEFENSES[defense].kind
    for name in _OF_POSTERIORS:
        if flags.get(name) is not None and kind != "bayesian":
            raise InputError(f"--{name} means nothing for --defense {defense}, which has no posterior")
    for name in _OF_DRAWS:
        if flags.get(name) not in (None, 1) and kind == "deterministic":
            raise InputError(f"--{name} {flags[name]} means nothing for --defense {defense}, whose draws are all the same")


def check_same_run(folder, config, path, saved):
    """Raises InputError where config, of folder/config.json, and the one saved in the checkpoint at path contradict."""
    ours, theirs = (_comparable(each) for each in (config, saved))
    for name in ours:
        if name in theirs and ours[name] != theirs[name]:
            raise InputError(f"{path} is not of the run that {folder}/config.json tells of: their {name} differ, "
                             f"{_difference(ours[name], theirs[name])}")


def _comparable(config):
    """{name: value} of what may not change in a run, as JSON has it."""
    values = {name: config[name] for name in _OF_A_RUN if name in config}
    settings, flags, environment = (config.get(name) for name in ("settings", "flags", "environment"))
    if isinstance(settings, dict):
        values |= {f"settings.{name}": value for name, value in settings.items() if name != "epochs"}
    if isinstance(flags, dict):
        values["flags"] = {name: value for name, value in flags.items() if name not in MAY_CHANGE_ON_RESUME}
    if isinstance(environment, dict) and "normals" in environment:
        values["environment.normals"] = environment["normals"]
    return json.loads(json.dumps(values))


def _difference(ours, theirs):
    """Two values, or of two objects or lists the entries that differ, in words."""
    if not all(isinstance(value, dict) for value in (ours, theirs)) and not all(
            isinstance(value, list) for value in (ours, theirs)):
        return f"{_shown(ours)} there and {_shown(theirs)} here"
    ours, theirs = (value if isinstance(value, dict) else dict(enumerate(value)) for value in (ours, theirs))
    pairs = {key: (ours.get(key, _NOTHING), theirs.get(key, _NOTHING)) for key in ours | theirs}
    return ", ".join(f"{key}: {_shown(our)} there and {_shown(their)} here" for key, (our, their) in pairs.items()
                     if our != their)


def _shown(value):
    text = "nothing" if value is _NOTHING else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
