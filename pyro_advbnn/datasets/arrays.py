"""Data sets that are arrays, stored or in memory: digits, cifar10, stl10, npz, and the caller's own.

Every reader returns (images, labels, class_names): uint8 (N, C, H, W), int64 (N,) in [0, number of classes), tuple of str.
Those of files execute nothing that these hold, and open those of the asked-for split only (an npz has both in one).

scikit-learn and torchvision are imported by the readers that need them: they take seconds.
"""
import hashlib
import http.client
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np

from pyro_advbnn.system.errors import InputError, Note, reason

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
MAX_CLASSES = 100_000  # far above any real data set; keeps one absurd label from exhausting the memory


def read_digits():
    """scikit-learn's 1,797 handwritten digits, 8x8 in one channel, 0..16 scaled to 0..255; not split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return images[:, None], digits.target.astype(np.int64), tuple("0123456789")


def read_cifar10(data_dir, split):
    """CIFAR-10 from the published files in `data_dir/cifar-10-batches-py/`.

    Raises InputError for a file that is missing or whose MD5 is not the published one.
    """
    from torchvision.datasets import CIFAR10

    folder = _root(CIFAR10, data_dir, "cifar10", [CIFAR10.base_folder]) / CIFAR10.base_folder
    published = CIFAR10.train_list if split == "train" else CIFAR10.test_list
    images, labels = zip(*(_cifar10_batch(folder / name, md5) for name, md5 in published), strict=True)
    return np.concatenate(images), np.concatenate(labels), CIFAR10_CLASSES


def read_stl10(data_dir, split):
    """STL-10's labelled images from `data_dir/stl10_binary/` as published, or else from `data_dir/stl10.npz`.

    Raises InputError for a missing or truncated file and for labels out of range.
    """
    from torchvision.datasets import STL10

    root = _root(STL10, data_dir, "stl10", [STL10.base_folder, "stl10.npz"])
    if (root / STL10.base_folder).exists():
        return *_stl10_binary(root / STL10.base_folder, split), STL10_CLASSES
    path = root / "stl10.npz"
    images, labels = _npz_arrays(path, [f"x_{split}", f"y_{split}"])
    images = _channels_first(images, f"{path}: x_{split}", size=(96, 96, 3))
    return images, _checked_labels(labels, len(images), 10, f"{path}: y_{split}"), STL10_CLASSES


def read_npz(path, split):
    """Your own arrays: images x_train, x_test uint8 (N, H, W, C) with C 1 or 3, labels y_train, y_test integers from 0.

    The number of classes is the largest training label + 1, for both splits.
    Raises InputError for a file that is no npz, a missing array, a wrong shape or type, a label out of range and, of the
    training split, labels without 0.
    """
    train_labels, images, labels = _npz_arrays(path, ["y_train", f"x_{split}", f"y_{split}"])
    train_labels = _checked_labels(train_labels, train_labels.size, MAX_CLASSES, f"{path}: y_train")
    if split == "train":
        check_counted_from_0(train_labels, f"{path}: y_train")
    num_classes = int(train_labels.max()) + 1
    images = _channels_first(images, f"{path}: x_{split}")
    labels = _checked_labels(labels, len(images), num_classes, f"{path}: y_{split}")
    return images, labels, tuple(str(label) for label in range(num_classes))


def read_arrays(x, y):
    """The caller's own: images x, uint8 (N, H, W, C) with C 1 or 3 or floats (N, C, H, W) in [0, 1], and labels y (N,) from 0.

    Floats stay floats, in float32. The number of classes is the largest label + 1.
    Raises InputError for another shape or type, numbers out of [0, 1] and labels that are no integers from 0.
    """
    images = _unit_floats(x) if np.issubdtype(x.dtype, np.floating) else _channels_first(x, "x")
    labels = _checked_labels(y, len(images), MAX_CLASSES, "y")
    return images, labels, tuple(map(str, range(labels.max() + 1)))


def _unit_floats(x):
    """`x` (N, C, H, W) as float32, with strides as of `_channels_first`."""
    if x.ndim != 4 or not x.size or x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        raise InputError(f"x must be floats of shape (N, C, H, W), or uint8 (N, H, W, C), got {x.dtype} {x.shape}")
    low, high = x.min(), x.max()
    if not (low >= 0 and high <= 1):                     # true for NaN too
        raise InputError(f"x must lie in [0, 1] where it is floats, it reaches from {low:g} to {high:g}; normalisation is the "
                         f"network's first layer")
    return np.array(x, np.float32, order="C")


def _root(published, data_dir, name, layouts):
    """The folder that holds one of the `layouts`; without a `data_dir` it is `data/`, downloaded to if need be."""
    from torchvision.datasets.utils import download_and_extract_archive

    root = Path("data") if data_dir is None else Path(data_dir)
    if any((root / layout).exists() for layout in layouts):
        return root
    absent = f"{name}: there is no {' or '.join(str(root / layout) for layout in layouts)}"
    advice = f"unpack {published.url} in a folder and give that folder as --data_dir"
    if data_dir is not None:
        raise InputError(f"{absent}; {advice}")
    try:
        download_and_extract_archive(published.url, root, filename=published.filename, md5=published.tgz_md5)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        raise InputError(f"{absent}, and the download failed ({reason(error)}); {advice}") from error
    return root


def _bytes_of(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def _cifar10_batch(path, md5):
    content = _bytes_of(path)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise InputError(f"{path}: the file is damaged (its MD5 is {found}, published is {md5})")
    with warnings.catch_warnings(action="ignore"):       # of how NumPy once wrote its arrays
        batch = pickle.loads(content, encoding="latin1")
    images = batch["data"].reshape(-1, 3, 32, 32)
    return images, _checked_labels(np.asarray(batch["labels"]), len(images), 10, path)


def _stl10_binary(folder, split):
    """Images and labels of one split; the published files store images column by column and count labels from 1."""
    images_path, labels_path = folder / f"{split}_X.bin", folder / f"{split}_y.bin"
    labels = np.frombuffer(_bytes_of(labels_path), np.uint8).astype(np.int64) - 1
    labels = _checked_labels(labels, len(labels), 10, labels_path, first=1)
    images = np.frombuffer(_bytes_of(images_path), np.uint8)
    expected = len(labels) * 3 * 96 * 96
    if len(images) != expected:
        labels_are = f"the {len(labels)} labels of {labels_path.name}"
        raise InputError(f"{images_path}: expected {expected} bytes for {labels_are}, got {len(images)}")
    return np.ascontiguousarray(images.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)), labels


def _npz_arrays(path, names):
    """The arrays of these names in an npz file; nothing is unpickled."""
    try:
        if not zipfile.is_zipfile(path):
            raise InputError(f"{path}: {'not an npz file, or a truncated one' if Path(path).exists() else 'no such file'}")
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in dict.fromkeys(names) if name not in archive]
            if missing:
                raise InputError(f"{path}: lacks {', '.join(missing)}; it holds {', '.join(archive) or 'nothing'}")
            return [np.asarray(archive[name]) for name in names]     # of what is no array NpzFile gives the bytes
    except InputError:
        raise
    except Exception as error:  # a damaged archive may raise anything, from zlib.error to MemoryError
        raise InputError(f"{path}: cannot be read ({reason(error)})") from error


def _channels_first(images, where, size=None):
    """`images` (N, H, W, C) as (N, C, H, W), with strides by which torch takes one channel too for contiguous."""
    expected = "(N, {}, {}, {})".format(*size) if size else "(N, H, W, C) with C 1 or 3"
    fits = images.ndim == 4 and images.size > 0 and (images.shape[1:] == size if size else images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not fits:
        raise InputError(f"{where} must be uint8 of shape {expected}, got {images.dtype} {images.shape}")
    if images.max() == 1:
        warnings.warn(f"{where} reaches from 0 to 1 of 255, which is nearly black: were floats in [0, 1] cast to uint8?", Note,
                      stacklevel=2)
    return images.transpose(0, 3, 1, 2).copy()


def check_counted_from_0(labels, where):
    """Raises InputError for labels of training images that lack class 0, as of a file that counts classes from 1."""
    if labels.min() > 0:
        raise InputError(f"{where}: classes count from 0, but the smallest label is {int(labels.min())}")


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
