"""Files: written in one step, looked at before they are opened."""
import errno
import os
import re
import stat
from contextlib import contextmanager
from pathlib import Path

from pyro_advbnn.system.errors import InputError, reason

TEXT_LIMIT = 2**28                                       # bytes of a text file; those of a long run are far smaller


def checked_size(path, *, within=None, limit=None):
    """The size in bytes of the regular file at `path`, links followed; nothing is opened, so that no pipe can hang.

    within: the folder that the file must lie in, also when links are followed. limit: the most bytes that it may have.

    Raises InputError for anything else, FileNotFoundError where there is nothing.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if not os.path.islink(path):
            raise
        raise InputError(f"{path}: a link to {os.readlink(path)!r}, which is not there") from None
    except (OSError, ValueError) as error:               # a ring of links, a folder that may not be entered
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} cannot be read: expected a file, found {_kind(status.st_mode)}")
    if within is not None:
        refuse_link_out(path, within)
    if limit is not None and status.st_size > limit:
        raise InputError(f"{path}: {status.st_size:,} bytes are more than the {limit:,} that such a file may have")
    return status.st_size


def refuse_link_out(path, folder):
    """Raises InputError where links lead from `path` out of `folder`, which itself may be a link."""
    real, home = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath([real, home]) != home:
        raise InputError(f"{path}: a link that leads out of {folder}, to {real}; copy what it points to into the folder")


def refuse_no_folder(path, expected):
    """Raises InputError where something else than a folder is at `path`; expected: what should be there, in words."""
    if is_there(path) and not os.path.isdir(path):
        raise InputError(f"{path}: {'a file, not a' if os.path.isfile(path) else 'no'} folder; {expected}")


def read_text(path, limit=TEXT_LIMIT):
    """The UTF-8 text of a file.   Raises InputError where it is none, FileNotFoundError where it is missing."""
    return _read(path, limit, lambda file: file.read_text("utf-8"))


def read_bytes(path, limit=TEXT_LIMIT):
    """The bytes of a file of text, which may be damaged.   Raises as `read_text` does."""
    return _read(path, limit, Path.read_bytes)


def _read(path, limit, read):
    checked_size(path, limit=limit)
    try:
        return read(Path(path))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or reason(error)}") from None


def is_there(path):
    """Whether something is at `path`, be it a link to nothing: what is there must be read or refused, not passed over."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    return True


def _kind(mode):
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device")


@contextmanager
def replacing(path, prove=None):
    """A binary file to write, which becomes `path` in one step at the end: a crash leaves the old file or the new one.

    prove: a function of the new file's path, called when it is on the disk; what it raises leaves the old file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        try:
            temporary.unlink(missing_ok=True)           # a leftover, or a link that somebody planted
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                _forget(file)
            if prove:
                prove(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)           # left over only where something failed


@contextmanager
def naming(path):
    """Errors of the system inside name `path`: a full disk names no file, others a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno:
            error.filename = str(path)
        raise


def sync_folder(folder):
    """Bring to the disk which names the folder holds; without it a power cut may undo a renaming."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems do this by themselves
            raise
    finally:
        os.close(handle)


def is_temporary(path):
    """Whether the name of `path` is that of a file which `replacing` was writing, or a lock, when its process ended."""
    return bool(re.fullmatch(r"\..+\.\d+\.tmp", Path(path).name))


def _forget(file):
    """Let what is read next come from the disk, not from the system's memory of what was written."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
