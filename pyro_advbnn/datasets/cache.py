"""A split of decoded images that is kept in an .npy file and mapped: the system reads what is used of it."""
import hashlib
import math
import os

import numpy as np

from pyro_advbnn.datasets.decoding import decode, decode_to
from pyro_advbnn.system import files


def decode_once(paths, cache, image_size):
    """`decoding.decode` as an array that is mapped from the file `cache`, written first unless it is up to date.

    Up to date is a file that was made of image files of the same names and sizes. Where it cannot be written, the
    images are decoded into memory.
    """
    shape, fingerprint = (len(paths), 3, image_size, image_size), _fingerprint(paths, image_size)
    images = _mapped(cache, shape, fingerprint)
    if images is not None:
        return images
    try:
        _write(cache, paths, shape, fingerprint)
    except OSError:                                      # the cache only saves time and memory
        return decode(paths, image_size)
    return _mapped(cache, shape, fingerprint)


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
    try:
        with open(cache, "rb") as file:
            file.seek(-len(fingerprint), os.SEEK_END)
            if file.read() != fingerprint:
                return None
        images = np.lib.format.open_memmap(cache, "c")   # of no objects; "c", as torch warns of arrays that are read-only
    except Exception:    # numpy's reader of a damaged header may raise anything, from tokenize.TokenError to MemoryError
        return None
    return images if images.dtype == np.uint8 and images.shape == shape else None


def _write(cache, paths, shape, fingerprint):
    """Decodes every image into its place in a new .npy file, so that memory holds none; the fingerprint comes behind them."""
    with files.replacing(cache) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.flush()
        start, size = file.tell(), math.prod(shape[1:])
        end = start + shape[0] * size
        if hasattr(os, "posix_fallocate"):               # not on macOS: a full disk shows before the work
            os.posix_fallocate(file.fileno(), 0, end + len(fingerprint))
        decode_to(lambda i, pixels: os.pwrite(file.fileno(), pixels, start + i * size), paths, shape[3], shape[1:])
        os.pwrite(file.fileno(), fingerprint, end)
