"""One process at a time in a folder: a lock file that names its owner, and that the kernel frees when the owner ends.

The owner keeps the file open with flock on it. So whether an owner on this host is alive is never guessed from a process
number, which may have been given to another process since. Of an owner on another host nothing can be known.
"""
import fcntl
import json
import os
import secrets
import shlex
import socket
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from pyro_advbnn.system import files
from pyro_advbnn.system.errors import InputError

NAME = ".lock"
_handles = set()                                         # of the locks that this process holds


class Lock:
    """A lock that is held until `release`.   notice: what it was taken over from, as one line, or None."""

    def __init__(self, path, handle, notice=None):
        self.path, self.notice, self._handle = path, notice, handle
        _handles.add(handle)

    def moved(self, folder):
        """The same lock, whose folder has been renamed to `folder`."""
        self.path = Path(folder) / NAME
        return self

    def announce(self):
        """Print the notice, if there is one; for commands."""
        if self.notice:
            print(self.notice, flush=True)

    def release(self):
        """Take the file away, where it is still this lock's; a second call does nothing."""
        if self._handle not in _handles:
            return
        if _is(self.path, self._handle):
            with suppress(OSError):                      # the folder is gone, or its disk has become read-only
                self.path.unlink()
        _handles.discard(self._handle)
        os.close(self._handle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()


def take(folder):
    """The lock of `folder`, taken over where its owner was a process of this host that has ended.

    Raises InputError where another process has it, or one of another host may have it, OSError where it cannot be written.
    """
    path = Path(folder) / NAME
    while True:
        with suppress(FileExistsError):
            return Lock(path, _new(path, _link))
        with suppress(FileNotFoundError):                # released in the meantime
            left, owner = _left_behind(path)
            try:
                if _is(path, left):                      # nobody else has taken it over in the meantime
                    return Lock(path, _new(path, os.replace), f"note: {path} is taken over: {owner['what']} has ended")
            finally:
                os.close(left)


@contextmanager
def held(folder):
    """`take` for the time inside; the folder is made where it is missing, and goes again if it stays empty."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with take(folder) as lock:
            yield lock
    finally:
        with suppress(OSError):                          # at the first that holds something
            for place in missing:
                place.rmdir()


def is_left_behind(folder):
    """Whether `folder` has the lock of a process of this host that has ended."""
    try:
        handle, _ = _left_behind(Path(folder) / NAME)
        os.close(handle)
    except (InputError, FileNotFoundError):
        return False
    return True


def _left_behind(path):
    """(open handle with flock, owner) of the lock file of a dead owner.   Raises InputError as `take` does."""
    handle = _opened(path)
    owner = _owner(handle)
    try:
        free = _flock(handle)
    except OSError:                                      # a file system without flock: nobody can tell
        free = None
    here = owner is not None and owner["host"] == socket.gethostname()
    if free and here:
        return handle, owner
    os.close(handle)
    if owner is None:
        raise InputError(_unreadable(path, "its content is not what a lock says", in_use=free is False))
    way_on = "wait for its end, or stop it" if here and free is not None else f"if it has ended, delete {path}"
    raise InputError(f"{path.parent} is in use by {owner['what']}{'' if here else ', another host'}; {way_on}")


def _opened(path):
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:                             # another user's, a folder
        raise InputError(_unreadable(path, error.strerror)) from None


def _unreadable(path, reason, in_use=False):
    way_on = "a process has it open: wait for its end" if in_use else f"if no process works there, delete {path}"
    return (f"{path} cannot be read ({reason}): it is the lock of {path.parent} and should name the process that works there; "
            f"{way_on}")


def _owner(handle):
    """{host, what: the owner in words} of a lock file; None where it does not say it."""
    try:
        owner = json.loads(os.pread(handle, 10_000, 0))
        what = f"process {owner['pid']} on {owner['host']} ({owner['command']}, since {owner['since']})"
        return {"host": owner["host"], "what": " ".join(what.split())}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _new(path, put):
    """The open handle of a new lock file, whole and with flock before `put(temporary, path)` brings it to its place."""
    with files.naming(path):                           # a full disk names no file
        return _written(path, put)


def _written(path, put):
    temporary = path.with_name(f"{NAME}.{secrets.token_hex(4)}.{os.getpid()}.tmp")
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with suppress(OSError):                          # a file system without flock: its locks are never taken over
            _flock(handle)
        os.write(handle, json.dumps({
            "pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "command": shlex.join(sys.orig_argv)[:300]}).encode())
        put(temporary, path)
    except BaseException:
        os.close(handle)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return handle


def _link(temporary, path):
    """Give the file the name `path` unless there is one; where the file system has no links, nearly as well."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        if path.exists():
            raise FileExistsError(path) from None
        os.rename(temporary, path)


def _flock(handle):
    """Whether nobody else had the file."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(path, handle):
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except OSError:
        return False


def _leave_to_the_parent():
    """A forked child, which may live longer, must not keep the locks of its parent."""
    while _handles:
        os.close(_handles.pop())


os.register_at_fork(after_in_child=_leave_to_the_parent)
