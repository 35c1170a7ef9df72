"""JSON files and files of JSON lines, which a crash leaves whole."""
import json
from pathlib import Path

from pyro_advbnn.system import files
from pyro_advbnn.system.errors import InputError

_OF_CONFIG = {"dataset": str, "defense": str, "settings": dict, "classifier": dict, "environment": dict}


def append_jsonl(path, row):
    """Add `row` as the last line of the file, in one step."""
    write_jsonl(path, [*read_jsonl(path), row])


def read_jsonl(path):
    """The rows of a JSON-lines file, dicts, [] where there is none.   Raises InputError for a line that is no JSON."""
    path = Path(path)
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [_parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


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
    """The content of a JSON file.   Raises InputError where it is no JSON."""
    return _parsed(Path(path).read_bytes(), path)


def _parsed(content, path):
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def read_config(folder):
    """The config.json of a run folder, a mapping.   Raises InputError where there is none, or it is not that of a training."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise InputError(f"{folder} is no run folder: it has no config.json")
    config = read_json(path)
    if not isinstance(config, dict) or not all(isinstance(config.get(name), kind) for name, kind in _OF_CONFIG.items()):
        raise InputError(f"{folder} is no run folder: its config.json is not that of a training")
    return config


def _replace(path, text):
    with files.replacing(path) as file:
        file.write(text.encode())
