"""npz files: arrays by name, each looked at in its header before there is memory for it; nothing is unpickled."""
import math
import zipfile
import zlib
from contextlib import contextmanager

import numpy as np

from pyro_advbnn.system import files
from pyro_advbnn.system.errors import InputError, reason
from pyro_advbnn.system.memory import available_memory

MOST_INFLATION = 100                                     # of an array; photographs shrink to a half, drawings to a tenth
FREE_INFLATION = 2**26                                   # bytes that may come of any number of bytes, for sorted labels
_HEADER_LIMIT = 10_000                                   # NumPy's own limit, which it applies after reading the header
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}    # what np.savez and np.savez_compressed write
_HEADERS = {(1, 0): (2, np.lib.format.read_array_header_1_0), (2, 0): (4, np.lib.format.read_array_header_2_0)}


def read_arrays(path, names, within=None):
    """{name: array} of an npz file.

    within: the folder that the file must lie in. Raises InputError for a file that is no npz or damaged, a missing name,
    an array of objects, one whose header and size differ, one that inflates absurdly, and for more than fits in memory.
    """
    with _archive(path, within) as archive:
        found = _names(archive)
        missing = [name for name in dict.fromkeys(names) if name not in found]
        if missing:
            holds = ", ".join(name if name.isprintable() else ascii(name) for name in found[:20]) or "nothing"
            raise InputError(f"{path}: lacks {', '.join(missing)}; it holds {holds}{', and more' * (len(found) > 20)}")
        _refuse_too_large(path, [_checked(archive, name, f"{path}: {name}") for name in names])
        return {name: _array(archive, name) for name in names}


def read_shape(path, name):
    """The shape of one array of an npz file, from its header alone, or None where there is no such array.

    Raises InputError for a file that is no npz, or where the header cannot be read.
    """
    with _archive(path) as archive:
        if name not in _names(archive):
            return None
        with archive.open(f"{name}.npy") as file:
            return _header(file)[0]


@contextmanager
def _archive(path, within=None):
    try:
        files.checked_size(path, within=within)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not an npz file, or a truncated one")
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            yield archive
    except InputError:
        raise
    except Exception as error:  # a damaged archive may raise anything, from zlib.error to MemoryError
        raise InputError(f"{path}: cannot be read ({reason(error)})") from error


def _names(archive):
    return [name.removesuffix(".npy") for name in archive.namelist()]


def _checked(archive, name, where):
    """The bytes that an array takes, by its header, once that is found to agree with the archive's directory."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type not in _METHODS:
        raise InputError(f"{where} is compressed in a way that no npz file is")
    if entry.file_size > max(MOST_INFLATION * entry.compress_size, FREE_INFLATION):
        raise InputError(f"{where} would inflate from {entry.compress_size:,} to {entry.file_size:,} bytes; "
                         f"an array that shrinks so far is taken for an attack: save it uncompressed")
    with archive.open(entry) as file:
        shape, dtype = _header(file)
        begins = file.tell()
    if dtype.hasobject:
        raise InputError(f"{where} cannot be read: it holds Python objects, and none are made from a file")
    if not shape:
        raise InputError(f"{where} must be an array with one entry per image, got a single value")
    num_bytes = math.prod(shape) * dtype.itemsize
    found = entry.file_size - begins
    if num_bytes != found:
        raise InputError(f"{where} cannot be read: {dtype} {shape} takes {num_bytes:,} bytes, it has {found:,}")
    return num_bytes


def _header(file):
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"an array of the unknown version {version}")
    width, read = _HEADERS[version]
    length = int.from_bytes(file.read(width), "little")
    if length > _HEADER_LIMIT:
        raise ValueError(f"the header of an array claims {length:,} bytes")
    file.seek(-width, 1)
    shape, _, dtype = read(file)
    return shape, dtype


def _array(archive, name):
    with archive.open(f"{name}.npy") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise zlib.error("an array is longer than its header says")
        return array


def _refuse_too_large(path, sizes):
    needed, available = sum(sizes) + max(sizes), available_memory()      # the images are copied once to channels first
    if needed > available:
        raise InputError(f"{path}: its arrays need {needed / 2**30:.2f} GiB of memory, but {available / 2**30:.2f} GiB are "
                         f"available")
