"""One process at a time in a folder: a lock of `filelock`, which the kernel frees when its process ends, and who has it."""
import os
import shlex
import socket
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pyro_advbnn.system.errors import InputError

NAME, OWNER = ".lock", ".lock-owner"                     # two files: some versions of filelock empty the first


@contextmanager
def locked(folder):
    """Only this process works in `folder`, which is made where it is missing and goes again where it stays empty.

    Raises InputError, which names the owner, where another process does, and where the folder cannot be written.
    """
    folder = Path(folder)
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    lock = FileLock(folder / NAME)
    try:
        _take(lock, folder)
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):                      # the folder is gone, or its disk has become read-only
                (folder / OWNER).unlink(missing_ok=True)
                if missing and os.listdir(folder) == [NAME]:
                    (folder / NAME).unlink()
            lock.release()
        with suppress(OSError):                          # at the first that holds something
            for place in missing:
                place.rmdir()


def _take(lock, folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
        command, now = shlex.join(sys.orig_argv)[:300], time.strftime("%Y-%m-%d %H:%M:%S")
        (folder / OWNER).write_text(f"process {os.getpid()} on {socket.gethostname()} ({command}, since {now})")
    except Timeout:
        raise InputError(f"{folder} is in use by {_owner(folder)}; wait for its end, or stop it") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from None


def _owner(folder):
    try:
        return " ".join((folder / OWNER).read_text(errors="replace").split()) or "another process"
    except OSError:
        return "another process"
