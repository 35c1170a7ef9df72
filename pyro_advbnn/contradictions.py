"""Flags that say nothing beside the others, and what contradicts a run that goes on: refused before any work."""
import json

from pyro_advbnn import networks
from pyro_advbnn.defenses import DEFENSES
from pyro_advbnn.errors import InputError

MAY_CHANGE_ON_RESUME = ("epochs", "max_minutes", "patience", "tensorboard", "data_dir", "device", "network", "workers",
                        "precision", "compile", "cuda_graphs", "micro_batch")
_OF_POSTERIORS = ("alpha", "prior", "prior_std", "init_std", "kl_over", "kl_warmup")
_OF_DRAWS = ("attack_samples", "num_samples")
# What a run's config.json and its checkpoints must both say, in config and in its settings but for the epochs.
_OF_A_RUN = ("dataset", "image_size", "subset", "num_train", "num_held_out", "images_sha256", "image_shape", "class_names",
             "augmentation", "defense", "network", "width", "num_classes", "in_channels", "recipe", "seed", "batch_norm",
             "classifier")


def check_meaning(defense, flags):
    """Raises InputError for a flag, of those given, that the defense has no use for."""
    kind = DEFENSES[defense].kind
    for name in _OF_POSTERIORS:
        if flags.get(name) is not None and kind != "bayesian":
            raise InputError(f"--{name} means nothing for --defense {defense}, which has no posterior")
    for name in _OF_DRAWS:
        if flags.get(name) not in (None, 1) and kind == "deterministic":
            raise InputError(f"--{name} {flags[name]} means nothing for --defense {defense}, whose draws are all the same")


def check_resume_flags(folder, config, flags):
    """Raises InputError for flags that the run of config, in folder, cannot go on with."""
    refused = sorted(set(flags) - set(MAY_CHANGE_ON_RESUME))
    if refused:
        raise InputError(f"--{refused[0]} cannot be given with --resume: {folder}/config.json says it")
    if flags.get("network", config["network"]) != config["network"]:
        raise InputError(f"the run has the network {config['network']}, not {flags['network']}")
    if networks.is_imported(config["network"]) and "network" not in flags:
        raise InputError(f"the run uses code of yours: give --network {config['network']} again to have it imported")


def check_patience(patience, num_held_out):
    """Raises InputError where patience has nothing to look at."""
    if patience and not num_held_out:
        raise InputError(f"--patience {patience} needs held-out images, and --validation is 0")


def check_same_run(folder, config, path, saved):
    """Raises InputError where config, of folder/config.json, and the one saved in the checkpoint at path contradict."""
    ours, theirs = (_comparable(each) for each in (config, saved))
    for name in ours:
        if name in theirs and ours[name] != theirs[name]:
            raise InputError(f"{path} is not of the run that {folder}/config.json tells of: their {name} differ")


def _comparable(config):
    """{name: value} of what may not change in a run, as JSON has it."""
    values = {name: config[name] for name in _OF_A_RUN if name in config}
    values |= {f"settings.{name}": value for name, value in config.get("settings", {}).items() if name != "epochs"}
    return json.loads(json.dumps(values))
