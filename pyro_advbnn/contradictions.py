"""Flags that say nothing beside the others, and checkpoints that contradict their run: refused before any work."""
import json

from pyro_advbnn.defenses import DEFENSES
from pyro_advbnn.errors import InputError

_OF_POSTERIORS = ("alpha", "prior", "prior_std", "init_std", "kl_over", "kl_warmup")
_OF_DRAWS = ("attack_samples", "num_samples")
# What a run's config.json and its checkpoints must both say, in config and in its settings but for the epochs.
_OF_A_RUN = ("dataset", "image_size", "subset", "num_train", "num_held_out", "images_sha256", "image_shape", "class_names",
             "augmentation", "defense", "network", "width", "num_classes", "in_channels", "recipe", "seed", "batch_norm",
             "classifier", "num_weights")


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
                             f"{repr(ours[name])[:60]} there and {repr(theirs[name])[:60]} here")


def _comparable(config):
    """{name: value} of what may not change in a run, as JSON has it."""
    values = {name: config[name] for name in _OF_A_RUN if name in config}
    values |= {f"settings.{name}": value for name, value in config.get("settings", {}).items() if name != "epochs"}
    return json.loads(json.dumps(values))
