"""Adversarially trained Bayesian neural networks (Adv-BNN) in PyTorch and Pyro.

A public name is imported from its module on first use, so that what needs no torch (records, cli) starts without it.
"""
from importlib import import_module
from pkgutil import iter_modules

__version__ = "0.1.0"
__all__ = [
    "APGD", "DEFENSES", "PGD", "AdditiveNoise", "AveragedClassifier", "BayesianClassifier", "CarliniWagner", "Classifier",
    "Examination", "InputError", "RandomNoise", "Square", "Through", "add_noise", "build_classifier", "eval_mode", "fgsm",
    "load", "negative_elbo", "networks", "objective", "pgd", "predict", "priors", "robust_accuracy", "save", "surrogate",
    "train_step", "worst_case_accuracy",
]
_NAMES = {
    "apgd": ("APGD",),
    "attacks": ("PGD", "RandomNoise", "eval_mode", "fgsm", "pgd"),
    "averaging": ("AveragedClassifier",),
    "bayesian": ("BayesianClassifier",),
    "carlini_wagner": ("CarliniWagner",),
    "checkpoints": ("load", "save"),
    "classifiers": ("Classifier",),
    "construction": ("build_classifier",),
    "defenses": ("DEFENSES",),
    "elbo": ("negative_elbo", "objective"),
    "errors": ("InputError",),
    "evaluation": ("predict", "robust_accuracy"),
    "examination": ("Examination",),
    "noise": ("AdditiveNoise", "add_noise"),
    "square": ("Square",),
    "steps": ("train_step",),
    "surrogates": ("Through", "surrogate"),
    "worst_case": ("worst_case_accuracy",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
_MODULES = {module.name for module in iter_modules(__path__)}


def __getattr__(name):
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__, *_MODULES})
