"""Images that a classifier has not learnt: noise, its own images with their pixels permuted, another data set's."""
import numpy as np
import torch

from pyro_advbnn import datasets
from pyro_advbnn.datasets import DATASETS, Images
from pyro_advbnn.system.errors import InputError

MADE = ("noise", "permuted")
NAMES = (*MADE, *DATASETS)


def check(names, dataset, data_dir):
    """Raises InputError unless `names`, of NAMES, are other sources than `dataset`, and one has the data_dir."""
    hint = "; --ood_dir names another" if dataset in ("folder", "npz") else ""
    if dataset in names and not (hint and data_dir is not None):
        raise InputError(f"--ood {dataset} is the data set of the run itself{hint}")
    if data_dir is not None and len(set(names).difference(MADE, {"digits"})) != 1:
        raise InputError("--ood_dir is the folder of one data set: name exactly one with --ood that has a folder")


def foreign_images(name, like, seed, data_dir=None):
    """`Images` of the shape and, as far as there are so many, the number of `like`, on its device; chosen by `seed`.

    Their labels mean nothing to a classifier of other classes: all are 0.

    name, of NAMES: noise (every pixel uniform), permuted (the images of `like`, their pixels in one other order), or a data
    set, whose test images are brought to the shape: resized, averaged to grey or repeated to colours.
    """
    random = np.random.RandomState(seed)                 # its numbers are kept for ever
    if name == "noise":
        pixels = random.randint(0, 256, (len(like), *like.image_shape), dtype=np.uint8)
        return _unlabelled(torch.from_numpy(pixels), name, like)
    if name == "permuted":
        images = like.in_memory()
        order = torch.from_numpy(random.permutation(images.images[0, 0].numel())).to(images.device)
        pixels = images.images.flatten(2)[:, :, order].view(images.images.shape)
        return _unlabelled(pixels, name, like)
    size = max(like.image_shape[1:]) if name == "folder" else None
    try:
        found = datasets.load(name, "test", None if name == "digits" else data_dir, image_size=size)
    except InputError as error:
        raise InputError(str(error).replace("--data_dir", "--ood_dir")) from None
    found = datasets.balanced_subset(found, min(len(like), len(found)), seed).in_memory()
    return _unlabelled(_reshaped(found.images, like.image_shape), name, like)


def _unlabelled(images, name, like):
    return Images(images, torch.zeros(len(images), dtype=torch.int64, device=images.device), (name,)).to(like.device)


def _reshaped(images, shape):
    """uint8 (N, C, H, W) in the colours and the size of `shape`."""
    from torchvision.transforms.v2.functional import resize, rgb_to_grayscale  # takes a second

    def reshaped(part):
        part = part.float() if part.shape[1] == shape[0] else rgb_to_grayscale(part.float(), shape[0])
        return resize(part, list(shape[1:])).round().clamp(0, 255).to(torch.uint8)
    return torch.cat([reshaped(part) for part in images.split(1024)])
