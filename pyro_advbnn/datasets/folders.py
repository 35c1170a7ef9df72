"""Data sets that are folders of image files, one folder per class: imagenet143 and folder.

Labels are int64 (N,) in [0, number of classes), images uint8 (N, 3, H, W). Only files of the wanted split are opened.
"""
import os
from pathlib import Path

import numpy as np

from pyro_advbnn.datasets.cache import decode_once
from pyro_advbnn.system.errors import InputError

IMAGENET_SIZE = 64


def read_imagenet143(data_dir, split):
    """The 143 dog and cat classes of ILSVRC-2012 at 64x64, from `data_dir/train/<wnid>/` and `data_dir/val/<wnid>/`.

    Returns (images, labels, class_names). Other class folders are left alone. The decoded split is kept in the file
    `data_dir/imagenet143-64-<split>.npy`, which is then mapped (images is an np.memmap) and decoded anew when the names
    or sizes of the image files have changed; where the folder cannot be written to, it is decoded into memory each time.
    Raises InputError for missing or empty classes and unreadable images.
    """
    data_dir = Path(data_dir)
    folder = _split_folder(data_dir, ["train" if split == "train" else "val"], "the class folders of ILSVRC-2012")
    wnids = _imagenet143_wnids()
    missing = [wnid for wnid in wnids if not (folder / wnid).is_dir()]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        listed = ", ".join(missing[:10])
        raise InputError(f"{folder}: lacks {len(missing)} of the 143 dog and cat classes of ImageNet: {listed}{more}")
    paths, labels = _list_images(folder, wnids)
    cache = data_dir / f"imagenet143-{IMAGENET_SIZE}-{split}.npy"
    return decode_once(paths, cache, IMAGENET_SIZE), labels, wnids


def list_folder(data_dir, split):
    """Your own images in `data_dir/train/<class>/` and `data_dir/test/<class>/`, without that `val/<class>/`, not opened yet.

    Returns (paths, labels, class_names): the names of train's folders, sorted.
    Raises InputError for missing, empty or differing class folders.
    """
    data_dir = Path(data_dir)
    layout = "one folder of images per class"
    class_names = _class_folders(_split_folder(data_dir, ["train"], layout))
    folder = _split_folder(data_dir, ["train"] if split == "train" else ["test", "val"], layout)
    if split == "test":
        _refuse_different_classes(data_dir / "train", class_names, folder, _class_folders(folder))
    return *_list_images(folder, class_names), class_names


def _imagenet143_wnids():
    return tuple((Path(__file__).parent / "imagenet143_wnids.txt").read_text().split())


def _split_folder(data_dir, names, content):
    for name in names:
        if (data_dir / name).is_dir():
            return data_dir / name
    wanted = " or ".join(f"{name}/" for name in names)
    if not data_dir.is_dir():
        raise InputError(f"there is no folder {data_dir}; --data_dir must hold {wanted} with {content}")
    raise InputError(f"{data_dir}: there is no {wanted} in it; --data_dir must hold {wanted} with {content}")


def _entries(folder):
    """What the folder holds, sorted by name, without hidden files."""
    return sorted((entry for entry in os.scandir(folder) if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _class_folders(folder):
    names = tuple(entry.name for entry in _entries(folder) if entry.is_dir())
    if not names:
        raise InputError(f"{folder}: there are no class folders in it")
    return names


def _refuse_different_classes(train_folder, train_names, folder, names):
    for name in sorted(set(train_names) ^ set(names)):
        has, lacks = (train_folder, folder) if name in train_names else (folder, train_folder)
        raise InputError(f"{lacks}: there is no class folder {name!r}, but {has} has one")


def _list_images(folder, class_names):
    """The image files of all classes, as text because there may be millions, and their labels as int64 (N,)."""
    paths, labels = [], []
    for label, name in enumerate(class_names):
        entries = _entries(folder / name)
        if not entries:
            raise InputError(f"{folder / name}: there are no images in this class folder")
        paths += [entry.path for entry in entries]
        labels += [label] * len(entries)
    return paths, np.array(labels, dtype=np.int64)
