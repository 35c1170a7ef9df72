"""Images: load a data set, take class-balanced parts of it, iterate over augmented batches.

A data set is one uint8 tensor on one device, or a folder of files that are read as they are needed. Batches are augmented
and brought to [0, 1] on the device, so that nothing passes through the host image by image.
"""
import math
import operator
import os
from collections.abc import Iterator

import numpy as np
import torch

from pyro_advbnn.datasets import decoding
from pyro_advbnn.datasets.arrays import read_cifar10, read_digits, read_npz, read_stl10
from pyro_advbnn.datasets.augmentation import augment, check_augmentation, unit_range
from pyro_advbnn.datasets.folders import list_folder, read_imagenet143
from pyro_advbnn.datasets.image_sets import Images, ImageSet, ImageView
from pyro_advbnn.datasets.names import DATASETS, LOADINGS, SPLITS
from pyro_advbnn.datasets.streaming import StreamedImages, default_workers
from pyro_advbnn.system.devices import free_memory
from pyro_advbnn.system.errors import InputError, is_whole


def load(name, split, data_dir=None, *, image_size=None, loading="auto", workers=None, device=None) -> ImageSet:
    """One split of a data set, on the CPU; only the files of this split are read. imagenet143 is mapped, not read.

    name: one of DATASETS. split: "train" or "test".
    data_dir: the folder that holds the data set (for npz: the file). cifar10 and stl10 without it are looked for in
        `data/` and downloaded to there; digits comes with scikit-learn and needs none; the others cannot do without.
    image_size: only for folder: the shorter side is scaled to it and the centre is cut out.
    loading: for folder, whether the split is read into memory or streamed (see `StreamedImages`), which needs an
        image_size; auto reads what fits into the memory that is available, and into half of the device's.
    workers: processes that stream, by default `streaming.default_workers()`; 0 streams in this process.
    device: where the images will be used.

    Raises InputError, in one line, for wrong arguments and for files that are missing, damaged or not as expected.
    """
    _check_load_arguments(name, split, data_dir, image_size)
    _check_loading(name, loading, workers, image_size)
    if name == "digits":
        return _digits(split)
    if name == "cifar10":
        arrays = read_cifar10(data_dir, split)
    elif name == "stl10":
        arrays = read_stl10(data_dir, split)
    elif name == "imagenet143":
        arrays = read_imagenet143(data_dir, split)
    elif name == "folder":
        return _folder(*list_folder(data_dir, split), image_size, loading, workers, device)
    else:
        arrays = read_npz(data_dir, split)
    return _images(*arrays)


def balanced_subset(images, num, seed) -> ImageSet:
    """`num` images chosen by `seed`, as many of each class as of any other (give or take one), in their stored order.

    Where a class is too small, all of it is taken and the other classes fill up. A smaller subset by the same seed is
    part of a larger one.

    Raises InputError unless 1 <= num <= len(images).
    """
    num = _whole_number("num", num, 1, len(images))
    return images.take(_balanced_order(images, seed)[:num].sort().values)


def hold_out(images, num, seed) -> tuple[ImageSet, ImageSet | None]:
    """(rest, held_out): `num` images, class-balanced and chosen by `seed`, are set apart; num = 0 gives (images, None).

    On the CPU both are views, so that a large set is not copied.
    Raises InputError unless 0 <= num < len(images).
    """
    num = _whole_number("num", num, 0, len(images) - 1)
    if num == 0:
        return images, None
    order = _balanced_order(images, seed)
    return images.view(order[num:].sort().values), images.view(order[:num].sort().values)


