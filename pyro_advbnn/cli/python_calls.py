"""Commands called with values, from Python or from their own command line: found good before any work, as texts are."""
import dataclasses
import functools
from typing import Any

from pyro_advbnn.cli import flag_types, help
from pyro_advbnn.system.errors import InputError


def from_python(function: help.Command) -> help.Command:
    """A decorator of commands: what is given for a flag is found good before any work, texts for paths become paths.

    The flags of a dataclass may be given by their own names, too, and stand over those of one that is given.

    Raises:
        InputError: in the command, for a value of another kind or out of range.
    """

    @functools.wraps(function)
    def command(**arguments: Any) -> Any:
        for name, group in help.groups_of(function).items():
            flags = {flag: arguments.pop(flag) for flag in help.parameters(group) if flag in arguments}
            given = arguments.get(name)
            if given is not None and not isinstance(given, group):
                raise InputError(f"{name} must be a {group.__name__}, got {given!r:.200}")
            if flags or given is None:
                arguments[name] = dataclasses.replace(given, **flags) if given else group(**flags)
        for name in arguments.keys() & help.parameters(function).keys():
            arguments[name] = flag_types.take(name, arguments[name], help.parameters(function)[name].annotation)
        return function(**arguments)

    return command


def flags(group: type) -> type:
    """A decorator of classes: the frozen, keyword-only dataclass of flags that several commands share, checked likewise."""

    def check(self: Any) -> None:
        for name, parameter in help.parameters(type(self)).items():
            object.__setattr__(self, name, flag_types.take(name, getattr(self, name), parameter.annotation))

    group.__post_init__ = check
    return dataclasses.dataclass(frozen=True, kw_only=True)(group)


def flag(note: str, default: Any = None, first: bool = False) -> Any:
    """A field of such a dataclass.   note: what it is, for --help, which begins with it if first."""
    return dataclasses.field(default=default, metadata={"note": note, "first": first})
