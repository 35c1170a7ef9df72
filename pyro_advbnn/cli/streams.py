"""Standard output and standard error that nobody can read: closed before the command began, hung up, or full."""
import os
import select
import sys
from contextlib import suppress


def open_closed():
    """Where the process began without standard output or error (`>&-`), give it one that keeps nothing.

    The free descriptors 0 to 2 are taken first: a file that is opened later, a checkpoint say, would else get one of them,
    and with it what a library or a child writes to standard error.
    """
    if None not in (sys.stdout, sys.stderr):
        return
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= 2:
        os.set_inheritable(descriptor, True)
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))             # noqa: SIM115 for the whole process


def is_broken(stream):
    """Whether the reader of stream is gone: of a pipe, or of a terminal that has been hung up."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def is_full(stream):
    """Whether what stream holds back cannot be written, or nothing can."""
    try:
        stream.flush()
        os.write(stream.fileno(), b"")                   # an unbuffered one holds nothing back; /dev/full refuses this, too
    except OSError:
        return True
    return False


def silence(stream):
    """Send all that stream holds back and will get to nowhere; else Python would fail when it flushes at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def silence_broken():
    """Send what nobody can read any more to nowhere: a write to a terminal that has been hung up would fail."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):              # another program's, which has no descriptor or is closed
            if is_broken(stream):
                silence(stream)
