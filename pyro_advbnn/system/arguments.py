"""What a caller of the library gives for a number or a path: found to be one, and named where it is not."""
import operator
import os
from pathlib import Path

from pyro_advbnn.system import quoting
from pyro_advbnn.system.errors import InputError


def is_whole(value):
    """Whether value is a whole number, as Python's and NumPy's integers are; true and false are none."""
    try:
        return not isinstance(value, bool) and operator.index(value) is not None
    except TypeError:
        return False


def check_at_least(name, value, least):
    """Raises InputError for a setting that is no whole number, or below its least value."""
    if not is_whole(value):
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r:.200}")
    if value < least:
        raise InputError(f"{name} must be at least {least}, got {value}")


def check_number(name, value):
    """Raises InputError for a setting that is no number; text is none, nor are true and false."""
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):     # the last but one: torch's, of several numbers
        raise InputError(f"{name} must be a number, got {value!r:.200}") from None


def as_path(name, value):
    """The Path that a text or an os.PathLike stands for.   Raises InputError for anything else, and for what no path can be."""
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{name} must be a path, got {value!r:.200}")
    text = os.fsdecode(value)
    flaw = quoting.flaw_of_path(text) or quoting.flaw(text)
    if flaw:
        raise InputError(f"{name} must be a path, got {quoting.quoted(text)} ({flaw})")
    return Path(text)
