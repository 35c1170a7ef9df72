"""Passes over a set of images in augmented batches.

They are augmented and brought to [0, 1] on the device, so that nothing passes through the host image by image.
"""
import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import torch

from pyro_advbnn.datasets.augmentation import augment, check_augmentation, unit_range
from pyro_advbnn.datasets.image_sets import ImageSet
from pyro_advbnn.system.errors import check_at_least


@dataclass
class Batches:
    """Iterates over (x, y): float32 (B, C, H, W) in [0, 1] and int64 (B,), on the device of `images`.

    Every iteration is one new pass, which holds every image once; the last batch may be smaller.
    shuffle_with: a torch.Generator on the CPU, from which every pass draws its order; None keeps the stored order.
    augmentation, augment_with: see `augment`.
    shard: (rank, world size) takes every world-size-th image of each batch, from the rank-th on; where that is none, the
        batch is left out.

    Raises InputError for a batch_size < 1 and for an unknown augmentation.
    """

    images: ImageSet
    batch_size: int
    _: KW_ONLY
    shuffle_with: torch.Generator | None = None
    augmentation: str = "none"
    augment_with: torch.Generator | None = None
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self):
        check_at_least("batch_size", self.batch_size, 1)
        check_augmentation(self.augmentation)

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self.from_batch(0)

    def from_batch(self, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """A pass without its first batches, which are neither read nor augmented: the order is the whole pass's."""
        for x, y in self.images.read([indices for indices in self._indices()[first:] if len(indices)]):
            yield unit_range(augment(x, self.augmentation, self.augment_with)).contiguous(), y

    def _indices(self):
        """The indices of this process's part of every batch of a new pass, in its order."""
        num = len(self.images)
        order = torch.arange(num) if self.shuffle_with is None else torch.randperm(num, generator=self.shuffle_with)
        batches = order.to(self.images.labels.device).split(self.batch_size)
        return [indices[self.shard[0]::self.shard[1]] for indices in batches]


batches = Batches                                        # called like a function: `for x, y in batches(images, 64):`
