"""Loads one split of a data set.

A data set is one uint8 tensor on one device, or a folder of files that are read as they are needed.
"""
from pathlib import Path

import numpy as np
import torch

from pyro_advbnn.datasets import decoding
from pyro_advbnn.datasets.arrays import read_arrays, read_cifar10, read_digits, read_npz, read_stl10
from pyro_advbnn.datasets.folders import list_folder, read_imagenet143
from pyro_advbnn.datasets.image_sets import Images, ImageSet, ImageView
from pyro_advbnn.datasets.names import DATASETS, LOADINGS, SPLITS
from pyro_advbnn.datasets.streaming import StreamedImages, default_workers
from pyro_advbnn.datasets.subsets import hold_out
from pyro_advbnn.system import distributed
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.memory import available_memory

_WHAT_DATA_DIR_IS = {
    "imagenet143": "the folder that holds train/<wnid>/ and val/<wnid>/; docs/data.md tells how to make them from "
                   "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar",
    "folder": "the folder that holds train/<class>/ and test/<class>/ (or val/<class>/)",
    "npz": "the file that holds x_train, y_train, x_test and y_test",
}


def load(name: str, split: str, data_dir: str | Path | None = None, *, image_size: int | None = None, loading: str = "auto",
         workers: int | None = None, device: str | torch.device | None = None) -> ImageSet:
    """One split of a data set, on the CPU; only the files of this split are read. imagenet143 is mapped, not read.

    name: one of DATASETS. split: "train" or "test".
    data_dir: the folder that holds the data set (for npz: the file). cifar10 and stl10 without it are looked for in
        `data/` and downloaded to there; digits comes with scikit-learn and needs none; the others cannot do without.
    image_size: only for folder: the shorter side is scaled to it and the centre is cut out.
    loading: for folder, whether the split is read into memory or streamed (see `StreamedImages`), which needs an
        image_size; auto reads what fits into the memory that is available, and into half of the device's.
    workers: threads that read streamed images ahead, by default `streaming.default_workers()`; 0: none is read ahead.
    device: where the images will be used.

    Raises InputError, in one line, for wrong arguments and for files that are missing, damaged or not as expected.
    """
    _check(name, split, data_dir, image_size, loading, workers)
    if name == "digits":
        return _digits(split)
    if name == "folder":
        paths, labels, class_names = list_folder(data_dir, split)
        return _folder(paths, labels, class_names, image_size, loading, workers, device)
    read = {"cifar10": read_cifar10, "stl10": read_stl10, "imagenet143": read_imagenet143, "npz": read_npz}[name]
    return _images(*read(data_dir, split))


def from_arrays(x: np.ndarray | torch.Tensor, y: np.ndarray | torch.Tensor) -> Images:
    """Images of your own in memory, on the CPU, for `batches`.

    x: uint8 (N, H, W, C) with C 1 or 3, or floats (N, C, H, W) in [0, 1]. y: class numbers (N,) from 0, integers.

    Raises InputError for arrays of another shape, type or range.
    """
    return _images(*read_arrays(_array(x), _array(y)))


def _array(values):
    if isinstance(values, torch.Tensor):
        return (values.float() if values.dtype == torch.bfloat16 else values).detach().cpu().numpy()
    return np.asarray(values)


def _check(name, split, data_dir, image_size, loading, workers):
    for argument, value, known in (("dataset", name, DATASETS), ("split", split, SPLITS), ("loading", loading, LOADINGS)):
        if value not in known:
            raise InputError(f"{argument} must be one of {', '.join(known)}, got {value!r}")
    if data_dir is None and name in _WHAT_DATA_DIR_IS:
        raise InputError(f"dataset {name} needs --data_dir, {_WHAT_DATA_DIR_IS[name]}")
    if data_dir is not None and name == "digits":
        raise InputError("--data_dir means nothing for dataset digits, which comes with scikit-learn")
    given = {"--image_size": image_size is not None, "--loading stream": loading == "stream",
             "--workers": workers is not None}
    for flag, is_given in given.items():
        if is_given and name != "folder":
            raise InputError(f"{flag} is only for dataset folder, not for {name}")
    if loading == "stream" and not image_size:
        raise InputError("--loading stream needs --image_size, the size that the images are brought to as they come")


def _digits(split):
    """The test split is 36 images of each class, the same ones always."""
    train, test = hold_out(_images(*read_digits()), 360, seed=0, balanced=True)
    return (train if split == "train" else test).in_memory()


def _folder(paths, labels, class_names, image_size, loading, workers, device):
    if loading == "stream" or (loading == "auto" and image_size and not _fits(len(paths), image_size, device)):
        return StreamedImages(paths, torch.arange(len(paths)), torch.from_numpy(labels), class_names, image_size,
                              default_workers() if workers is None else workers)
    return _images(decoding.decode(paths, image_size), labels, class_names)


def _fits(num, image_size, device):
    needed = num * 3 * image_size * image_size
    room = available_memory() / distributed.local_world_size()
    if device is not None and torch.device(device).type == "cuda":
        room = min(room, torch.cuda.mem_get_info(device)[0] / 2)
    return needed <= room


def _images(images, labels, class_names):
    pixels, labels = torch.from_numpy(images), torch.from_numpy(labels)
    if isinstance(images, np.memmap):
        return ImageView(pixels, torch.arange(len(labels)), labels, tuple(class_names))
    return Images(pixels, labels, tuple(class_names))
