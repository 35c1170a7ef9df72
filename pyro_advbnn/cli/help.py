"""The --help of a command, made from its signature and docstring; Fire's own goes through a pager and to stderr."""
import dataclasses
import functools
import inspect
import re
import shlex
import sys
import textwrap
from collections.abc import Callable
from inspect import Parameter
from pathlib import Path
from typing import Any, get_type_hints

from pyro_advbnn.cli import flag_types

Command = Callable[..., Any]
WIDTH = 100


@functools.cache
def parameters(function: Command) -> dict[str, Parameter]:
    """The flags of a command by name, annotations evaluated; an argument that is a dataclass stands for its fields.

    Raises:
        TypeError: an argument is not keyword-only, or its annotation is missing or not one that flags know.
    """
    hints = get_type_hints(function, include_extras=True)
    found: dict[str, Parameter] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not Parameter.KEYWORD_ONLY or name not in hints:
            raise TypeError(f"{function.__name__}: {name} must be keyword-only and annotated")
        if dataclasses.is_dataclass(hints[name]):
            found |= parameters(hints[name])
            continue
        flag_types.members(hints[name])
        found[name] = parameter.replace(annotation=hints[name])
    return found


def command_line(program: str, function: Command, arguments: dict[str, Any]) -> str:
    """The command that calls function with its arguments by name; those that are as they would be anyway are left out."""
    flags: dict[str, Any] = {}
    for name, value in arguments.items():
        flags |= dataclasses.asdict(value) if dataclasses.is_dataclass(value) else {name: value}
    known = parameters(function)
    given = {name: flags[name] for name in known if name in flags and flags[name] != known[name].default}
    given |= {name: "none" for name, value in given.items() if value is None}
    return typed(program, given)


def typed(program: str, flags: dict[str, Any]) -> str:
    """The command with these flags as one would type it; those that are None are left out."""
    given = {name: value for name, value in flags.items() if value is not None}
    texts = {name: _written(value, repr) for name, value in given.items()}   # with "=", as "-x" would be taken for a flag
    words = [f"--{name}{'=' if text.startswith('-') else ' '}{shlex.quote(text)}" for name, text in texts.items()]
    return " ".join([f"python -m {program}", *words])


def groups_of(function: Command) -> dict[str, type]:
    """The arguments of a command that are dataclasses of flags, by name."""
    hints = get_type_hints(function)
    return {name: hints[name] for name in inspect.signature(function).parameters if dataclasses.is_dataclass(hints[name])}


def of_verbs(commands: dict[str, Command | str], under: str = "") -> str:
    """The help of several commands: each verb with the first line of its docstring."""
    width = max(map(len, commands))
    verbs = [f"  {verb:{width}}  {_doc(command).partition(chr(10))[0]}" for verb, command in commands.items()]
    usage = f"usage: {_program()} {under} VERB --flag value ...".replace("  ", " ")
    return "\n".join([usage, "", "verbs:", *verbs, "", "VERB --help tells the flags of a verb."])


def of_function(function: Command, verb: str = "") -> str:
    """The help of one command: usage, docstring, and by group, those that matter first before, each flag with what it takes."""
    known, groups = parameters(function), groups_of(function)
    required = [f"--{name} ..." for name, parameter in known.items() if parameter.default is Parameter.empty]
    usage = " ".join([f"usage: {_program()}", *([verb] if verb else []), *required, "[--flag value ...]"])
    prose = re.split(r"^(?:Args|Returns|Raises):$", _doc(function), maxsplit=1, flags=re.MULTILINE)[0].strip()
    fields = [field for group in groups.values() for field in dataclasses.fields(group)]
    notes = {name: note for owner in (function, *groups.values()) for name, note in _descriptions(_doc(owner)).items()}
    notes |= {field.name: field.metadata["note"] for field in fields if field.metadata}
    first = {field.name for field in fields if field.metadata.get("first")}
    titled = {"The flags that matter first:": first, "flags:": set(inspect.signature(function).parameters)}
    titled |= {f"{_doc(group).partition(chr(10))[0].rstrip('.')}:": parameters(group).keys() - first
               for group in groups.values()}
    sections = ["\n".join([title, *(_flag(known[name], notes.get(name, "")) for name in known if name in names)])
                for title, names in titled.items() if names & known.keys()]
    return "\n\n".join([usage, *([prose] if prose else []), *(sections or ["flags:"])])


def _program() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec:
        return f"python -m {spec.name.removesuffix('.__main__')}"
    name = Path(sys.argv[0]).name
    return f"python {name}" if name.endswith(".py") else name


def _doc(function: Command | str) -> str:
    return function if isinstance(function, str) else inspect.getdoc(function) or ""


def _flag(parameter: Parameter, note: str) -> str:
    kind = flag_types.expected(parameter.annotation)
    if parameter.default is Parameter.empty:
        kind += "; required"
    elif parameter.default is None:                      # the note says what happens without the flag
        kind = kind.removesuffix(" or none")
    else:
        kind += f"; default {_written(parameter.default)}"
    head = f"  --{parameter.name}: {kind}"
    lines = textwrap.wrap(head, WIDTH, subsequent_indent=" " * 8)
    return "\n".join(lines + textwrap.wrap(note, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6))


def _written(default: Any, number: Callable[[float], str] = "{:.6g}".format) -> str:
    """A default as one would write it after the flag."""
    if isinstance(default, list | tuple):
        return ",".join(_written(element, number) for element in default)
    if isinstance(default, float):
        return number(default)
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
