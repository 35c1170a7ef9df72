"""What a flag may be, read from the annotation of its argument: one meaning for texts, values from Python and from JSON."""
import math
import numbers
import os
import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pyro_advbnn.system.errors import InputError, is_whole

MAX_COUNT = 10_000                                       # a mistyped step should not fill the memory
# Three digits of exponent are enough for any float, and keep Fraction from computing 10**1000000000.
_DECIMAL = re.compile(r"[+-]?(\d+(_\d+)*\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_ROUNDING = Fraction(1, 10**9)                           # of one step: how near a range must come to its stop to hit it


@dataclass(frozen=True)
class Range:
    """The numbers from low to high, without an end that is open: ``Annotated[float, Range(0, 1, open_low=True)]``."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return "" if self.low == -math.inf else f"{'>' if self.open_low else '>='} {self.low}"
        return f"in {'(' if self.open_low else '['}{self.low}, {self.high}{')' if self.open_high else ']'}"


EVERY_NUMBER = Range()
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path", types.NoneType: "none"}

# How large the numbers of flags may be: what is beyond is a slip of the keyboard, and would fill the memory or never end.
BatchSize = Annotated[int, Range(1, 1_000_000)]
Count = Annotated[int, Range(1, 100_000)]                            # draws, or steps
CountOrNone = Annotated[int, Range(0, 100_000)]
Epochs = Annotated[int, Range(1, 1_000_000)]
ImageCount = Annotated[int, Range(1, 1_000_000_000)]                 # a data set has fewer, and says so
ImagesOrNone = Annotated[int, Range(0, 1_000_000_000)]
Jobs = Annotated[int, Range(1, 256)]
Minutes = Annotated[float, Range(0, 10_000_000, open_low=True)]      # 19 years
Queries = Annotated[int, Range(1, 10_000_000)]
Repeats = Annotated[int, Range(1, 10_000)]
Seed = Annotated[int, Range(0, 2**31 - 1)]
Side = Annotated[int, Range(1, 2048)]                                # pixels
Width = Annotated[int, Range(1, 4096)]                               # channels
Workers = Annotated[int, Range(0, 256)]
CudaGraphs = Literal["auto", "on", "off"]


def read(name: str, text: str, annotation: Any) -> Any:
    """The value that text has under annotation.

    A number is finite and spelled as "0.03", "1e-3", "1_000", "8/255" or "-1/2"; a list of numbers is such as
    "0,0.01:0.03:0.01,8/255". A range start:stop:step, of at most 10,000 numbers, is computed in fractions, so that each value
    is the float nearest to its decimal, and holds stop when a step hits it within rounding.

    Raises:
        InputError: it has none; the message begins with name.
    """
    return _value(name, text, annotation, _parsed, expected(annotation))


def take(name: str, value: Any, annotation: Any) -> Any:
    """value, given from Python or JSON, as annotation has it: what stands for a path is one, a number alone a list of it.

    Raises:
        InputError: it is no such value; the message begins with name.
    """
    return _value(name, value, annotation, lambda value, member: value, expected(annotation, written=False))


def expected(annotation: Any, *, written: bool = True) -> str:
    """The values under annotation in words; written: with how a list is written as text."""
    return " or ".join(_words(member, bounds, written) for member, bounds in members(annotation))


def members(annotation: Any, bounds: Range = EVERY_NUMBER) -> list[tuple[Any, Range]]:
    """The plain types of which annotation is a union, each with its range.

    Raises:
        TypeError: one is not of those that flags know.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return members(arguments[0], next((extra for extra in arguments[1:] if isinstance(extra, Range)), bounds))
    if origin in (Union, types.UnionType):
        return [pair for member in arguments for pair in members(member, bounds)]
    if origin is list:
        (element, within), *others = members(arguments[0], bounds)
        if not others:
            return [(list[element], within)]
    elif origin is Literal or annotation in _WORDS:
        return [(annotation, bounds)]
    raise TypeError(f"no flag can have the type {annotation}")


def _words(member: Any, bounds: Range, written: bool) -> str:
    if get_origin(member) is Literal:
        words = ", ".join(map(str, get_args(member)))
        return f"one of {words}" if len(get_args(member)) > 1 else words
    if get_origin(member) is not list:
        return f"{_WORDS[member]} {bounds}".strip() if member in (int, float) else _WORDS[member]
    element, = get_args(member)
    if element in (int, float):
        words = f"a list of {'integers' if element is int else 'numbers'} {bounds}".strip()
        return f"{words} written a,b,c or start:stop:step" if written else words
    return f"a list{' written a,b,c' if written else ''}, each {_words(element, bounds, written)}"


def _value(name: str, given: Any, annotation: Any, parsed: Callable[[Any, Any], Any], words: str) -> Any:
    reason = ""
    for member, bounds in sorted(members(annotation), key=lambda pair: pair[0] in (str, Path)):   # free text takes all: last
        try:
            value = _checked(parsed(given, member), member)
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, ValueError) and str(error):
                reason = str(error)
            continue
        values = value if isinstance(value, list | tuple) else [value]
        if all(each in bounds for each in values if isinstance(each, int | float)):
            return value
        break                                            # a number out of range must not pass as the text of `float | str`
    because = f" ({reason})" if reason else ""
    raise InputError(f"{name} must be {words.removesuffix(' or none')}, got {given!r:.200}{because}")


