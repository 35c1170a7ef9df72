"""From flags to a training that can start: defaults, recipe, data, network, each checked before any work is done."""
import hashlib
from contextlib import nullcontext

from pyro_advbnn import datasets, networks
from pyro_advbnn.bayes.kernels.vectors import how_normals_are_drawn
from pyro_advbnn.bayes.settings import fan_in_factor, share_factor
from pyro_advbnn.datasets.streaming import StreamedImages
from pyro_advbnn.system import distributed
from pyro_advbnn.system.devices import describe_device, resolve_device
from pyro_advbnn.system.environment import environment
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.precision import resolve_precision
from pyro_advbnn.training import construction, metrics, recipes, run_folders
from pyro_advbnn.training.cuda_graphs import use_cuda_graphs
from pyro_advbnn.training.flags import MAY_CHANGE_ON_RESUME, check_meaning, check_optimizer

DEFAULTS = {"dataset": "digits", "defense": "advbnn", "recipe": "ours", "seed": 0, "device": "auto", "compile": False,
            "cuda_graphs": "auto", "batch_norm": "sync", "deterministic": False}


def configure(flags):
    """(config, images, held_out): the run's whole configuration, its training images and those held out, or None.

    flags: the train command's flags that were given. Everything in config is a plain value, ready for JSON.
    """
    flags = DEFAULTS | flags
    dataset, defense, recipe, seed = (flags[name] for name in ("dataset", "defense", "recipe", "seed"))
    check_meaning(defense, flags)
    device = resolve_device(flags["device"])
    how = _how_to_compute(flags, device)
    if flags.get("tensorboard"):
        metrics.require_tensorboard()
    for name in ("prior_std", "init_std"):
        _check_std(name, flags.get(name), flags.get("init_from"))
    settings = recipes.resolve(recipe, dataset, defense, flags)
    check_optimizer(defense, settings)
    if settings["network"]:
        networks.check_network(settings["network"], settings["width"])
    images, held_out, identity = load_images(dataset, flags.get("data_dir"), flags.get("image_size"),
                                             flags.get("num_train"), settings["validation"], seed, device,
                                             cap="validation" not in flags, loading=flags.get("loading", "auto"),
                                             workers=flags.get("workers"))
    _check_patience(flags.get("patience"), held_out)
    settings["network"] = settings["network"] or recipes.default_network(min(images.image_shape[-2:]))
    config = {
        "format": run_folders.FORMAT, "dataset": dataset, "data_dir": _text(flags.get("data_dir")),
        "image_size": flags.get("image_size"),
        "loading": "stream" if isinstance(images, StreamedImages) else "memory", "workers": flags.get("workers"),
        "subset": flags.get("num_train"), "num_train": len(images), "num_held_out": len(held_out) if held_out else 0,
        "images_sha256": identity, "image_shape": list(images.image_shape),
        "class_names": list(images.class_names),
        "augmentation": flags.get("augmentation") or datasets.DEFAULT_AUGMENTATION[dataset],
        "defense": defense, "network": settings["network"], "width": settings["width"],
        "num_classes": images.num_classes, "in_channels": images.image_shape[0],
        "init_from": _text(flags.get("init_from")),
        "recipe": recipe, "settings": settings, "seed": seed, **how, **_place(device),
        "patience": flags.get("patience"), "tensorboard": flags.get("tensorboard", False),
        "flags": {k: _text(v) for k, v in flags.items()},
        "environment": _environment(device),
    }
    return config, images, held_out


def _environment(device):
    return environment() | {"device": describe_device(device), "normals": how_normals_are_drawn()}


def _check_std(name, std, init_from):
    if not isinstance(std, str) or (name, std) == ("prior_std", "auto"):
        return
    if name == "prior_std" or share_factor(std) is None:
        fan_in_factor(std, f"--{name}")
    elif not init_from:
        raise InputError(f"--{name} {std} needs --init_from: it is a share of each weight of a trained network")


def _how_to_compute(flags, device):
    """The part of a config that says how steps are computed, with `--precision` as it is on this device."""
    use_cuda_graphs(flags["cuda_graphs"], device)
    if flags.get("micro_batch") and flags["batch_norm"] == "sync" and distributed.world_size() > 1:
        raise InputError("--micro_batch in several processes needs --batch_norm broadcast: their parts may differ in number")
    as_asked = ("compile", "cuda_graphs", "micro_batch", "batch_norm", "deterministic")
    return {"precision": resolve_precision(flags.get("precision"), device)} | {name: flags.get(name) for name in as_asked}


def changed_flags(config, flags):
    """{name: (value in config, value now)} of the flags that are not those of which `configure` made config."""
    began, now = DEFAULTS | config["flags"], {k: _text(v) for k, v in (DEFAULTS | flags).items()}
    return {name: (began.get(name), now.get(name)) for name in sorted({*began, *now}) if began.get(name) != now.get(name)}


