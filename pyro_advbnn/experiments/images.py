"""The images on which runs are measured: the test split, or what a run held out; their digest."""
import hashlib

from pyro_advbnn import datasets
from pyro_advbnn.bayes.parameters import state_tensors
from pyro_advbnn.system.devices import resolve_device
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.training.configuration import images_of


def evaluated_images(config, selection):
    """The images, on the CPU, that a `Selection` measures the run of `config` on.

    Raises InputError where they are not there, not enough, or not like those of the training.
    """
    data_dir = selection.data_dir or config["data_dir"]
    if selection.split == "held_out":
        _, images = images_of(config, "cpu", data_dir)
        if images is None:
            raise InputError("--split held_out: the run held no images out")
    else:
        loading = "stream" if config["loading"] == "stream" else "auto"     # not by today's memory: their digest depends on it
        images = datasets.load(config["dataset"], "test", data_dir, image_size=config["image_size"], loading=loading,
                               device=resolve_device(selection.device))
    if selection.num_test and selection.num_test > len(images):
        raise InputError(f"--num_test {selection.num_test} is more than the {len(images)} {selection.split} images of "
                         f"{config['dataset']}")
    _check(images, config, selection.split)
    return datasets.stratified_subset(images, selection.num_test, selection.seed) if selection.num_test else images


def _check(images, config, split):
    shape, names = list(images.image_shape), list(images.class_names)
    if shape != config["image_shape"] or names != config["class_names"]:
        raise InputError(f"the {split} images are not like those of the training: {tuple(shape)} and {len(names)} classes, "
                         f"not {tuple(config['image_shape'])} and {config['num_classes']}{_first_other(names, config)}")


def _first_other(names, config):
    """Which class of as many is another one."""
    apart = [pair for pair in zip(names, config["class_names"]) if pair[0] != pair[1]]
    return "; a class is {!r} in place of {!r}".format(*apart[0]) if apart and len(names) == config["num_classes"] else ""


def image_digest(images):
    """What tells one set of labelled images from another: 12 hex digits."""
    found = hashlib.sha256(b"images")
    images.update_hash(found)
    found.update(b"labels" + images.labels.cpu().numpy().tobytes())
    return found.hexdigest()[:12]


def digest(state):
    """The first 12 hex digits of the SHA-256 of the tensors of a state dict."""
    found = hashlib.sha256()
    for name, tensor in sorted(state_tensors(state).items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return found.hexdigest()[:12]
