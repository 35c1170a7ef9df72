"""JSON files and files of JSON lines, which a crash leaves whole."""
import json
import os
import re
from collections import Counter
from itertools import islice
from pathlib import Path

from pyro_advbnn.system import files
from pyro_advbnn.system.errors import InputError


def append_jsonl(path, row):
    """Add `row` as one line of JSON at the end of the file, in place of a line that a crash cut short."""
    with files.naming(path), Path(path).open("ab+") as file:
        file.seek(0)
        there = file.read()
        whole = _whole_lines(there)
        file.truncate(min(len(whole), len(there)))
        file.write(whole[len(there):] + json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_jsonl(path, way_on="mend or remove the line"):
    """The rows of a JSON-lines file, dicts, [] where there is none; a last line that a crash cut short is left out.

    Raises InputError for a line that is no row: the file, its number, what it holds, and the way on.
    """
    lines = _whole_lines(files.read_bytes(path) if files.is_there(path) else b"").split(b"\n")[:-1]
    return [_row(path, number, line, way_on) for number, line in enumerate(lines, 1)]


def _row(path, number, line, way_on):
    try:
        row = json.loads(line.decode(), object_pairs_hook=_object)
        if isinstance(row, dict):
            return row
        reason = "no object"
    except UnicodeDecodeError:
        reason = "not UTF-8"
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos + 1}"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    shown = repr(line[:60].decode(errors="replace")) + ("..." if len(line) > 60 else "")
    raise InputError(f"{path}, line {number}: expected a row in JSON, found {shown} ({reason}); {way_on}") from None


def _whole_lines(content):
    """The lines of a JSON-lines file as bytes, without a last one that was cut short; the end of a line may be all it lacks."""
    end = content.rfind(b"\n") + 1
    try:
        return content + b"\n" if isinstance(json.loads(content[end:]), dict) else content[:end]
    except (ValueError, RecursionError):
        return content[:end]


def write_jsonl(path, rows):
    """Replace the file by `rows`, in one step."""
    _replace(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_json(path, content):
    """Write `content` as indented JSON, in one step."""
    _replace(path, as_json(content) + "\n")


def as_json(content):
    """`content` as indented JSON text."""
    return json.dumps(content, indent=2)


def read_json(path):
    """The content of a JSON file.   Raises InputError where it is missing, no JSON, or gives a key twice."""
    try:
        return json.loads(files.read_text(path), object_pairs_hook=_object)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except InputError:
        raise
    except _Twice as error:
        raise InputError(f"{place_of_key(path, error.key)}: {error}; keep one of them") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


class _Twice(ValueError):
    """An object of a JSON text gives `key` twice, so that one value would hide the other."""

    def __init__(self, key, values):
        super().__init__(f"{key!r} is given twice, as {' and '.join(repr(value)[:60] for value in values)}")
        self.key = key


def _object(pairs):
    """The dict of an object of a JSON text.   Raises _Twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise _Twice(key, [value for name, value in pairs if name == key])
    return found


def place_of_key(path, key, within=None):
    """The path of a JSON file and the numbers of its lines that give `key`, as a message tells them.

    within: the names of the objects around it, () at the top level; default: wherever it stands.
    """
    text = files.read_text(path)
    given = (at for at, name, around in _keys(text) if name == key and within in (None, around))
    numbers = dict.fromkeys(text.count("\n", 0, at) + 1 for at in islice(given, 5))
    return f"{path}, line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}" if numbers else str(path)


def _keys(text):
    """(position, key, names of the objects and lists around it, None for one that has no name) of each key in a JSON text."""
    around, last = [], None
    for match in re.finditer(r'("(?:[^"\\]|\\.)*")(\s*:)?|[{}\[\]]', text):
        if match[2]:
            last = _decoded(match[1])
            yield match.start(), last, tuple(around[1:])
        elif match[0] in "{[":
            around.append(last)
            last = None
        elif match[0] in "}]" and around:
            around.pop()
            last = None


def _decoded(literal):
    try:
        return json.loads(literal)
    except ValueError:
        return None


def _replace(path, text):
    with files.replacing(path) as file:
        file.write(text.encode())
