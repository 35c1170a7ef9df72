"""Parts of a set of images, chosen by a seed: class-balanced, or with the set's own share of each class."""
import numpy as np
import torch

from pyro_advbnn.datasets.image_sets import ImageSet
from pyro_advbnn.system.errors import InputError, is_whole


def balanced_subset(images: ImageSet, num: int, seed: int) -> ImageSet:
    """`num` images chosen by `seed`, as many of each class as of any other (give or take one), in their stored order.

    Where a class is too small, all of it is taken and the other classes fill up. A smaller subset by the same seed is
    part of a larger one.

    Raises InputError unless 1 <= num <= len(images).
    """
    _check_in_range(num, 1, len(images))
    return images.take(_order(images, num, seed, balanced=True)[:num].sort().values)


def stratified_subset(images: ImageSet, num: int, seed: int) -> ImageSet:
    """`num` images chosen by `seed` in their stored order: of each class the share that it has of all (give or take one).

    The accuracy on them estimates that on all. Of classes of equal size they are those of `balanced_subset`.

    Raises InputError unless 1 <= num <= len(images).
    """
    _check_in_range(num, 1, len(images))
    return images.take(_order(images, num, seed, balanced=False)[:num].sort().values)


def hold_out(images: ImageSet, num: int, seed: int, *, balanced: bool = False) -> tuple[ImageSet, ImageSet | None]:
    """(rest, held_out): `num` images, chosen by `seed`, are set apart; num = 0 gives (images, None).

    Each class gives the same share of its images (give or take one), or where `balanced` the same number, and keeps one at
    least. On the CPU both are views, so that a large set is not copied.
    Raises InputError unless 0 <= num <= most_held_out(images).
    """
    _check_in_range(num, 0, most_held_out(images))
    if num == 0:
        return images, None
    order = _order(images, num, seed, balanced, keep_one=True)
    return images.view(order[num:].sort().values), images.view(order[:num].sort().values)


def most_held_out(images) -> int:
    """How many images can be held out where one of each class must stay."""
    return len(images) - len(images.labels.unique())


def _check_in_range(num, low, high):
    if not is_whole(num) or not low <= num <= high:
        raise InputError(f"num must be a whole number from {low} to {high}, got {num}")


def _order(images, num, seed, balanced, keep_one=False):
    """All indices, shuffled: the first `num` are balanced, or stratified; keep_one: one of each class comes last.

    Stratified by largest remainder: first comes what takes its class least far beyond its share. A class of one image that
    stays has none.
    """
    # NumPy keeps the numbers of RandomState for ever; torch.randperm may change between versions.
    shuffled = np.random.RandomState(seed).permutation(len(images))
    labels = images.labels.cpu().numpy()[shuffled]
    by_class = np.argsort(labels, kind="stable")
    place = np.empty_like(by_class)
    place[by_class] = np.arange(len(labels)) - np.searchsorted(labels[by_class], labels[by_class])
    size = np.bincount(labels)[labels]
    total = np.count_nonzero(size > 1) if keep_one else len(labels)
    turn = place if balanced else (place + 1) * total - num * size       # total times how far its class is beyond its share
    turn = np.where(place + 1 < size, turn, np.iinfo(np.int64).max) if keep_one else turn
    return torch.from_numpy(shuffled[np.argsort(turn, kind="stable")])
