"""What commands do at Ctrl-C, at SIGTERM and at SIGHUP, when their terminal hangs up.

They stop at once, or finish what must not be left half done.
"""
import os
import signal
import sys
import threading
from contextlib import contextmanager

from pyro_advbnn.cli import streams

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command.   number: of the signal; code: the exit code, as a shell reports it.

    state: what the command leaves, in words for the user; for `cli.run`, where it has no way_on.
    """

    def __init__(self, number, state=""):
        super().__init__(number)
        self.number, self.code, self.state = number, 128 + number, state


class Asked:
    """Whether a signal has asked to stop.   number: of the signal, 0 before."""

    number = 0


def name_of(number):
    """A signal in words for the user."""
    return _WORDS[number]


def speaks():
    """Whether this process tells the user why it ends: of several processes of torchrun only the first one does."""
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


def end_at_once():
    """From now on these signals end this process on the spot, in one line; the first act of a command, before its imports.

    While torch is imported, for seconds, nothing has begun that would have to be finished, and an exception would come out of
    the import as a traceback, or be swallowed in it. `raising` and `asking` take over for their time. It is for the process's
    own program (`__name__ == "__main__"`): a library that is imported leaves signals alone. Before the first line of the
    package, in the first hundredths of a second, Python still ends in its own way: with a traceback by Ctrl-C, else in silence.
    When the command is done and Python takes itself down it has given the signals back, and ends in silence by any.
    Standard output and error that are closed are opened here (`streams.open_closed`), before anything could take their place.
    """
    streams.open_closed()

    def end(number, _):
        try:
            if speaks():
                os.write(sys.stderr.fileno(), f"{name_of(number)}\n".encode())
        finally:
            os._exit(128 + number)

    for number in _heeded():
        signal.signal(number, end)


@contextmanager
def raising():
    """These signals raise Interrupted inside."""

    def stop(number, _):
        raise Interrupted(number)

    with _handling(stop):
        yield


@contextmanager
def asking():
    """An `Asked` that the first of these signals sets and the body has to obey; the second one raises Interrupted."""
    asked = Asked()

    def ask(number, _):
        if asked.number:
            raise Interrupted(number)
        asked.number = number
        if sys.stderr.isatty():                          # not by print, which may be at work itself
            os.write(sys.stderr.fileno(), b"\nstopping after this step; Ctrl-C again stops at once\n")

    with _handling(ask):
        yield asked


@contextmanager
def _handling(handler):
    def handle(number, _):
        if number == signal.SIGHUP:                      # it comes twice: from the shell, and at its end from the kernel
            signal.signal(number, signal.SIG_IGN)
            streams.silence_broken()
        handler(number, _)

    before = _heeded()
    try:
        for number in before:
            signal.signal(number, handle)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _heeded():
    """The handlers, by number, of those signals that may be given another: none in other threads than the main one, and none
    of signals that are ignored, as nohup and a shell's background have it."""
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _WORDS if main}
    return {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
