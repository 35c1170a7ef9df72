"""What commands do at Ctrl-C and at SIGTERM: stop at once, or finish what must not be left half done."""
import os
import signal
import sys
import threading
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command.   number: of the signal; code: the exit code, as a shell reports it."""

    def __init__(self, number):
        super().__init__(number)
        self.number, self.code = number, 128 + number


class Asked:
    """Whether a signal has asked to stop.   number: of the signal, 0 before."""

    number = 0


def name_of(number):
    """A signal in words for the user."""
    return "interrupted" if number == signal.SIGINT else "terminated"


@contextmanager
def raising():
    """SIGTERM raises Interrupted inside, as Ctrl-C raises KeyboardInterrupt anyway."""

    def stop(number, _):
        raise Interrupted(number)

    with _handling(stop, signal.SIGTERM):
        yield


@contextmanager
def asking():
    """An `Asked` that the first Ctrl-C or SIGTERM sets and the body has to obey; the second one raises Interrupted."""
    asked = Asked()

    def ask(number, _):
        if asked.number:
            raise Interrupted(number)
        asked.number = number
        if sys.stderr.isatty():                          # not by print, which may be at work itself
            os.write(sys.stderr.fileno(), b"\nstopping after this step; Ctrl-C again stops at once\n")

    with _handling(ask, signal.SIGINT, signal.SIGTERM):
        yield asked


@contextmanager
def _handling(handler, *numbers):
    """`handler` inside; in other threads than the main one, and of signals that are ignored, nothing changes."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in numbers if main}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
