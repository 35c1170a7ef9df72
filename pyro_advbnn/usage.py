"""The --help of a command, made from its signature and docstring; Fire's own goes through a pager and to stderr."""

import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from inspect import Parameter
from pathlib import Path
from typing import Any, get_type_hints

from pyro_advbnn import values

Command = Callable[..., Any]
WIDTH = 100


@functools.cache
def parameters(function: Command) -> dict[str, Parameter]:
    """The arguments of a command by name, their annotations evaluated.

    Raises:
        TypeError: an argument is not keyword-only, or its annotation is missing or not one that flags know.
    """
    hints = get_type_hints(function, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not Parameter.KEYWORD_ONLY or name not in hints:
            raise TypeError(f"{function.__name__}: {name} must be keyword-only and annotated")
        values.forms(hints[name])
        found[name] = parameter.replace(annotation=hints[name])
    return found


def of_verbs(commands: dict[str, Command]) -> str:
    """The help of several commands: each verb with the first line of its docstring."""
    width = max(map(len, commands))
    verbs = [f"  {verb:{width}}  {_doc(command).partition(chr(10))[0]}" for verb, command in commands.items()]
    usage = f"usage: {_program()} VERB --flag value ..."
    return "\n".join([usage, "", "verbs:", *verbs, "", "VERB --help tells the flags of a verb."])


def of_function(function: Command, verb: str = "") -> str:
    """The help of one command: usage, docstring, and each flag with its type, default and description."""
    known = parameters(function)
    required = [f"--{name} ..." for name, parameter in known.items() if parameter.default is Parameter.empty]
    usage = " ".join([f"usage: {_program()}", *([verb] if verb else []), *required, "[--flag value ...]"])
    prose = re.split(r"^(?:Args|Returns|Raises):$", _doc(function), maxsplit=1, flags=re.MULTILINE)[0].strip()
    notes = _descriptions(_doc(function))
    flags = [_flag(parameter, notes.get(name, "")) for name, parameter in known.items()]
    return "\n".join([usage, "", *([prose, ""] if prose else []), "flags:", *flags])


def _program() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {Path(sys.argv[0]).name}"


def _doc(function: Command) -> str:
    return inspect.getdoc(function) or ""


def _flag(parameter: Parameter, note: str) -> str:
    kind = values.expected(parameter.annotation)
    if parameter.default is Parameter.empty:
        kind += "; required"
    elif parameter.default is None:                      # the note says what happens without the flag
        kind = kind.removesuffix(" or none")
    else:
        kind += f"; default {_written(parameter.default)}"
    head = f"  --{parameter.name}: {kind}"
    lines = textwrap.wrap(head, WIDTH, subsequent_indent=" " * 8)
    return "\n".join(lines + textwrap.wrap(note, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6))


def _written(default: Any) -> str:
    """A default as one would write it after the flag."""
    if isinstance(default, list | tuple):
        return ",".join(map(_written, default))
    if isinstance(default, float):
        return f"{default:.6g}"
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)


def _descriptions(doc: str) -> dict[str, str]:
    """The entries of the `Args:` section of a docstring: {argument: description}."""
    section = re.search(r"^Args:\n((?: .*\n|\n)*)", doc + "\n", re.MULTILINE)
    notes: dict[str, str] = {}
    for line in section[1].splitlines() if section else []:
        entry = re.match(r" {4}(\w+)(?: \(.*?\))?: *(.*)", line)
        if entry:
            notes[entry[1]] = entry[2]
        elif notes:
            notes[list(notes)[-1]] += " " + line.strip()
    return notes
