"""What the text of a flag may mean, read from the annotation of the argument: numbers, choices, lists and unions."""

import difflib
import math
import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pyro_advbnn.system.errors import InputError

MAX_COUNT = 10_000  # a mistyped step should not fill the memory
LIST_AS_TEXT = " written a,b,c or start:stop:step"
MAX_DIGITS = 100  # _DECIMAL would look at a long word again from each of its digits
# Three digits of exponent are enough for any float, and keep Fraction from computing 10**1000000000.
_DECIMAL = re.compile(r"[+-]?(\d+(_\d+)*\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_ROUNDING = Fraction(1, 10**9)  # of one step: how near a range must come to its stop in order to hit it


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
        if self.low == -math.inf:
            return f"{'<' if self.open_high else '<='} {self.high}"
        return f"in {'(' if self.open_low else '['}{self.low}, {self.high}{')' if self.open_high else ']'}"


EVERY_NUMBER = Range()


@dataclass(frozen=True)
class Form:
    """One way to write a value.

    read(text) gives the value, or raises ValueError with the reason, which may be empty. Numbers that it gives outside
    bounds are refused.
    """

    expected: str
    read: Callable[[str], Any]
    bounds: Range = EVERY_NUMBER
    choices: tuple[str, ...] = ()
    is_bool: bool = False


def read(text: str, annotation: Any) -> Any:
    """The value that text has under annotation.

    A number is finite and spelled as "0.03", "1e-3", "1_000", "8/255" or "-1/2"; a list of numbers is such as
    "0,0.01:0.03:0.01,8/255", at most 10,000. A range start:stop:step is computed in fractions, so that each value is the
    float nearest to its decimal, and holds stop when a step hits it within rounding.

    Raises:
        InputError: it has none; the message goes on from the name of the argument: "must be ..., got ...".
    """
    reason = ""
    for form in forms(annotation):
        try:
            value = form.read(text)
        except ValueError as error:
            reason = str(error) or reason
            continue
        if within(value, form.bounds):
            return value
        break  # a number out of range must not pass as the text of `float | str`
    because = f" ({reason})" if reason else ""
    words = expected(annotation).removesuffix(" or none")
    raise InputError(f"must be {words}, got {text!r:.200}{because}{_nearest_choice(text, annotation)}")


def expected(annotation: Any) -> str:
    """What a value under annotation looks like, in words: "a number >= 0 or auto"."""
    return " or ".join(_form(member, bounds).expected for member, bounds in members(annotation))


def forms(annotation: Any) -> list[Form]:
    """The ways to write a value under annotation, in the order in which they are tried: free text is the last.

    Raises:
        TypeError: the annotation is not one of those that flags know.
    """
    ordered = sorted(members(annotation), key=lambda member: order(member[0]))
    return [_form(member, bounds) for member, bounds in ordered]


def members(annotation: Any, bounds: Range = EVERY_NUMBER) -> list[tuple[Any, Range]]:
    """The plain annotations of which annotation is a union, each with its range."""
    if get_origin(annotation) is Annotated:
        inner, *extras = get_args(annotation)
        return members(inner, next((extra for extra in extras if isinstance(extra, Range)), bounds))
    if get_origin(annotation) in (Union, types.UnionType):
        return [pair for member in get_args(annotation) for pair in members(member, bounds)]
    return [(annotation, bounds)]


def order(member: Any) -> int:
    """By what the ways to write a value are sorted: free text is the last."""
    if member in (str, Path):
        return 2
    return 0 if member is types.NoneType or get_origin(member) is Literal else 1


def _form(member: Any, bounds: Range) -> Form:
    if member in (int, float):
        noun = {int: "an integer", float: "a number"}[member]
        return Form(f"{noun} {bounds}".strip(), lambda text: _converted(_exact(text), member), bounds)
    if get_origin(member) is list:
        return _list_form(*members(get_args(member)[0], bounds))
    if get_origin(member) is Literal:
        return _choice_form({str(choice): choice for choice in get_args(member)})
    plain = {
        bool: Form("true or false", lambda text: _choice(text.lower(), {"true": True, "false": False}), is_bool=True),
        types.NoneType: Form("none", lambda text: _choice(text, {"none": None})),
        str: Form("text", _not_empty),
        Path: Form("a path", lambda text: Path(_not_empty(text))),
    }
    if member not in plain:
        raise TypeError(f"no flag can have the type {member}")
    return plain[member]


def _choice_form(choices: dict[str, Any]) -> Form:
    words = ", ".join(choices)
    return Form(
        f"one of {words}" if len(choices) > 1 else words, lambda text: _choice(text, choices), choices=tuple(choices)
    )


def _list_form(element: tuple[Any, Range], *others: tuple[Any, Range]) -> Form:
    if others:
        raise TypeError("the elements of a list flag must have one type, not a union")
    member, bounds = element
    if member in (int, float):
        noun = {int: "integers", float: "numbers"}[member]
        words = f"{f'{noun} {bounds}'.strip()}{LIST_AS_TEXT}"
        return Form(words, lambda text: [_converted(value, member) for value in _exact_list(text)], bounds)
    form = _form(member, bounds)
    return Form(
        f"a comma list, each {form.expected}",
        lambda text: [form.read(word) for word in _words(text)],
        bounds,
        form.choices,
    )


def _exact(text: str) -> Fraction:
    if len(text) > MAX_DIGITS:
        raise ValueError("too many digits")
    parts = text.strip().split("/")
    if len(parts) > 2 or not all(map(_DECIMAL.fullmatch, parts)):
        raise ValueError
    above, below = Fraction(parts[0]), Fraction(parts[-1] if len(parts) == 2 else 1)
    if below == 0:
        raise ValueError("division by zero")
    if abs(above / below) > sys.float_info.max:
        raise ValueError("too large")
    return above / below


def _exact_list(text: str) -> list[Fraction]:
    values = []
    for word in _words(text):
        values += _exact_range(*map(_exact, word.split(":"))) if ":" in word else [_exact(word)]
        if len(values) > MAX_COUNT:
            raise ValueError(f"more than {MAX_COUNT} numbers")
    return values


def _exact_range(start: Fraction, *stop_and_step: Fraction) -> list[Fraction]:
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


def _converted(value: Fraction, kind: type) -> float:
    if kind is int and value.denominator != 1:
        raise ValueError
    return kind(value)


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise ValueError("an element is empty")
    return words


def _choice(text: str, choices: dict[str, Any]) -> Any:
    if text not in choices:
        raise ValueError
    return choices[text]


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError
    return text


def within(value: Any, bounds: Range) -> bool:
    """Whether a number, or each of a list, lies within bounds; what is no number does."""
    values = value if isinstance(value, list) else [value]
    return all(each in bounds for each in values if isinstance(each, int | float))


def _nearest_choice(text: str, annotation: Any) -> str:
    if len(text) > MAX_DIGITS:
        return ""
    choices = [choice for form in forms(annotation) for choice in form.choices]
    wrong = [word.strip() for word in text.split(",") if word.strip() not in choices]
    near = [match for word in wrong for match in difflib.get_close_matches(word, choices, 1)]
    return f"; did you mean {', '.join(near)}?" if near else ""
