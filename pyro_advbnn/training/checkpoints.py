"""Checkpoints that hold tensors and plain values only, written in one step and read without executing anything."""
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.distributions import Distribution
from torch import nn

from pyro_advbnn.bayes.bayesian_classifier import BayesianClassifier
from pyro_advbnn.bayes.build import build_classifier
from pyro_advbnn.bayes.classifier import Classifier, categorical
from pyro_advbnn.bayes.parameters import copied
from pyro_advbnn.bayes.rse import noises
from pyro_advbnn.bayes.settings import PRIORS
from pyro_advbnn.networks import build_network, is_imported
from pyro_advbnn.system.errors import InputError, as_path, reason
from pyro_advbnn.system.files import file_to_write, replacing

FORMAT = 5


def save(path: str | Path, classifier: Classifier, config: Mapping | None = None, **more: Any) -> None:
    """Write classifier and config to `path`, in one step: a crash leaves the old file or the new one.

    config: for `load` without a network it needs network (a name), num_classes and in_channels. more: further entries, such as
    an optimizer's state. All are plain values and tensors.

    Raises InputError for what is no Classifier, other values and a path that is none or a folder's, OSError where the file
    cannot be written: FileNotFoundError where the folder that it is to lie in is not there.
    """
    path = file_to_write(path)
    if not isinstance(classifier, Classifier):
        raise InputError(f"classifier must be one of this package's classifiers, got a {type(classifier).__name__}; the "
                         f"weights of another module are saved by torch.save(module.state_dict(), path)")
    config, settings, more = map(_without_numpy, (config, classifier.settings(), more))
    content = dict(format=FORMAT, config=dict(config or {}), settings=settings, state=classifier.state_dict(),
                   frozen=[name for name, p in classifier.named_parameters() if not p.requires_grad],
                   weights=_in_order(classifier), **more)
    with replacing(path) as file:
        try:
            _write(content, file)
            file.flush()
            _open(file.name, mmap=True)                  # what could not be read again shall not replace what can
        except (pickle.PickleError, AttributeError, TypeError):            # the latter two: of what cannot be pickled at all
            raise InputError("config, and what else is saved, must hold plain values and tensors only") from None


def save_state_dict(path, network):
    """Write the state dict of an nn.Module alone, for `network.load_state_dict(torch.load(path))`, in one step."""
    with replacing(file_to_write(path)) as file:
        _write(network.state_dict(), file)


def _write(content, file):
    try:
        torch.save(content, file)
    except RuntimeError as error:                        # torch's, of its own file that was not finished
        if isinstance(error.__context__, OSError | KeyboardInterrupt):
            raise error.__context__ from None
        raise


@torch.inference_mode(False)                             # in which a caller may load: its tensors could not be changed later
def load(path: str | Path, network: nn.Module | None = None, *, prior: Distribution | None = None,
         likelihood: Callable | None = None, device: str | torch.device = "cpu") -> Classifier:
    """The classifier that `save` wrote to `path` (or to path/checkpoint.pt), in eval mode, with what was frozen.

    It has the dtype that it was saved in, but for half precision, which makes a file small: that comes back as float32.

    network: an nn.Module of the same architecture, with or without RSE's noise, for those that config cannot name.
    prior, likelihood: the same ones, for a classifier that was built with one of its own, and only for that. (Of parameters of
    a prior that are tensors of several numbers the shapes alone are compared.)

    Raises InputError for files that are missing, no checkpoints, of another format or of another network, and for those that
    torch cannot read; the numbers in them are not checked.
    """
    path = as_path("path", path)
    content = read(path)
    classifier = _build(content, network, prior, likelihood, path)
    for name, tensor in (*classifier.named_parameters(), *classifier.named_buffers()):
        dtype = content["state"].get(name, tensor).dtype
        tensor.data = tensor.data.to(torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype)
    fill(classifier, content, path)
    _freeze(classifier, content["frozen"])
    return classifier.to(device).eval()


