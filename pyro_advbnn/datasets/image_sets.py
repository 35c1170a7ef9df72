"""Labelled sets of images that are one tensor, or rows of one that stays where it is."""
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from pyro_advbnn.system.errors import InputError

ROWS_AT_ONCE = 1024


class ImageSet:
    """What training and evaluation ask of every set of images, beside these methods.

    labels: int64 (N,) in [0, num_classes). class_names: one per class. image_shape: (C, H, W). device: that of the
    batches. images: all of them, uint8 (N, C, H, W), which of some sets makes a copy. take(indices) and view(indices):
    the images at `indices` (integers (M,), in that order, or bools (N,)); the view copies none. to(device): the set on another
    device. in_memory(): the set as `Images`. update_hash(digest): feeds what the images are to a hash of hashlib's.
    read(batches): yields, for each tensor of indices in `batches`, images and labels on the device.
    stored: of a set in memory or mapped, the tensor that holds its images, maybe among others.
    """

    labels: torch.Tensor
    class_names: tuple[str, ...]
    stored: torch.Tensor

    def read(self, batches: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        raise NotImplementedError

    def take(self, indices) -> "ImageSet":
        raise NotImplementedError

    def view(self, indices) -> "ImageSet":
        return self.take(indices)

    def _as_integers(self, indices):
        """int64 (M,), where the labels are, of indices or of a mask.   Raises InputError for what is neither."""
        indices = torch.as_tensor(indices, device=self.labels.device)
        if indices.dtype == torch.bool and indices.shape == self.labels.shape:
            return indices.nonzero().squeeze(1)
        if indices.dim() != 1 or len(indices) and (indices.dtype == torch.bool or indices.is_floating_point()):
            raise InputError(f"indices must be integers (M,), or a bool for each of {len(self)} images, got {indices.dtype} "
                             f"{tuple(indices.shape)}")
        return indices.to(torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.stored.shape[1:]
        return channels, height, width

    @property
    def device(self) -> torch.device:
        return self.stored.device

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True, eq=False)
class Images(ImageSet):
    """A labelled set of images.

    images: uint8 (N, C, H, W), of the caller's own arrays also float32 in [0, 1]. labels: int64 (N,) in [0, num_classes), on
    the same device. class_names: one per class.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]

    @property
    def stored(self) -> torch.Tensor:                    # type: ignore[override]
        return self.images

    def to(self, device) -> "Images":
        return Images(self.images.to(device), self.labels.to(device), self.class_names)

    def take(self, indices) -> "Images":
        indices = self._as_integers(indices)
        return Images(self.images[indices], self.labels[indices], self.class_names)

    def view(self, indices) -> "Images | ImageView":
        if self.device.type != "cpu":                    # where batches are cut, a copy is worth its room
            return self.take(indices)
        return ImageView(self.images, torch.arange(len(self)), self.labels, self.class_names).take(indices)

    def in_memory(self) -> "Images":
        return self

    def update_hash(self, digest):
        digest.update(self.images.cpu().contiguous().numpy())

    def read(self, batches: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for indices in batches:
            yield self.images[indices], self.labels[indices]


@dataclass(frozen=True, eq=False)
class ImageView(ImageSet):
    """Rows of a tensor that is not copied: it may be a mapped file, of which the system reads what is used.

    stored: as `Images.images`, on the CPU. rows: int64 (N,) in [0, M). labels: of the rows.
    """

    stored: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]

    @property
    def images(self) -> torch.Tensor:
        return self.stored[self.rows]

    def to(self, device) -> "Images | ImageView":
        """Itself on the CPU; on any other device the rows, copied part by part, so that they need no second room here."""
        if torch.device(device).type == "cpu":
            return self
        images = torch.empty((len(self), *self.image_shape), dtype=self.stored.dtype, device=device)
        for copied, rows in zip(images.split(ROWS_AT_ONCE), self.rows.split(ROWS_AT_ONCE), strict=True):
            copied.copy_(self.stored[rows])
        return Images(images, self.labels.to(device), self.class_names)

    def take(self, indices) -> "ImageView":
        indices = self._as_integers(indices)
        return ImageView(self.stored, self.rows[indices], self.labels[indices], self.class_names)

    def in_memory(self) -> Images:
        return Images(self.images, self.labels, self.class_names)

    def update_hash(self, digest):
        for rows in self.rows.split(ROWS_AT_ONCE):
            digest.update(self.stored[rows].numpy())

    def read(self, batches: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for indices in batches:
            yield self.stored[self.rows[indices]], self.labels[indices]
