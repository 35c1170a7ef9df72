"""The config.json of a run: its format, and whether a checkpoint is of the same run."""
import json

from pyro_advbnn.system.errors import InputError

FORMAT = 4                                               # another one is refused
_OF_A_RUN = ("dataset", "image_size", "subset", "images_sha256", "class_names", "augmentation", "defense", "network", "width",
             "num_classes", "in_channels", "init_from", "recipe", "seed", "batch_norm", "deterministic", "num_weights")


def check(config, path):
    """Raises InputError where config, a dict read from path, is of another format."""
    if config.get("format") != FORMAT:
        raise InputError(f"{path} is of format {config.get('format', 0)!r:.100}; this version reads format {FORMAT} alone")


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
