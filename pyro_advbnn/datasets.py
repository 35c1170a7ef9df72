"""Images in memory: load a data set, take class-balanced parts of it, iterate over augmented batches.

A data set is one uint8 tensor on one device. Batches are cut, augmented and brought to [0, 1] on that device, so that
nothing passes through the host image by image.
"""
import operator
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pyro_advbnn.errors import InputError
from pyro_advbnn.image_arrays import read_cifar10, read_digits, read_npz, read_stl10
from pyro_advbnn.image_folders import read_folder, read_imagenet143

DATASETS = ("digits", "cifar10", "stl10", "imagenet143", "folder", "npz")
SPLITS = ("train", "test")
DEFAULT_AUGMENTATION = {
    "digits": "none",
    "cifar10": "crop_flip",
    "stl10": "crop_flip",
    "imagenet143": "resized_crop",
    "folder": "none",
    "npz": "none",
}


@dataclass(frozen=True, eq=False)
class Images:
    """A labelled set of images.

    images: uint8 (N, C, H, W). labels: int64 (N,) in [0, num_classes), on the same device. class_names: one per class.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def to(self, device) -> "Images":
        return Images(self.images.to(device), self.labels.to(device), self.class_names)

    def take(self, indices) -> "Images":
        """The images at `indices` (int64 (M,), on any device, or a list), in that order."""
        indices = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        return Images(self.images[indices], self.labels[indices], self.class_names)


def load(name, split, data_dir=None, *, image_size=None) -> Images:
    """One split of a data set, on the CPU; only the files of this split are read.

    name: one of DATASETS. split: "train" or "test".
    data_dir: the folder that holds the data set (for npz: the file). cifar10 and stl10 without it are looked for in
        `data/` and downloaded to there; digits comes with scikit-learn and needs none; the others cannot do without.
    image_size: only for folder: the shorter side is scaled to it and the centre is cut out.

    Raises InputError, in one line, for wrong arguments and for files that are missing, damaged or not as expected.
    """
    _check_load_arguments(name, split, data_dir, image_size)
    if name == "digits":
        return _digits(split)
    if name == "cifar10":
        arrays = read_cifar10(data_dir, split)
    elif name == "stl10":
        arrays = read_stl10(data_dir, split)
    elif name == "imagenet143":
        arrays = read_imagenet143(data_dir, split)
    elif name == "folder":
        arrays = read_folder(data_dir, split, image_size)
    else:
        arrays = read_npz(data_dir, split)
    return _images(*arrays)


def balanced_subset(images, num, seed) -> Images:
    """`num` images chosen by `seed`, as many of each class as of any other (give or take one), in their stored order.

    Where a class is too small, all of it is taken and the other classes fill up. A smaller subset by the same seed is
    part of a larger one.

    Raises InputError unless 1 <= num <= len(images).
    """
    num = _whole_number("num", num, 1, len(images))
    return images.take(_balanced_order(images, seed)[:num].sort().values)


def hold_out(images, num, seed) -> tuple[Images, Images | None]:
    """(rest, held_out): `num` images, class-balanced and chosen by `seed`, are set apart; num = 0 gives (images, None).

    Raises InputError unless 0 <= num < len(images).
    """
    num = _whole_number("num", num, 0, len(images) - 1)
    if num == 0:
        return images, None
    order = _balanced_order(images, seed)
    return images.take(order[num:].sort().values), images.take(order[:num].sort().values)


def crop_flip(x, generator=None):
    """Zero-pads each image by 4 pixels, crops it at random back to its size and, half of the time, mirrors it."""
    batch, channels, height, width = x.shape
    top, left = torch.randint(0, 9, (2, batch, 1), generator=generator, device=x.device)
    flip = torch.rand(batch, 1, generator=generator, device=x.device) < 0.5
    rows = top + torch.arange(height, device=x.device)
    columns = left + torch.arange(width, device=x.device)
    columns = torch.where(flip, columns.flip(1), columns)
    image = torch.arange(batch, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    return F.pad(x, (4, 4, 4, 4))[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def resized_crop(x, generator=None):
    """Cuts a random square of 0.8 to 0.9 of each image's area, scales it back and, half of the time, mirrors it.

    The same as torchvision's RandomResizedCrop(size, scale=(0.8, 0.9), ratio=(1, 1)), bilinear, and
    RandomHorizontalFlip, with each image's own parameters. Returns floats in [0, 1].

    Raises InputError for images that are not square.
    """
    if x.shape[2] != x.shape[3]:
        raise InputError(f"augmentation resized_crop needs square images, got {x.shape[3]}x{x.shape[2]}")
    x, size = _unit_range(x), x.shape[3]
    area, place_x, place_y, flip = torch.rand(4, len(x), generator=generator, device=x.device)
    side = torch.round(size * (0.8 + 0.1 * area).sqrt())
    left, top = ((place * (size - side + 1)).floor() for place in (place_x, place_y))
    scale, zero = side / size, torch.zeros_like(side)
    centre_x, centre_y = ((2 * start + side) / size - 1 for start in (left, top))
    mirror = torch.where(flip < 0.5, -scale, scale)
    theta = torch.stack([mirror, zero, centre_x, zero, scale, centre_y], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, x.shape, align_corners=False)
    # Like a crop that is cut out first: nothing beyond its outermost pixels may mix in.
    centre, reach = torch.stack([centre_x, centre_y], 1)[:, None, None], ((side - 1) / size)[:, None, None, None]
    grid = torch.maximum(torch.minimum(grid, centre + reach), centre - reach)
    return F.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode="border", align_corners=False).clamp(0, 1)


AUGMENTATIONS = {"none": lambda x, generator=None: x, "crop_flip": crop_flip, "resized_crop": resized_crop}


def augment(x, kind, generator=None):
    """`x` (B, C, H, W), uint8 or float in [0, 1], with the augmentation `kind`, drawn anew for each image.

    kind: one of AUGMENTATIONS. All draws come from `generator`, a torch.Generator on the device of x; None is torch's
    global one. The shape stays; the type stays too, except that resized_crop returns floats in [0, 1].

    Raises InputError for an unknown kind.
    """
    _check_augmentation(kind)
    return AUGMENTATIONS[kind](x, generator)


class Batches:
    """What `batches` returns: every iteration is one new pass."""

    def __init__(self, images, batch_size, shuffle_with, augmentation, augment_with, drop_last, shard):
        self.images, self.batch_size, self.drop_last = images, batch_size, drop_last
        self.shuffle_with, self.augmentation, self.augment_with = shuffle_with, augmentation, augment_with
        self.shard = shard

    def __len__(self) -> int:
        full, rest = divmod(len(self.images), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self.from_batch(0)

    def from_batch(self, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """A pass without its first batches, which cost no augmentation: the order is the whole pass's."""
        images, num = self.images, len(self.images)
        order = torch.arange(num) if self.shuffle_with is None else torch.randperm(num, generator=self.shuffle_with)
        for indices in order.to(images.labels.device).split(self.batch_size)[first : len(self)]:
            indices = indices[self.shard[0]::self.shard[1]]
            if len(indices):
                x = augment(images.images[indices], self.augmentation, self.augment_with)
                yield _unit_range(x), images.labels[indices]


