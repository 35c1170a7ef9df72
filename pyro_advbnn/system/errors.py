"""What says that the input is wrong, not the program (an exception), or may be (a warning); checks; errors on one line."""
import math
import numbers
import os
from decimal import Decimal
from fractions import Fraction
from pathlib import Path


class InputError(ValueError):
    """Something the caller gave is wrong; the message is one line that says what and where."""


class Note(UserWarning):
    """What may be wrong, of which a check cannot be certain; a line "note: ..." in commands."""


def one_line(text):
    """text on one line, a control character in it as Python writes it."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in " ".join(text.split()))


def reason(error):
    """What an error says, on one line, cut where it is long; the name of its type where it says nothing."""
    return one_line(str(error))[:300] or type(error).__name__


def is_whole(value):
    """Whether value is a whole number, as Python's and NumPy's integers are; true and false are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_at_least(name, value, least):
    """Raises InputError for a setting that is no whole number, or below its least value."""
    if not is_whole(value):
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r:.200}")
    if value < least:
        raise InputError(f"{name} must be at least {least}, got {value}")


def check_number(name, value, low=0, high=math.inf, *, above=False):
    """Raises InputError for a setting that is no finite number in [low, high]; above: in (low, high]. Text is none."""
    try:
        if isinstance(value, bool | str | bytes | Fraction | Decimal):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):     # the last but one: torch's, of several numbers
        raise InputError(f"{name} must be a number, got {value!r:.200}") from None
    if not (low < number if above else low <= number) or number > high or number == math.inf:
        expected = f"be a number {'>' if above else '>='} {low}" if high == math.inf else f"lie in {'[('[above]}{low}, {high}]"
        raise InputError(f"{name} must {expected}, got {value}")


def as_path(name, value):
    """The Path that a text or an os.PathLike stands for.   Raises InputError for anything else, and for an empty text."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise InputError(f"{name} must be a path, got {value!r:.200}")
    return Path(value)
