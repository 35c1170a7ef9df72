"""What commands do at Ctrl-C, SIGTERM and SIGHUP (the terminal is gone): they stop at once, or finish what must be whole."""
import os
import signal
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command.   number: of the signal; code: the exit code, as a shell reports it.

    state: what the command leaves, in words for the user; for `commands.run`, where it has no way_on.
    """

    def __init__(self, number, state=""):
        super().__init__(number)
        self.number, self.code, self.state = number, 128 + number, state


def name_of(number):
    """A signal in words for the user."""
    return _WORDS[number]


@contextmanager
def raising():
    """These signals raise Interrupted inside."""

    def stop(number, _):
        raise Interrupted(number)

    with _handling(stop):
        yield


@contextmanager
def asking():
    """What asks to stop: its `number` is 0 or that of the first of these signals; the second one raises Interrupted."""
    asked = SimpleNamespace(number=0)

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
    """Signals that are ignored stay so, as nohup and a shell's background have it, and only the main thread has handlers."""
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _WORDS if main}
    before = {number: old for number, old in handlers.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