def _place(device):
    """Where a run runs. Under torchrun each process has a GPU of its own, which a resumption shall not take for all."""
    return {"device": device.type if distributed.launched() else str(device), "world_size": distributed.world_size(),
            "job": distributed.job()}


def load_images(dataset, data_dir, image_size, subset, num_held_out, seed, device, cap=False, loading="auto",
                workers=None):
    """(training images, held-out images or None, digest of all of them), on the device.

    cap: hold out a fifth of the images at most, for a number that the user did not choose. The digest is one of pixels,
    or, of images that are streamed, of names and sizes.
    """
    made = data_dir is None or dataset == "imagenet143"                    # downloaded or cached by the first of a machine
    with distributed.one_at_first() if made else nullcontext():
        images = datasets.load(dataset, "train", data_dir, image_size=image_size, loading=loading, workers=workers,
                               device=device)
    if images.num_classes < 2:
        raise InputError(f"{data_dir}: there must be at least two classes to tell apart, got {images.class_names[0]!r} alone")
    if subset:
        if subset > len(images):
            raise InputError(f"--num_train {subset} is more than the {len(images)} training images of {dataset}")
        images = datasets.balanced_subset(images, subset, seed)
    digest = hashlib.sha256()
    images.update_hash(digest)
    most = datasets.most_held_out(images)
    if cap:
        num_held_out = min(num_held_out, len(images) // 5, most)
    if num_held_out > most:
        raise InputError(f"--validation {num_held_out} leaves a class no image to train on: of {len(images)} images {most} at "
                         f"most can be held out")
    images, held_out = datasets.hold_out(images, num_held_out, seed)
    return images.to(device), held_out.to(device) if held_out else None, digest.hexdigest()


def images_of(config, device, data_dir=None):
    """(training images, held-out images or None) of a run, on the device.

    data_dir: where they lie now, if not where the run had them.   Raises InputError where they are not those of the run.
    """
    images, held_out, digest = load_images(config["dataset"], data_dir or config["data_dir"], config["image_size"],
                                           config["subset"], config["num_held_out"], config["seed"], device,
                                           loading=config["loading"], workers=config["workers"])
    if (digest, list(images.class_names)) != (config["images_sha256"], config["class_names"]):
        raise InputError("the training images are not those that the run began with")
    return images, held_out


def resume(folder, flags):
    """(config, training, held_out, best so far) of the run in `folder`, where it was left; nothing is written.

    A run that was left before its first checkpoint is at its start. flags: those given, of which only
    `flags.MAY_CHANGE_ON_RESUME` may differ from the run's.
    """
    config = run_folders.read_config(folder)
    position = run_folders.read_position(folder)
    _check_resume_flags(folder, config, flags)
    began = config["flags"] | {"epochs": config["settings"]["epochs"]}
    config["settings"]["epochs"] = flags.get("epochs", began["epochs"])
    config |= {name: _text(flags[name]) for name in ("patience", "tensorboard", "data_dir", "workers") if name in flags}
    config["flags"] |= {name: _text(value) for name, value in flags.items()}
    _check_patience(config["patience"], config["num_held_out"])
    if config["tensorboard"]:
        metrics.require_tensorboard()
    device = resolve_device(flags.get("device", config["device"]))
    config |= _how_to_compute(config | flags, device) | _place(device)
    images, held_out = images_of(config, device)
    training = construction.build(config | ({"init_from": None} if position else {}), images)
    best = run_folders.restore_position(training, position, folder) if position else None
    if training.finished:
        raise InputError(f"{folder} has done {training.epochs_done} epochs of {config['settings']['epochs']}; a larger "
                         f"--epochs goes on")
    if training.progress:
        changed = changed_flags({"flags": began}, began | flags | {"max_minutes": began.get("max_minutes")})
        config["resumed"] = [*config.get("resumed", []), {
            "after_epoch": training.epochs_done, "after_step": training.steps_done, "changed": changed,
            "environment": _environment(device)}]
    return config, training, held_out, best


def _check_resume_flags(folder, config, flags):
    refused = sorted(set(flags) - set(MAY_CHANGE_ON_RESUME))
    if refused:
        raise InputError(f"--{refused[0]} cannot be given with --resume: {folder}/config.json says it")
    if flags.get("network", config["network"]) != config["network"]:
        raise InputError(f"the run has the network {config['network']}, not {flags['network']}")
    if networks.is_imported(config["network"]) and "network" not in flags:
        raise InputError(f"the run uses code of yours: give --network {config['network']} again to have it imported")


def _check_patience(patience, held_out):
    if patience and not held_out:
        raise InputError(f"--patience {patience} needs held-out images, and there are none")


def _text(value):
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))                 # as the command line takes it
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
