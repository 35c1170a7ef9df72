"""Run a function as a command: check every flag against its signature before any work, then let Python Fire call it.

Fire alone calls the function with its defaults and complains about a mistyped flag only afterwards. A command is a
function with keyword-only arguments, annotated with int, float, bool, str, Path, Literal[...], list[...] of these,
`X | None` and other unions, or Annotated[X, Range(low, high)]; the `Args:` of its docstring become its --help. An argument
that is a keyword-only dataclass stands for its fields: a group of flags, which several commands may share.
"""
import difflib
import errno
import functools
import os
import re
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter
from typing import Any, NoReturn

import fire
from fire.decorators import SetParseFns

from pyro_advbnn.cli import flag_types, help, python_calls, signals
from pyro_advbnn.cli.help import Command, parameters
from pyro_advbnn.system.errors import InputError, Note, one_line
from pyro_advbnn.system.memory import is_out_of_memory

REFUSED, INTERRUPTED = 2, 130                            # the last as a shell reports SIGINT
_FULL = {errno.ENOSPC, errno.EDQUOT}
_HELP = {"--help", "-h"}


def run(commands: Command | dict[str, Command | str], argv: Sequence[str] | None = None, *, processes: bool = False,
        under: str = "", way_on: str = "") -> None:
    """Run the function that argv calls for, or refuse with one line on stderr and exit code 2 before any work.

    Args:
        commands: one function, or functions by verb, of which the first word of argv names one; a text stands for its help.
        argv: the words after the program's name; those of the process by default.
        processes: whether several processes of torchrun may run it; otherwise they are refused.
        under: the word of the command line that chose commands, for its help.
        way_on: what is said when a signal has stopped the command; else it is the `state` of the `signals.Interrupted`.

    Raises:
        SystemExit: 0 after --help, 2 for an InputError, 130 for Ctrl-C, 143 for SIGTERM.
    """
    try:
        if not processes:
            _refuse_processes()
        with signals.raising(), _notes():
            _run(commands, list(sys.argv[1:] if argv is None else argv), under)
    except InputError as error:
        _end(REFUSED, f"error: {error}")
    except KeyboardInterrupt as error:
        code = getattr(error, "code", INTERRUPTED)
        _end(code, "; ".join(filter(None, [signals.name_of(code - 128), way_on or getattr(error, "state", "")])))
    except BrokenPipeError:                              # nobody reads the output any more, as under `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:                             # a full disk, a folder that may not be written
        if error.filename is None and error.errno not in _FULL:
            raise
        _end(REFUSED, f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _end(REFUSED, f"error: out of memory; smaller batches or a smaller --width may fit: {error}")


@contextmanager
def _notes() -> Iterator[None]:
    """What the library warns of by a Note is a line, each once; of several processes the first says it."""
    told, show = set(), warnings.showwarning

    def tell(message: Warning | str, category: type[Warning], *more: Any, **others: Any) -> None:
        if not issubclass(category, Note):
            return show(message, category, *more, **others)
        if str(message) not in told and os.environ.get("RANK", "0") == "0":
            print(f"note: {message}", flush=True)
        told.add(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", Note)
        warnings.showwarning = tell
        yield


def _run(commands: Command | dict[str, Command], words: list[str], under: str) -> None:
    verb, function = "", commands
    if isinstance(commands, dict):
        if _HELP & set(words) and words[0] not in commands:
            _show(help.of_verbs(commands, under))
        verb, function = _verb(words, commands)
        words = words[1:]
    if _HELP & set(words):
        _show(help.of_function(function, f"{under} {verb}".strip()))
    try:
        texts = _texts(function, words)
    except InputError:
        _leave_to_the_first()
        raise
    _call(function, texts)


def _refuse_processes() -> None:
    if "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        _leave_to_the_first()
        raise InputError("only train runs in several processes; start this command without torchrun")


def _leave_to_the_first() -> None:
    """Of several processes of torchrun the first says what all would say; the others end in silence."""
    if "LOCAL_RANK" in os.environ and os.environ.get("RANK", "0") != "0":
        _end(0)


def _show(text: str) -> NoReturn:
    _leave_to_the_first()
    print(text, flush=True)
    _end(0)


def _end(code: int, line: str = "") -> NoReturn:
    if line:
        print(one_line(line), file=sys.stderr, flush=True)
    sys.exit(code)


def _verb(words: list[str], commands: dict[str, Command]) -> tuple[str, Command]:
    word = words[0] if words else ""
    if word in commands:
        return word, commands[word]
    verbs = ", ".join(commands)
    if not word or _is_flag(word):
        raise InputError(f"a verb must come first; choose one of: {verbs}")
    raise InputError(f"unknown verb {word!r:.100}; choose one of: {verbs}")


def _is_flag(word: str) -> bool:
    return bool(re.match(r"--|-[A-Za-z]", word))         # "-1/2" is a value


def _is_switch(flag: Parameter) -> bool:
    return bool in dict(flag_types.members(flag.annotation))


def _texts(function: Command, words: list[str]) -> dict[str, str]:
    """The text of each flag among words, every one of them found good for its argument.

    Raises:
        InputError: a word is no flag, or a flag is unknown, given twice, without a value, wrong, or missing.
    """
    known, texts, rest = parameters(function), {}, deque(words)
    while rest:
        name, text = _flag(rest.popleft(), known)
        if name in texts:
            raise InputError(f"--{name} is given twice")
        if text is None and rest and not _is_flag(rest[0]):
            text = rest.popleft()
        if text is None and not _is_switch(known[name]):
            raise InputError(f"--{name} needs a value: {flag_types.expected(known[name].annotation)}")
        texts[name] = "true" if text is None else text
        flag_types.read(f"--{name}", texts[name], known[name].annotation)
    missing = [name for name, known_as in known.items() if known_as.default is Parameter.empty and name not in texts]
    if missing:
        needs = [f"--{name} ({flag_types.expected(known[name].annotation)})" for name in missing]
        raise InputError(f"missing {', '.join(needs)}")
    return texts


def _flag(word: str, known: dict[str, Parameter]) -> tuple[str, str | None]:
    """The name of the flag that word gives, and its text if that is in the same word."""
    if not _is_flag(word):
        raise InputError(f"unexpected {word!r:.100}: only flags are taken, as --name value")
    given, equals, text = word.partition("=")
    name = given.removeprefix("--").replace("-", "_")
    if name in known:
        return name, text if equals else None
    near = [flag for flag in known if "".join(part[0] for part in flag.split("_")) == name.strip("_")]      # --lr
    near = near or difflib.get_close_matches(name.strip("_"), known)
    hint = f"did you mean {' or '.join(f'--{name}' for name in near)}?" if near else f"the flags are --{', --'.join(known)}"
    raise InputError(f"unknown flag {given[:100]}; {hint}")


def _call(function: Command, texts: dict[str, str]) -> None:
    """Hand function and texts to Fire, which reads each text with the parser that has just found it good."""

    def command(**arguments: Any) -> None:
        python_calls.from_python(function)(**arguments)  # what it returns is not for Fire to print

    known = parameters(function)
    readers = {name: functools.partial(flag_types.read, f"--{name}", annotation=known[name].annotation) for name in known}
    fire.Fire(SetParseFns(**readers)(command), [f"--{name}={text}" for name, text in texts.items()])
