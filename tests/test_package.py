"""Tests of the package itself: what importing it costs, and that its names do not depend on what was imported before."""
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import pyro_advbnn as ab
from pyro_advbnn import networks
from pyro_advbnn.attacks.pgd import PGD, pgd
from pyro_advbnn.bayes import priors

ROOT = Path(__file__).parents[1]
SPOKEN = ("__init__", "__call__", "__len__", "__iter__", "__enter__", "__exit__")
HEAVY = {"torch", "torchvision", "pyro", "numpy", "sklearn", "matplotlib", "tensorboard"}


def python(code):
    """What the code prints in a process of its own."""
    return subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True).stdout.split()


@pytest.mark.parametrize("module", ["pyro_advbnn", "pyro_advbnn.system.json_files", "pyro_advbnn.cli.commands",
                                    "pyro_advbnn.bayes.defenses", "pyro_advbnn.system.errors", "pyro_advbnn.train"])
def test_what_needs_no_tensors_starts_without_torch(module):
    loaded = set(python(f"import sys, {module}; print(*sys.modules)"))
    assert module in loaded and not loaded & HEAVY


@pytest.mark.parametrize("name", ab.__all__)
def test_every_public_name_is_there_from_the_start(name):
    assert name in dir(ab)
    assert getattr(ab, name) is not None
    namespace = {}
    exec(f"from pyro_advbnn import {name}", namespace)
    assert namespace[name] is getattr(ab, name)


def test_every_public_name_comes_from_the_module_that_defines_it():
    assert (ab.PGD, ab.pgd, ab.networks, ab.priors) == (PGD, pgd, networks, priors)
    for name, module in ab._HOME_OF.items():
        value = getattr(ab, name)
        assert value is getattr(import_module(module), name)
        assert getattr(value, "__module__", module) == module


def test_a_star_import_gives_the_public_names():
    namespace = {}
    exec("from pyro_advbnn import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(ab.__all__)


def test_no_public_name_is_also_that_of_a_room_so_that_what_it_means_never_changes():
    there = {path.stem for path in (ROOT / "pyro_advbnn").iterdir()}
    assert set(ab.__all__) & there == {"datasets", "networks"}


def functions(value):
    """The public functions that a public name stands for: itself, a class's own methods, or a module's functions."""
    if inspect.isfunction(value):
        return [value]
    if inspect.isclass(value) and issubclass(value, Exception) or not (inspect.isclass(value) or inspect.ismodule(value)):
        return []
    names = [name for name in getattr(value, "__all__", vars(value)) if name in SPOKEN or not name.startswith("_")]
    own = [getattr(each, "fget", each) for each in (getattr(value, name) for name in names)]
    home = "" if inspect.isclass(value) else value.__name__
    return [each for each in own if inspect.isfunction(each) and each.__module__.startswith(home)]


@pytest.mark.parametrize("name", ab.__all__)
def test_every_argument_and_result_of_a_public_function_has_a_hint(name):
    for function in functions(getattr(ab, name)):
        signature = inspect.signature(function)
        bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
        assert not bare, (function, bare)
        assert signature.return_annotation is not signature.empty or function.__name__ == "__init__", function


def test_the_modules_are_there_without_being_imported_first():
    code = "import pyro_advbnn as ab; print(ab.datasets.__name__, ab.datasets.load.__name__, ab.checks.__name__)"
    assert python(code) == ["pyro_advbnn.datasets", "load", "pyro_advbnn.evaluation.checks"]


def test_unknown_names_are_refused_as_by_any_module():
    with pytest.raises(AttributeError, match="module 'pyro_advbnn' has no attribute 'PDG'"):
        _ = ab.PDG
    with pytest.raises(ImportError, match="cannot import name 'PDG'"):
        exec("from pyro_advbnn import PDG")
    assert not hasattr(ab, "attacks.PGD")
