"""Adversarially trained Bayesian neural networks (Adv-BNN) in PyTorch and Pyro.

A public name is imported from its module on first use, so that what needs no torch (reporting, cli) starts without it. They
all stand in __init__.pyi, which type checkers and editors read, too (SPEC 1 of Scientific Python).
"""
import ast
from importlib import import_module

__version__ = "0.1.0"
_STUB = ast.parse(__spec__.loader.get_data(__file__.removesuffix(".py") + ".pyi"))
_HOME_OF = {alias.name: line.module for line in _STUB.body if isinstance(line, ast.ImportFrom) for alias in line.names}
__all__ = sorted(_HOME_OF)


def __getattr__(name):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(_HOME_OF[name])
    return import_module(f"{home.__name__}.{name}") if hasattr(home, "__path__") else getattr(home, name)


def __dir__():
    return sorted({*globals(), *__all__})
