"""A training of arrays in memory by the recipe `ours`, in one call and without a run folder."""
import numpy as np
import torch

from pyro_advbnn import datasets
from pyro_advbnn.bayes.classifier import Classifier
from pyro_advbnn.bayes.parameters import copied, trainable_parameters
from pyro_advbnn.cli import flag_types
from pyro_advbnn.datasets.arrays import check_counted_from_0
from pyro_advbnn.system.devices import resolve_device
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.precision import float32_products, resolve_precision
from pyro_advbnn.system.process_settings import process_settings
from pyro_advbnn.system.random_streams import undisturbed
from pyro_advbnn.training import construction, recipes
from pyro_advbnn.training.flags import ANNOTATIONS


@process_settings()
def fit(x: np.ndarray | torch.Tensor, y: np.ndarray | torch.Tensor, *, network: torch.nn.Module | str, epsilon: float,
        epochs: int, defense: str = "advbnn", batch_size: int = 128, seed: int = 0,
        device: str | torch.device = "auto") -> Classifier:
    """The classifier that the recipe `ours` trains on all the images, as they are: augmentation is the caller's.

    It comes in eval mode, on the device on which x is (arrays: the CPU), wherever it was trained.

    x: images, uint8 (N, H, W, C), where 255 is 1, or floats (N, C, H, W) in [0, 1]. y: class numbers (N,) from 0.
    network: a module from images to logits, which is left as it is, or a name of `networks.build_network`; the weights of a
    name are drawn from the seed. epsilon: l_inf radius of the attack in training, for images in [0, 1].
    defense: a name of DEFENSES. device: that trains, "auto" (cuda where there is one), "cpu", "cuda" or "cuda:N".

    The same seed gives the same bits on a CPU; torch's global generators stand afterwards where they stood. On a CPU the
    process keeps freed memory from then on, which makes each step faster. Nothing is written or printed: `train` has run
    folders, held-out images and all other settings.

    Raises InputError for arguments out of range, arrays of another kind, a network that does not fit, and a loss that is not
    finite.
    """
    given = {"epsilon": epsilon, "epochs": epochs, "defense": defense, "batch_size": batch_size, "seed": seed, "device": device}
    for name, value in given.items():
        if value is None:                                # which a flag may be
            raise InputError(f"{name} must be given, got None")
        given[name] = flag_types.take(name, str(value) if name == "device" else value, ANNOTATIONS[name])
    device = resolve_device(given["device"])
    images = datasets.from_arrays(x, y).to(device)
    if isinstance(network, str):                         # a module may know more classes than there are images of
        check_counted_from_0(images.labels, "y")
    settings = recipes.resolve("ours", "npz", given["defense"], given)
    config = {"network": network, "num_classes": max(2, images.num_classes), "in_channels": images.image_shape[0],
              "width": None, "init_from": None, "augmentation": "none", "defense": given["defense"],
              "seed": given["seed"], "micro_batch": None, "precision": resolve_precision(None, device), "batch_norm": "sync",
              "settings": settings}
    module = None
    if not isinstance(network, str):
        trainable_parameters(network)
        module, config["num_classes"] = copied(network).cpu(), None      # any number will do that has a place for each label
    with undisturbed(), float32_products(config["precision"]):
        training = construction.build(config, images, module)
        while not training.finished:
            for _ in training.epoch():
                pass
    classifier = training.result.eval()
    classifier.zero_grad()
    classifier.forget()
    return classifier.to(x.device if isinstance(x, torch.Tensor) else "cpu")
