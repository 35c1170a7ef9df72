"""A split of decoded images that is kept in an .npy file and mapped: the system reads what is used of it."""
import errno
import hashlib
import math
import os

import numpy as np

from pyro_advbnn.datasets.decoding import decode, decode_to
from pyro_advbnn.system import files
from pyro_advbnn.system.files import replacing

_MOST_HEADER = 1000                                      # bytes before the array


def decode_once(paths, cache, image_size):
    """`image_files.decode` as an array that is mapped from the file `cache`, written first unless it is up to date.

    Up to date is a file that was made of image files of the same names and sizes. Where it cannot be written, the
    images are decoded into memory. Raises InputError where `cache` is a link out of its folder or no file at all.
    """
    shape, fingerprint = (len(paths), 3, image_size, image_size), _fingerprint(paths, image_size)
    images = _mapped(cache, shape, fingerprint)
    if images is not None:
        return images
    try:
        return _write(cache, paths, shape, fingerprint)
    except OSError:                                      # the cache only saves time and memory
        return decode(paths, image_size)


def update_with_names(digest, paths):
    """Feeds the names and sizes of image files, with the names of their class folders, to a hash of hashlib's."""
    for path in paths:
        name = os.path.join(*path.split(os.sep)[-2:])
        digest.update(f"{name} {os.stat(path).st_size}\n".encode(errors="surrogateescape"))


def _fingerprint(paths, image_size):
    digest = hashlib.sha256(f"RGB bicubic {image_size}\n".encode())
    update_with_names(digest, paths)
    return digest.hexdigest().encode()


def _mapped(cache, shape, fingerprint):
    """The array in the file; None where there is no such file, a damaged one, or one made of other images."""
    if not files.is_there(cache):
        return None
    size = files.checked_size(cache, within=cache.parent)
    if not 0 < size - len(fingerprint) - math.prod(shape) < _MOST_HEADER:
        return None
    try:
        with open(cache, "rb") as file:
            file.seek(-len(fingerprint), os.SEEK_END)
            if file.read() != fingerprint:
                return None
        images = np.load(cache, mmap_mode="c", allow_pickle=False)  # "c", as torch warns of arrays that are read-only
    except (OSError, ValueError):
        return None
    return images if images.dtype == np.uint8 and images.shape == shape else None


def _write(cache, paths, shape, fingerprint):
    """The array, mapped from a new file: .npy, with the fingerprint behind the array.

    Every image is decoded into the file, so that memory holds no second copy; written, because a mapped file ends the
    process where the disk is full. The npz of earlier versions cannot be mapped and makes room.
    """
    with replacing(cache) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.flush()
        start, size = file.tell(), math.prod(shape[1:])
        _reserve(file, start + shape[0] * size + len(fingerprint))

        def store(i, pixels):
            if os.pwrite(file.fileno(), pixels.tobytes(), start + i * size) != size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(cache))

        decode_to(store, paths, shape[3], shape[2:])
        os.pwrite(file.fileno(), fingerprint, start + shape[0] * size)
        images = np.memmap(file.name, np.uint8, "c", start, shape)
    cache.with_suffix(".npz").unlink(missing_ok=True)
    return images


def _reserve(file, num_bytes):
    """Takes the room on the disk, so that a full one shows before the work."""
    if hasattr(os, "posix_fallocate"):                   # not on macOS
        os.posix_fallocate(file.fileno(), 0, num_bytes)