class Batches:
    """What `batches` returns: every iteration is one new pass."""

    def __init__(self, images, batch_size, shuffle_with, augmentation, augment_with, shard):
        self.images, self.batch_size = images, batch_size
        self.shuffle_with, self.augmentation, self.augment_with = shuffle_with, augmentation, augment_with
        self.shard = shard

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self.from_batch(0)

    def from_batch(self, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """A pass without its first batches, which are neither read nor augmented: the order is the whole pass's."""
        for x, y in self.images.read([indices for indices in self._indices()[first:] if len(indices)]):
            yield unit_range(augment(x, self.augmentation, self.augment_with)), y

    def _indices(self):
        """The indices of this process's part of every batch of a new pass, in its order."""
        num = len(self.images)
        order = torch.arange(num) if self.shuffle_with is None else torch.randperm(num, generator=self.shuffle_with)
        batches = order.to(self.images.labels.device).split(self.batch_size)
        return [indices[self.shard[0]::self.shard[1]] for indices in batches]


def batches(images, batch_size, *, shuffle_with=None, augmentation="none", augment_with=None, shard=(0, 1)) -> Batches:
    """Iterates over (x, y): float32 (B, C, H, W) in [0, 1] and int64 (B,), on the device of `images`.

    Each pass holds every image once; the last batch may be smaller.
    shuffle_with: a torch.Generator on the CPU, from which every pass draws its order; None keeps the stored order.
    augmentation, augment_with: see `augment`.
    shard: (rank, world size) takes every world-size-th image of each batch, from the rank-th on; where that is none, the
        batch is left out.

    Raises InputError for a batch_size < 1 and for an unknown augmentation.
    """
    batch_size = _whole_number("batch_size", batch_size, 1)
    check_augmentation(augmentation)
    return Batches(images, batch_size, shuffle_with, augmentation, augment_with, shard)


def _check_load_arguments(name, split, data_dir, image_size):
    if name not in DATASETS:
        raise InputError(f"dataset must be one of {', '.join(DATASETS)}, got {name!r}")
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if data_dir is not None and not isinstance(data_dir, (str, os.PathLike)):
        raise InputError(f"data_dir must be a path, got {data_dir!r}")
    if data_dir is None and name in ("imagenet143", "folder", "npz"):
        raise InputError(f"dataset {name} needs --data_dir, the {'file' if name == 'npz' else 'folder'} that holds it")
    if data_dir is not None and name == "digits":
        raise InputError("--data_dir means nothing for dataset digits, which comes with scikit-learn")
    if image_size is not None and name != "folder":
        raise InputError(f"image_size is only for dataset folder; {name} has its own size")
    if image_size is not None:
        _whole_number("image_size", image_size, 1)


def _check_loading(name, loading, workers, image_size):
    if loading not in LOADINGS:
        raise InputError(f"loading must be one of {', '.join(LOADINGS)}, got {loading!r}")
    if workers is not None:
        _whole_number("workers", workers, 0)
    if name != "folder" and loading == "stream":
        raise InputError(f"--loading stream is only for dataset folder, not for {name}")
    if name != "folder" and workers is not None:
        raise InputError(f"--workers is only for dataset folder, not for {name}")
    if loading == "stream" and not image_size:
        raise InputError("--loading stream needs --image_size, the size that the images are brought to as they come")


def _folder(paths, labels, class_names, image_size, loading, workers, device):
    if loading == "stream" or (loading == "auto" and image_size and not _fits(len(paths), image_size, device)):
        return StreamedImages(paths, torch.arange(len(paths)), torch.from_numpy(labels), class_names, image_size,
                              default_workers() if workers is None else workers)
    return _images(decoding.decode(paths, image_size), labels, class_names)


def _fits(num, image_size, device):
    needed = num * 3 * image_size * image_size
    on_device = free_memory(device) / 2 if device is not None and torch.device(device).type == "cuda" else needed
    return needed <= min(on_device, decoding.available_memory())


def _digits(split):
    """The test split is 36 images of each class, the same ones always."""
    train, test = hold_out(_images(*read_digits()), 360, seed=0)
    return (train if split == "train" else test).in_memory()


def _images(images, labels, class_names):
    pixels, labels = torch.from_numpy(images), torch.from_numpy(labels)
    if isinstance(images, np.memmap):
        return ImageView(pixels, torch.arange(len(labels)), labels, tuple(class_names))
    return Images(pixels, labels, tuple(class_names))


def _balanced_order(images, seed):
    """All indices, shuffled, one of each class after another: every beginning of the list is class-balanced."""
    seed = _whole_number("seed", seed, 0, 2**32 - 1)
    # NumPy keeps the numbers of RandomState for ever; torch.randperm may change between versions.
    shuffled = np.random.RandomState(seed).permutation(len(images))
    labels = images.labels.cpu().numpy()[shuffled]
    by_class = np.argsort(labels, kind="stable")
    first_of_class = np.searchsorted(labels[by_class], labels[by_class])
    turn = np.empty_like(by_class)
    turn[by_class] = np.arange(len(labels)) - first_of_class
    return torch.from_numpy(shuffled[np.argsort(turn, kind="stable")])


def _whole_number(name, value, low, high=None):
    number = operator.index(value) if is_whole(value) else None
    if number is None or number < low or (high is not None and number > high):
        expected = f">= {low}" if high is None else f"from {low} to {high}"
        raise InputError(f"{name} must be a whole number {expected}, got {value!r}")
    return number
