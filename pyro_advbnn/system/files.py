"""Files that are written in one step, so that a crash leaves the old one or the new one."""
import os
import re
from contextlib import contextmanager
from pathlib import Path

from pyro_advbnn.system.errors import InputError, as_path


def file_to_write(path):
    """`path` as a Path.   Raises InputError for what is none, and for a folder's."""
    path = as_path("path", path)
    if path.is_dir():
        raise InputError(f"path must be that of a file, got the folder {path}")
    return path


@contextmanager
def replacing(path):
    """A binary file to write, which becomes `path` in one step at the end: a crash leaves the old file or the new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)               # a leftover, or a link that somebody planted
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno:                                  # a full disk names no file, others the temporary one
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)               # left over only where something failed


def is_temporary(path):
    """Whether the name of `path` is that of a file which `replacing` was writing when its process ended."""
    return bool(re.fullmatch(r"\..+\.\d+\.tmp", Path(path).name))
