"""Data sets that are stored as arrays: digits, cifar10, stl10, npz.

Every reader takes the folder (or file) and the split, and returns (images, labels, class_names): uint8 (N, C, H, W),
int64 (N,) in [0, number of classes), tuple of str. It opens the files of that split only and executes nothing that they
hold.
"""
import hashlib
import http.client
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, STL10
from torchvision.datasets.utils import download_and_extract_archive

from pyro_advbnn.datasets.array_archives import read_arrays, read_shape
from pyro_advbnn.system import files
from pyro_advbnn.system.errors import InputError, reason
from pyro_advbnn.system.memory import available_memory

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
MAX_CLASSES = 100_000  # far above any real data set; keeps one absurd label from exhausting the memory
MAX_BATCH_BYTES = 2**26  # of a file of CIFAR-10; the published ones have half of it
MAX_LABELS = 10**6  # of STL-10, which has 8,000


def read_digits():
    """scikit-learn's 1,797 handwritten digits, 8x8 in one channel, 0..16 scaled to 0..255; not split."""
    # Imported here, because it takes a second and only this data set needs it.
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return images[:, None], digits.target.astype(np.int64), tuple("0123456789")


def read_cifar10(data_dir, split):
    """CIFAR-10 from the published files in `data_dir/cifar-10-batches-py/`.

    Raises InputError for a file that is missing or whose MD5 is not the published one.
    """
    root = _root(CIFAR10, data_dir, "cifar10", [CIFAR10.base_folder])
    published = CIFAR10.train_list if split == "train" else CIFAR10.test_list
    batches = [_cifar10_batch(root / CIFAR10.base_folder / name, md5, root) for name, md5 in published]
    images = np.concatenate([images for images, _ in batches])
    return images, np.concatenate([labels for _, labels in batches]), CIFAR10_CLASSES


def read_stl10(data_dir, split):
    """STL-10's labelled images from `data_dir/stl10_binary/` as published, or else from `data_dir/stl10.npz`.

    Raises InputError for a missing or truncated file and for labels out of range.
    """
    root = _root(STL10, data_dir, "stl10", [STL10.base_folder, "stl10.npz"])
    if (root / STL10.base_folder).exists():
        return *_stl10_binary(root / STL10.base_folder, split, root), STL10_CLASSES
    path = root / "stl10.npz"
    arrays = read_arrays(path, [f"x_{split}", f"y_{split}"], within=root)
    images = _channels_first(arrays[f"x_{split}"], f"{path}: x_{split}", size=(96, 96, 3))
    return images, _checked_labels(arrays[f"y_{split}"], len(images), 10, f"{path}: y_{split}"), STL10_CLASSES


def read_npz(path, split):
    """Your own arrays: images x_train, x_test uint8 (N, H, W, C) with C 1 or 3, labels y_train, y_test integers from 0.

    The number of classes is the largest training label + 1, for both splits. Of x_test the training split looks at the
    header alone, whose images must be of the same size and channels.
    Raises InputError for a file that is no npz, a missing array, a wrong shape or type, a label out of range.
    """
    if Path(path).is_dir():
        raise InputError(f"{path}: a folder; data set npz takes the file itself, --data_dir FILE.npz")
    if not files.is_there(path):
        raise InputError(f"{path}: no such file; data set npz takes --data_dir FILE.npz")
    arrays = read_arrays(path, ["y_train", f"x_{split}", f"y_{split}"])
    train_labels = _checked_labels(arrays["y_train"], len(arrays["y_train"]), MAX_CLASSES, f"{path}: y_train")
    images = _channels_first(arrays[f"x_{split}"], f"{path}: x_{split}")
    if split == "train":
        _refuse_other_tests(path, arrays["x_train"].shape)
    num_classes = int(train_labels.max()) + 1
    labels = _checked_labels(arrays[f"y_{split}"], len(images), num_classes, f"{path}: y_{split}")
    return images, labels, tuple(str(label) for label in range(num_classes))


def _refuse_other_tests(path, shape):
    """Raises InputError where the test images, which evaluation will want, are not like the training images (N, H, W, C)."""
    found = read_shape(path, "x_test")
    if found is not None and found[1:] != shape[1:]:
        raise InputError(f"{path}: x_test must hold images like x_train, (N, {', '.join(map(str, shape[1:]))}), got {found}")