def fill(classifier, content, path):
    """Give `classifier` the state that has been read from `path`.   Raises InputError where it is another network's."""
    for theirs, ours in zip(content.get("weights", ()), _in_order(classifier)):      # torch tells where there are more or less
        if theirs != ours:
            raise InputError(f"{path} does not fit the network: the next weight is {theirs} in the file, {ours} in the network")
    try:
        classifier.load_state_dict(content["state"])
    except RuntimeError as error:
        raise InputError(f"{path} does not fit the network: {reason(error)}") from None


def _in_order(classifier):
    """The weights of a Bayesian classifier as they follow each other in its flat vectors, each with its shape."""
    shapes = [classifier.shapes(), classifier.fixed_shapes()] if isinstance(classifier, BayesianClassifier) else []
    return [f"{name} {list(shape)}" for vector in shapes for name, shape in vector.items()]


def read(path, *, mmap=False):
    """The whole content of a checkpoint as a dict, on the CPU.   Raises InputError as `load` does.

    mmap: leave the tensors in the file until they are used.
    """
    path = Path(path)
    path = path / "checkpoint.pt" if path.is_dir() else path
    try:
        with warnings.catch_warnings(action="ignore"):   # about foreign pickles, which are refused all the same
            content = _open(path, mmap)
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except Exception:                   # torch fails in many ways on such files, and advises to load them unsafely
        raise InputError(f"{path} is damaged or no checkpoint: not a whole file of tensors and plain values") from None
    if not isinstance(content, dict) or type(content.get("format")) is not int:
        raise InputError(f"{path} is not a checkpoint of this package")
    if content["format"] != FORMAT:
        raise InputError(f"{path} has format {content['format']}; this version reads {FORMAT}")
    return content


def _open(path, mmap):
    """The content of a file, on the CPU, without executing anything."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _without_numpy(value):
    """`value` with Python's numbers and texts for those of NumPy, which `read` refuses."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {_without_numpy(key): _without_numpy(each) for key, each in value.items()}
    return type(value)(map(_without_numpy, value)) if type(value) in (list, tuple) else value


def _build(content, network, prior, likelihood, path):
    config, settings = content["config"], content["settings"]
    network = _named_network(config, path) if network is None else network
    if not isinstance(network, torch.nn.Module):
        raise InputError(f"network must be an nn.Module, got {network!r}")
    own = settings.get("likelihood")
    if (own is None) != (likelihood is None):
        raise InputError(f"{path} was trained with the likelihood {own or 'categorical'}; "
                         f"{'pass none' if own is None else 'pass it as likelihood'}")
    of_y = {"likelihood": likelihood or categorical, "class_weights": settings.get("class_weights")}
    if settings["kind"] != "bayesian":
        stds = settings.get("noise_stds", [])
        classifier = build_classifier("rse" if stds and not noises(network) else "none", network, **of_y)
        for module, std in zip(noises(classifier), stds):
            module.std = std
        return classifier
    named = settings["prior"] in PRIORS
    if named and prior is not None or not named and repr(prior) != settings["prior"]:
        raise InputError(f"{path} was trained with the prior {settings['prior']}; "
                         f"{'pass none' if named else 'pass it as prior'}")
    network = copied(network)
    _freeze(network, content["state"], "network")        # what the network itself holds there had no distribution
    return BayesianClassifier(network, settings["prior_std"], settings["init_std"], prior=prior or settings["prior"],
                              deterministic=settings["deterministic"], kl_over=settings["kl_over"],
                              batch_statistics=settings["batch_statistics"], **of_y)


def _freeze(module, names, prefix=""):
    """Have the parameters of these names, and no other, require no gradient."""
    for name, p in module.named_parameters(prefix=prefix):
        p.requires_grad_(name not in names)


def _named_network(config, path):
    missing = {"network", "num_classes", "in_channels"} - set(config)
    if missing:
        raise InputError(f"{path} does not name its network; pass the same architecture as network")
    if is_imported(config["network"]):
        raise InputError(f"{path} needs {config['network']}, code that is not imported from a checkpoint: give "
                         f"--network again, or pass the network")
    return build_network(config["network"], config["num_classes"], config["in_channels"], config.get("width"))
