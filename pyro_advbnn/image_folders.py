"""Data sets that are folders of image files, one folder per class: imagenet143 and folder.

Every reader returns (images, labels, class_names): uint8 (N, 3, H, W), int64 (N,) in [0, number of classes), tuple of
str. It opens the image files of the wanted split only.
"""
import contextlib
import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pyro_advbnn.errors import InputError
from pyro_advbnn.records import replacing

IMAGENET_SIZE = 64
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # not EPS: Pillow opens it by running Ghostscript


def read_imagenet143(data_dir, split):
    """The 143 dog and cat classes of ILSVRC-2012 at 64x64, from `data_dir/train/<wnid>/` and `data_dir/val/<wnid>/`.

    Other class folders are left alone. The decoded split is cached as `data_dir/imagenet143-64-<split>.npz` where the
    folder is writable, and decoded anew when the names or sizes of the files have changed.
    Raises InputError for missing or empty classes, unreadable images and a split that exceeds the memory.
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
    return _decode_once(paths, data_dir / f"imagenet143-{IMAGENET_SIZE}-{split}.npz"), labels, wnids


def read_folder(data_dir, split, image_size=None):
    """Your own images from `data_dir/train/<class>/` and `data_dir/val/<class>/` (or `test/<class>/`).

    image_size: the shorter side is scaled to it and the centre is cut out; without it all images must be of one size.
    Class names are the names of train's folders, sorted.
    Raises InputError for missing, empty or differing class folders, unreadable images, images of different sizes and a
    split that exceeds the memory.
    """
    data_dir = Path(data_dir)
    layout = "one folder of images per class"
    class_names = _class_folders(_split_folder(data_dir, ["train"], layout))
    folder = _split_folder(data_dir, ["train"] if split == "train" else ["val", "test"], layout)
    if split == "test":
        _refuse_different_classes(data_dir / "train", class_names, folder, _class_folders(folder))
    paths, labels = _list_images(folder, class_names)
    return _decode(paths, image_size), labels, class_names


def available_memory():
    """Bytes that can be used without swapping (Linux); elsewhere the whole memory of the machine."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _imagenet143_wnids():
    return tuple((Path(__file__).parent / "imagenet143_wnids.txt").read_text().split())


def _split_folder(data_dir, names, content):
    for name in names:
        if (data_dir / name).is_dir():
            return data_dir / name
    wanted = " or ".join(f"{name}/" for name in names)
    if not data_dir.is_dir():
        raise InputError(f"{data_dir}: no such folder; --data_dir must hold {wanted} with {content}")
    raise InputError(f"{data_dir}: there is no {wanted} in it; it must hold {content}")


def _entries(folder):
    """What the folder holds, sorted by name, without hidden files."""
    try:
        return sorted((entry for entry in os.scandir(folder) if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror})") from error


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
    """The image files of all classes, and their labels as int64 (N,)."""
    paths, labels = [], []
    for label, name in enumerate(class_names):
        entries = _entries(folder / name)
        if not entries:
            raise InputError(f"{folder / name}: there are no images in this class folder")
        for entry in entries:
            if not entry.is_file():
                raise InputError(f"{entry.path}: expected an image file")
        paths += [Path(entry.path) for entry in entries]
        labels += [label] * len(entries)
    return paths, np.array(labels, dtype=np.int64)


def _decode(paths, image_size):
    """All images as one uint8 array (N, 3, H, W)."""
    with warnings.catch_warnings():  # once for all threads: the filters belong to the process
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        width, height = (image_size, image_size) if image_size else _read(paths[0], lambda image: image.size)
        _refuse_too_large(len(paths), height, width, paths[0].parent.parent)
        images = np.empty((len(paths), 3, height, width), dtype=np.uint8)

        def fill(i):
            pixels = _read(paths[i], lambda image: _pixels(image, image_size))
            if pixels.shape != (height, width, 3):
                other = f"{paths[i]} is {pixels.shape[1]}x{pixels.shape[0]}"
                raise InputError(f"{paths[0]} is {width}x{height} but {other}; --image_size brings all to one size")
            images[i] = pixels.transpose(2, 0, 1)

        with ThreadPoolExecutor() as pool:  # threads, because Pillow releases the interpreter lock while it decodes
            done = pool.map(fill, range(len(paths)))
            for _ in tqdm(done, desc="decoding images", total=len(paths), disable=None, leave=False):
                pass
    return images


def _read(path, use):
    """What `use` makes of the opened image."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            return use(image)
    except Exception as error:  # Pillow raises anything from SyntaxError to struct.error for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a readable image ({reason})") from error


def _pixels(image, image_size):
    if image.mode.startswith(("I", "F")):  # convert() would silently clip them to white
        raise ValueError(f"mode {image.mode} has more than 8 bits per channel")
    image = image.convert("RGB")
    return np.asarray(_centre_square(image, image_size) if image_size else image)


def _centre_square(image, size):
    """What Resize(size, BICUBIC) and CenterCrop(size) give, without making the pixels that the crop drops.

    So a file of 1x60000 pixels cannot fill the memory.
    """
    scaled = [size * side // min(image.size) for side in image.size]
    starts = [round((length - size) / 2) for length in scaled]
    box = [edge[i] * image.size[i] / scaled[i] for edge in (starts, [start + size for start in starts]) for i in (0, 1)]
    return image.resize((size, size), Image.Resampling.BICUBIC, box=tuple(box))


def _refuse_too_large(num, height, width, folder):
    needed, available = num * 3 * height * width, available_memory()
    if needed > available:
        gib = 2**30
        raise InputError(f"{folder}: {num} images of {width}x{height} need {needed / gib:.2f} GiB of memory, "
                         f"but {available / gib:.2f} GiB are available")


def _decode_once(paths, cache):
    """`_decode` at ImageNet's size, kept in the file `cache`."""
    _refuse_too_large(len(paths), IMAGENET_SIZE, IMAGENET_SIZE, paths[0].parent.parent)
    fingerprint = _fingerprint(paths)
    try:
        with open(cache, "rb") as file, np.load(file, allow_pickle=False) as stored:
            images = stored["images"] if str(stored["fingerprint"]) == fingerprint else None
    except Exception:  # no cache yet, or a damaged one, which may raise anything
        images = None
    shape = (len(paths), 3, IMAGENET_SIZE, IMAGENET_SIZE)
    if images is not None and images.dtype == np.uint8 and images.shape == shape:
        return images
    images = _decode(paths, IMAGENET_SIZE)
    _store(cache, images=images, fingerprint=fingerprint)
    return images


def _fingerprint(paths):
    digest = hashlib.sha256(f"RGB bicubic {IMAGENET_SIZE}\n".encode())
    for path in paths:
        digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _store(path, **arrays):
    """Writes the npz as a whole or, in a folder that is not writable, not at all: the cache only saves time."""
    with contextlib.suppress(OSError), replacing(path) as file:
        np.savez(file, **arrays)