def _root(published, data_dir, name, layouts):
    """The folder that holds one of the `layouts`; without a `data_dir` it is `data/`, downloaded to if need be."""
    root = Path("data") if data_dir is None else Path(data_dir)
    files.refuse_no_folder(root, f"data set {name} takes the folder that holds {' or '.join(layouts)}")
    if any((root / layout).exists() for layout in layouts):
        return root
    wanted = " or ".join(str(root / layout) for layout in layouts)
    absent = f"{name}: there is no {wanted}"
    advice = f"unpack {published.url} in a folder and give that folder as --data_dir"
    if data_dir is not None:
        raise InputError(f"{absent}; {advice}")
    new = not root.exists()
    try:
        download_and_extract_archive(published.url, root, filename=published.filename, md5=published.tgz_md5)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        if new and root.is_dir() and not any(root.iterdir()):
            root.rmdir()                                 # a download makes it before it fails
        raise InputError(f"{absent}, and the download failed ({reason(error)}); {advice}") from error
    return root


def _size_of(path, root, limit):
    try:
        return files.checked_size(path, within=root, limit=limit)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None


def _bytes_of(path, root, limit):
    _size_of(path, root, limit)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from error


def _cifar10_batch(path, md5, root):
    content = _bytes_of(path, root, MAX_BATCH_BYTES)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise InputError(f"{path}: the file is damaged (its MD5 is {found}, published is {md5})")
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        images = batch["data"].as_bytes().reshape(-1, 3, 32, 32)
        labels = np.asarray(batch["labels"])
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(f"{path}: not a CIFAR-10 batch ({reason(error)})") from error
    return images, _checked_labels(labels, len(images), 10, path)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads lists, dicts, strings and, as a `_PickledArray`, NumPy arrays, and nothing that could run code."""

    def find_class(self, module, name):
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in (
                "dtype", "ndarray", "_reconstruct"):
            return _PickledArray
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


class _PickledArray:
    """What a pickle says of an array, or of its type; NumPy itself crashes on some that are damaged."""

    def __init__(self, *arguments):
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state):
        self.state = state

    def as_bytes(self):
        """The array, uint8 in any shape.   Raises ValueError for another one."""
        _, shape, kind, is_fortran, content = self.state
        content = content.encode("latin1") if isinstance(content, str) else content     # of Python 2's pickles
        if kind.arguments[0] != "u1" or is_fortran:
            raise ValueError("its data must be uint8, row after row")
        return np.frombuffer(content, np.uint8).reshape(shape)


def _stl10_binary(folder, split, root):
    """Images and labels of one split; the published files store images column by column and count labels from 1."""
    labels_path, images_path = folder / f"{split}_y.bin", folder / f"{split}_X.bin"
    labels = np.frombuffer(_bytes_of(labels_path, root, MAX_LABELS), dtype=np.uint8).astype(np.int64) - 1
    labels = _checked_labels(labels, len(labels), 10, labels_path, first=1)
    expected = len(labels) * 3 * 96 * 96
    found = _size_of(images_path, root, available_memory() // 2)             # half, as they are copied once
    if found != expected:
        labels_are = f"the {len(labels)} labels of {labels_path.name}"
        raise InputError(f"{images_path}: expected {expected} bytes for {labels_are}, got {found}")
    images = np.frombuffer(_bytes_of(images_path, root, expected), dtype=np.uint8).reshape(-1, 3, 96, 96)
    return np.ascontiguousarray(images.transpose(0, 1, 3, 2)), labels


def _channels_first(images, where, size=None):
    """`images` (N, H, W, C) as a contiguous (N, C, H, W)."""
    expected = "(N, {}, {}, {})".format(*size) if size else "(N, H, W, C) with C 1 or 3"
    fits = images.ndim == 4 and images.size > 0 and (images.shape[1:] == size if size else images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not fits:
        raise InputError(f"{where} must be uint8 of shape {expected}, got {images.dtype} {images.shape}")
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _checked_labels(labels, num_images, num_classes, where, first=0):
    """`labels` as int64 in [0, num_classes); `first` is what the file calls class 0, for the message."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{where}: labels must be integers of shape (N,), got {labels.dtype} {labels.shape}")
    if not len(labels):
        raise InputError(f"{where}: there are no labels in it")
    if len(labels) != num_images:
        raise InputError(f"{where}: expected one label for each of {num_images} images, got {len(labels)} labels")
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        at = int(wrong.argmax())
        expected = f"from {first} to {num_classes - 1 + first}"
        raise InputError(f"{where}: labels must be {expected}, got {int(labels[at]) + first} for image {at}")
    return labels.astype(np.int64)
