"""Tests of memory: what a container leaves counts, not only what the machine has."""
from pathlib import Path

import pytest

from pyro_advbnn.system import memory

GIB = 2**30


def group(folder, limit, used, cache=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - cache}\ninactive_file {cache}\n")


@pytest.mark.parametrize(("inner", "outer", "left"), [
    ((4 * GIB, GIB), ("max", 3 * GIB), [3 * GIB]), ((4 * GIB, 3 * GIB, GIB), (8 * GIB, 7 * GIB), [2 * GIB, GIB]),
    (("max", GIB), ("max", GIB), [])])
def test_every_control_group_that_has_a_limit_leaves_what_it_does_not_use(tmp_path, inner, outer, left):
    own, root = tmp_path / "cgroup", tmp_path / "root"
    own.write_text("4:memory:/elsewhere\n0::/outer/inner\n")
    group(root / "outer" / "inner", *inner)
    group(root / "outer", *outer)
    group(tmp_path, 1, 0)                                # above the root: not asked
    assert list(memory._left_by_control_groups(own, root)) == left


def test_the_least_of_machine_and_container_counts(monkeypatch):
    whole = memory.available_memory()
    monkeypatch.setattr(memory, "_left_by_control_groups", lambda own, root: iter([5 * GIB, 1000]))
    assert memory.available_memory() == 1000 < whole
    monkeypatch.setattr(memory, "_left_by_control_groups", lambda own, root: iter([-5]))
    assert memory.available_memory() == 0
    monkeypatch.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(OSError()))
    assert memory.available_memory() > 2**20
