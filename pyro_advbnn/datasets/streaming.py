"""A folder of images that does not fit in the memory: threads read the files while the device works."""
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from pyro_advbnn.datasets import decoding
from pyro_advbnn.datasets.cache import update_with_names
from pyro_advbnn.datasets.image_sets import Images, ImageSet
from pyro_advbnn.system import distributed


@dataclass(frozen=True, eq=False)
class StreamedImages(ImageSet):
    """Images that are read from their files batch by batch, the same as `decoding.decode` gives.

    paths: image files, of which rows (int64 (N,)) are those of this set. labels: of the rows, on the CPU.
    image_size: the shorter side is scaled to it and the centre is cut out.
    workers: threads that read batches ahead (Pillow decodes outside the interpreter lock); 0: each is read when its turn comes.
    device: where `read` copies the batches to.

    An image that cannot be read is found when its turn comes: `read` then raises InputError.
    """

    paths: list[str]
    rows: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    image_size: int
    workers: int = 0
    device: torch.device = torch.device("cpu")

    @property
    def images(self) -> torch.Tensor:
        return self.in_memory().images

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 3, self.image_size, self.image_size

    def to(self, device) -> "StreamedImages":
        """The set whose batches arrive on the device; labels, which only choose files, stay on the CPU."""
        return replace(self, device=torch.device(device))

    def take(self, indices) -> "StreamedImages":
        """The images at `indices`; no file is read."""
        indices = self._as_integers(indices)
        return replace(self, rows=self.rows[indices], labels=self.labels[indices])

    def in_memory(self) -> Images:
        """All of them, read now by this process, on the device."""
        images = torch.from_numpy(decoding.decode(self._paths_at(self.rows), self.image_size))
        return Images(images, self.labels, self.class_names).to(self.device)

    def update_hash(self, digest):
        """Feeds the image size and the files' names and sizes: to read every pixel would be another pass.

        So a file that was changed and kept its name and size goes unnoticed.
        """
        digest.update(f"streamed {self.image_size}\n".encode())
        update_with_names(digest, self._paths_at(self.rows))

    def read(self, batches: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        pool, waiting = ThreadPoolExecutor(max(1, self.workers)), deque[tuple[Future, torch.Tensor]]()
        try:
            for indices in batches:
                waiting.append((pool.submit(self._pixels, indices), self.labels[indices]))
                if len(waiting) > 2 * self.workers:
                    yield self._on_device(*waiting.popleft())
            while waiting:
                yield self._on_device(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)           # also where the pass is given up, or an image cannot be read

    def _pixels(self, indices):
        """The images at `indices`, uint8 (B, 3, H, W), in memory from which a GPU copies without waiting."""
        paths = self._paths_at(self.rows[indices])
        pixels = torch.from_numpy(np.stack([decoding.read_image(path, self.image_size) for path in paths]))
        return pixels.pin_memory() if self.device.type == "cuda" else pixels

    def _on_device(self, pixels, labels):
        return pixels.result().to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _paths_at(self, rows):
        return [self.paths[row] for row in rows.tolist()]


def default_workers():
    """As many workers as this process has cores, shared out among the processes of torchrun; from 1 to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(8, cores // distributed.local_world_size()))
