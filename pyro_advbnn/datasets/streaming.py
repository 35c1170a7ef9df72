"""A folder of images that does not fit in the memory: files are read by worker processes while the device works."""
import multiprocessing
import os
import re
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import forkserver, resource_tracker

import torch
from torch.multiprocessing.reductions import shared_cache
from torch.utils.data import DataLoader

from pyro_advbnn.datasets import decoding
from pyro_advbnn.datasets.cache import update_with_names
from pyro_advbnn.datasets.image_sets import Images, ImageSet
from pyro_advbnn.system import distributed
from pyro_advbnn.system.errors import InputError


@dataclass(frozen=True, eq=False)
class StreamedImages(ImageSet):
    """Images that are read from their files batch by batch, the same as `decoding.decode` gives.

    paths: image files, of which rows (int64 (N,)) are those of this set. labels: of the rows, on the CPU.
    image_size: the shorter side is scaled to it and the centre is cut out.
    workers: processes that read the files; 0 reads them in this one. A script of your own that uses any needs the guard
        `if __name__ == "__main__":`, because they are not forked from this process but import its main module.
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
        batches = list(batches)
        for pixels, indices in zip(self._pixels([self.rows[indices] for indices in batches]), batches, strict=True):
            labels = self.labels[indices].to(self.device, non_blocking=True)
            yield pixels.to(self.device, non_blocking=True), labels

    def _pixels(self, batches):
        """The images of each batch of rows, uint8 (B, 3, H, W) in memory from which a GPU copies without waiting."""
        workers = min(self.workers, len(batches))
        options = {"worker_init_fn": _end_with_parent, "multiprocessing_context": _context()} if workers else {}
        return _checked(
            _Reader(self.image_size), batch_size=None, sampler=map(self._paths_at, batches), num_workers=workers,
            pin_memory=self.device.type == "cuda", generator=torch.Generator(), **options)      # not torch's global one

    def _paths_at(self, rows):
        return [self.paths[row] for row in rows.tolist()]


def default_workers():
    """As many workers as this process has cores, shared out among the processes of torchrun; from 1 to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(8, cores // distributed.local_world_size()))


class _Reader:
    """The data set as DataLoader sees it: its indices are the paths of a batch, so that a worker holds none itself."""

    def __init__(self, image_size):
        self.image_size = image_size

    def __getitem__(self, paths):
        """uint8 (B, 3, H, W), or the InputError, which DataLoader would wrap in a traceback if it were raised."""
        try:
            with decoding.quiet():
                return torch.stack([torch.from_numpy(decoding.read_image(path, self.image_size)) for path in paths])
        except InputError as error:
            return error


def _checked(*arguments, **options):
    """DataLoader's batches; InputError in place of one with an image that cannot be read, and of a killed worker."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")      # more workers than cores: as asked for
        iterator = iter(DataLoader(*arguments, **options))
    try:
        for batch in iterator:
            if isinstance(batch, InputError):
                raise batch
            yield batch
            with shared_cache.lock:                      # torch's notes of batches that are used up: it keeps 128 of them,
                shared_cache.free_dead_references()      # each behind the memory of a batch, which glibc then cannot use again
    except (RuntimeError, EOFError, OSError) as error:   # the last two: while a batch came over from it
        if isinstance(error, RuntimeError) and not re.search("DataLoader worker|Pin memory thread", str(error)):
            raise
        raise InputError("a worker process that reads images was killed, maybe for lack of memory or of room in /dev/shm; "
                         "fewer --workers need less, 0 none") from None
    finally:
        del iterator                                     # ends the workers now: a traceback may keep this frame


def _context():
    """The start method forkserver: forked from here, workers could hang on locks of threads, such as CUDA's and NCCL's.

    Ctrl-C does not reach the server and the workers: this process answers by ending them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    resource_tracker.ensure_running()                    # which unblocks SIGINT when it starts
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})         # workers inherit it
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return context


def _end_with_parent(_):
    """In a worker: ends it when the process that reads dies. DataLoader's own watch sees the fork server, which lives on."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