def batches(
    images, batch_size, *, shuffle_with=None, augmentation="none", augment_with=None, drop_last=False, shard=(0, 1)
) -> Batches:
    """Iterates over (x, y): float32 (B, C, H, W) in [0, 1] and int64 (B,), on the device of `images`.

    Each pass holds every image once; the last batch may be smaller, unless drop_last leaves it out.
    shuffle_with: a torch.Generator on the CPU, from which every pass draws its order; None keeps the stored order.
    augmentation, augment_with: see `augment`.
    shard: (rank, world size) takes every world-size-th image of each batch, from the rank-th on; where that is none, the
        batch is left out.

    Raises InputError for a batch_size < 1, for an unknown augmentation, and where drop_last would leave nothing.
    """
    batch_size = _whole_number("batch_size", batch_size, 1, len(images) if drop_last else None)
    _check_augmentation(augmentation)
    return Batches(images, batch_size, shuffle_with, augmentation, augment_with, drop_last, shard)


def _check_load_arguments(name, split, data_dir, image_size):
    if name not in DATASETS:
        raise InputError(f"dataset must be one of {', '.join(DATASETS)}, got {name!r}")
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if data_dir is not None and not isinstance(data_dir, (str, os.PathLike)):
        raise InputError(f"data_dir must be a path, got {data_dir!r}")
    if data_dir is None and name in ("imagenet143", "folder", "npz"):
        raise InputError(f"dataset {name} needs --data_dir, the {'file' if name == 'npz' else 'folder'} that holds it")
    if image_size is not None and name != "folder":
        raise InputError(f"image_size is only for dataset folder; {name} has its own size")
    if image_size is not None:
        _whole_number("image_size", image_size, 1)


def _digits(split):
    """The test split is 36 images of each class, the same ones always."""
    train, test = hold_out(_images(*read_digits()), 360, seed=0)
    return train if split == "train" else test


def _images(images, labels, class_names):
    return Images(torch.from_numpy(images), torch.from_numpy(labels), tuple(class_names))


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


def _unit_range(x):
    return x if x.is_floating_point() else x.float().div_(255)


def _check_augmentation(kind):
    if kind not in AUGMENTATIONS:
        raise InputError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {kind!r}")


def _whole_number(name, value, low, high=None):
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        expected = f">= {low}" if high is None else f"from {low} to {high}"
        raise InputError(f"{name} must be a whole number {expected}, got {value!r}")
    return number
