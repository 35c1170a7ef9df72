"""The house: imports run downward only, rooms of one layer do not import each other, and no circle joins files or rooms."""
import ast
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyro_advbnn"
LAYERS = (                                               # docs/architecture.md
    {"__main__", "train", "evaluate", "reproduce", "benchmark", "demo"},
    {"experiments"},
    {"training", "reporting"},
    {"evaluation"},
    {"attacks"},
    {"bayes", "datasets", "cli", "networks"},
    {"system"},
)
COMMANDS_THAT_CALL_COMMANDS = {("demo", "train"), ("reproduce", "train"), ("reproduce", "evaluate")}


def files():
    """{module: its path}, modules as ("training", "loop"); a room's own __init__ is ("training",)."""
    paths = sorted(PACKAGE.rglob("*.py"))
    parts = [path.relative_to(PACKAGE).with_suffix("").parts for path in paths]
    return {part[:-1] if part[-1] == "__init__" else part: path for part, path in zip(parts, paths)}


def imports(source, modules):
    """The modules of this package that a file's source imports, wherever in the file, in any way that `import` is written."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole way"
            names = [[*node.module.split("."), alias.name] for alias in node.names]
        else:
            continue
        for package, *name in names:
            if package == PACKAGE.name:
                yield next(tuple(name[:end]) for end in range(len(name), -1, -1) if tuple(name[:end]) in modules)


def edges():
    modules = files()
    return {(module, target) for module, path in modules.items() if module
            for target in imports(path.read_text(), modules) if target != module}


def forbidden(edge):
    """Whether an edge between two rooms runs upward or sideways; the package itself, with its version, is below all."""
    (source, *_), target = edge
    if not target or source == target[0]:
        return False
    floor = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    return floor[source] >= floor[target[0]] and (source, target[0]) not in COMMANDS_THAT_CALL_COMMANDS


def circle(pairs):
    """A circle among the pairs (source, target), or None."""
    graph = {}
    for source, target in pairs:
        graph.setdefault(source, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]


def test_every_room_and_command_has_its_layer():
    assert {module[0] for module in files() if module} == set().union(*LAYERS)


def test_imports_run_downward_only():
    assert [edge for edge in sorted(edges()) if forbidden(edge)] == []


def test_no_circle_joins_files_or_rooms():
    between_files = {(source, target) for source, target in edges() if target}
    assert circle(between_files) is None
    assert circle({(source[0], target[0]) for source, target in between_files if source[0] != target[0]}) is None


@pytest.mark.parametrize("source, target, wrong", [
    (("system", "files"), ("attacks", "pgd"), True), (("training", "loop"), ("reporting", "paper"), True),
    (("experiments", "plans"), ("train",), True), (("bayes", "elbo"), ("system", "errors"), False),
    (("bayes", "elbo"), ("bayes", "guide"), False), (("cli", "commands"), (), False)])
def test_an_edge_upward_or_sideways_is_seen(source, target, wrong):
    assert forbidden((source, target)) == wrong


def test_every_way_of_writing_an_import_and_every_circle_is_seen():
    modules = {(): None, ("a",): None, ("a", "b"): None, ("c",): None}
    source = ("import pyro_advbnn.a.b\ndef f():\n    from pyro_advbnn.a import b, name\n"
              "    from pyro_advbnn import c, __version__\n")
    assert list(imports(source, modules)) == [("a", "b"), ("a", "b"), ("a",), ("c",), ()]
    assert circle({("a", "b"), ("b", "c")}) is None
    assert set(circle({("a", "b"), ("b", "c"), ("c", "a")})) == {"a", "b", "c"}


@pytest.mark.parametrize("room", ["reporting", "cli"])
def test_a_room_without_tensors_imports_no_torch(room):
    modules = [".".join((PACKAGE.name, *module)) for module in files() if module[:1] == (room,)]
    code = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_no_file_and_no_room_is_too_large_to_be_read():
    assert {str(path): lines for path in PACKAGE.rglob("*.py") if (lines := path.read_text().count("\n")) > 300} == {}
    rooms = Counter(path.parent for path in PACKAGE.rglob("*.*") if path.is_file() and path.suffix not in (".so", ".pyc"))
    assert {str(room): number for room, number in rooms.items() if number > 20} == {}
