"""Commands called from Python: what they are given is found good before any work, as the texts of a command line are."""
import dataclasses
import functools
import math
import numbers
import os
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pyro_advbnn.cli import flag_types, help
from pyro_advbnn.system.errors import InputError, as_path, is_whole


def from_python(function: help.Command) -> help.Command:
    """A decorator of commands: what Python code gives for a flag is found good before any work, texts for paths become paths.

    Raises:
        InputError: in the command, for a value of another kind or out of range.
    """

    @functools.wraps(function)
    def command(**arguments: Any) -> Any:
        known, groups = help.parameters(function), help.groups_of(function)
        for name, value in arguments.items():
            if name in known:
                arguments[name] = settled(name, value, known[name].annotation)
            elif name in groups and not isinstance(value, groups[name]):
                raise InputError(f"{name} must be a {groups[name].__name__}, got {value!r:.200}")
        return function(**arguments)

    return command


def flags(group: type) -> type:
    """A decorator of classes: the frozen, keyword-only dataclass of flags that several commands share, checked likewise."""

    def check(self: Any) -> None:
        for name, parameter in help.parameters(type(self)).items():
            object.__setattr__(self, name, settled(name, getattr(self, name), parameter.annotation))

    group.__post_init__ = check
    return dataclasses.dataclass(frozen=True, kw_only=True)(group)


def settled(name: str, value: Any, annotation: Any) -> Any:
    """value, given from Python instead of as text, as a command takes it under annotation: what stands for a path is one,
    and a number where a list of them is wanted is the list of it alone.

    Raises:
        InputError: it is no such value.
    """
    for member, bounds in sorted(flag_types.members(annotation), key=lambda pair: flag_types.order(pair[0])):
        try:
            return _taken(name, value, member, bounds)
        except TypeError:
            continue
    raise InputError(f"{name} must be {_expected(annotation)}, got {value!r:.200}")


def _expected(annotation: Any) -> str:
    """`values.expected` in words for Python, where a list is none that is written with commas."""
    words = flag_types.expected(annotation).removesuffix(" or none")
    of_numbers = words.removesuffix(flag_types.LIST_AS_TEXT)
    return f"a list of {of_numbers}" if of_numbers != words else words.replace("a comma list", "a list")


def _taken(name: str, value: Any, member: Any, bounds: flag_types.Range) -> Any:
    """value as one of a plain annotation.   Raises TypeError where it is none, InputError where it is a flawed path."""
    if get_origin(member) is list:
        if isinstance(value, str | bytes):
            raise TypeError
        element = flag_types.members(get_args(member)[0], bounds)[0]
        taken = [_taken(name, each, *element) for each in ([value] if isinstance(value, numbers.Real) else value)]
        if not taken:
            raise TypeError
        return tuple(taken) if isinstance(value, tuple) else taken
    if get_origin(member) is Literal:
        fits = any(type(value) is type(choice) and value == choice for choice in get_args(member))
    elif member is int:
        fits, value = is_whole(value), int(value) if is_whole(value) else value
    elif member is float:
        fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
        value = float(value) if fits and not isinstance(value, int) else value
    else:
        fits = isinstance(value, (str, os.PathLike) if member is Path else member)
    if not fits or not flag_types.within(value, bounds):
        raise TypeError
    return as_path(name, value) if member is Path else value