def _parsed(text: str, member: Any) -> Any:
    """What text says, as Python code would.   Raises LookupError or ValueError where it says no such thing."""
    if get_origin(member) is list:
        element, = get_args(member)
        return _numbers(text) if element in (int, float) else [_parsed(word, element) for word in _split(text)]
    if get_origin(member) is Literal:
        return {str(choice): choice for choice in get_args(member)}[text]
    if member in (int, float):
        return _number(text)
    if member is bool:
        return {"true": True, "false": False}[text.lower()]
    return {"none": None}[text] if member is types.NoneType else text


def _checked(value: Any, member: Any) -> Any:
    """value as one of the type member.   Raises TypeError or ValueError where it is none."""
    if get_origin(member) is list:
        values = [value] if isinstance(value, numbers.Real) else value
        checked = [_checked(each, get_args(member)[0]) for each in values]
        fits = checked and not isinstance(value, str | bytes)
        value = tuple(checked) if isinstance(value, tuple) else checked
    elif get_origin(member) is Literal:
        fits = any(type(value) is type(choice) and value == choice for choice in get_args(member))
    elif member is int:
        fits = is_whole(value) or isinstance(value, Fraction) and value.denominator == 1
    elif member is float:
        fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    else:
        fits = isinstance(value, (str, os.PathLike) if member is Path else member) and value != ""
    if not fits:
        raise ValueError
    convert = member in (int, Path) or member is float and not isinstance(value, int)
    return member(value) if convert else value


def _number(text: str) -> Fraction:
    parts = text.strip().split("/")
    if len(parts) > 2 or not all(map(_DECIMAL.fullmatch, parts)):
        raise ValueError
    above, below = Fraction(parts[0]), Fraction(parts[-1] if len(parts) == 2 else 1)
    if below == 0:
        raise ValueError("division by zero")
    if abs(above / below) > sys.float_info.max:
        raise ValueError("too large")
    return above / below


def _numbers(text: str) -> list[Fraction]:
    values = []
    for word in _split(text):
        values += _range(*map(_number, word.split(":"))) if ":" in word else [_number(word)]
    return values


def _range(start: Fraction, *stop_and_step: Fraction) -> list[Fraction]:
    if len(stop_and_step) != 2:
        raise ValueError("a range has three numbers, start:stop:step")
    stop, step = stop_and_step
    if step == 0 or (stop - start) / step < 0:
        raise ValueError(f"the step {float(step):g} does not lead from start to stop")
    count = math.floor((stop - start) / step + _ROUNDING) + 1
    if count > MAX_COUNT:
        raise ValueError(f"more than {MAX_COUNT} numbers")
    values = [start + step * k for k in range(count)]
    if abs(values[-1] - stop) <= abs(step) * _ROUNDING:
        values[-1] = stop
    return values


def _split(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise ValueError("an element is empty")
    return words
