"""Class-balanced parts of a set of images, chosen by a seed."""
import numpy as np
import torch

from pyro_advbnn.datasets.image_sets import ImageSet
from pyro_advbnn.system.errors import InputError, is_whole


def balanced_subset(images, num, seed) -> ImageSet:
    """`num` images chosen by `seed`, as many of each class as of any other (give or take one), in their stored order.

    Where a class is too small, all of it is taken and the other classes fill up. A smaller subset by the same seed is
    part of a larger one.

    Raises InputError unless 1 <= num <= len(images).
    """
    _check_in_range(num, 1, len(images))
    return images.take(_balanced_order(images, seed)[:num].sort().values)


def hold_out(images, num, seed) -> tuple[ImageSet, ImageSet | None]:
    """(rest, held_out): `num` images, class-balanced and chosen by `seed`, are set apart; num = 0 gives (images, None).

    On the CPU both are views, so that a large set is not copied.
    Raises InputError unless 0 <= num < len(images).
    """
    _check_in_range(num, 0, len(images) - 1)
    if num == 0:
        return images, None
    order = _balanced_order(images, seed)
    return images.view(order[num:].sort().values), images.view(order[:num].sort().values)


def _check_in_range(num, low, high):
    if not is_whole(num) or not low <= num <= high:
        raise InputError(f"num must be a whole number from {low} to {high}, got {num}")


def _balanced_order(images, seed):
    """All indices, shuffled, one of each class after another: every beginning of the list is class-balanced."""
    # NumPy keeps the numbers of RandomState for ever; torch.randperm may change between versions.
    shuffled = np.random.RandomState(seed).permutation(len(images))
    labels = images.labels.cpu().numpy()[shuffled]
    by_class = np.argsort(labels, kind="stable")
    first_of_class = np.searchsorted(labels[by_class], labels[by_class])
    turn = np.empty_like(by_class)
    turn[by_class] = np.arange(len(labels)) - first_of_class
    return torch.from_numpy(shuffled[np.argsort(turn, kind="stable")])
