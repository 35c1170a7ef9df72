"""Adversarially trained Bayesian neural networks (Adv-BNN) in PyTorch and Pyro.

A public name is imported from its module on first use, so that what needs no torch (records, cli) starts without it.
"""
from importlib import import_module

__version__ = "0.1.0"
__all__ = [
    "APGD", "DEFENSES", "PGD", "AdditiveNoise", "AveragedClassifier", "BayesianClassifier", "CarliniWagner", "Classifier",
    "Examination", "InputError", "Mixture", "NaturalGradient", "Note", "RandomNoise", "Selection", "Square", "Through",
    "add_noise", "build_classifier", "checks", "datasets", "eval_mode", "fgsm", "fit", "load", "negative_elbo", "networks",
    "objective", "pgd", "predict", "priors", "robust_accuracy", "save", "surrogate", "train_step", "uncertainty",
    "worst_case_accuracy",
]
_HOMES = {
    "attacks.apgd": ("APGD",),
    "attacks.carlini_wagner": ("CarliniWagner",),
    "attacks.modes": ("eval_mode",),
    "attacks.noise": ("RandomNoise",),
    "attacks.pgd": ("PGD", "fgsm", "pgd"),
    "attacks.square": ("Square",),
    "attacks.surrogates": ("Through", "surrogate"),
    "bayes.averaging": ("AveragedClassifier",),
    "bayes.bayesian_classifier": ("BayesianClassifier",),
    "bayes.build": ("build_classifier",),
    "bayes.classifier": ("Classifier",),
    "bayes.defenses": ("DEFENSES",),
    "bayes.elbo": ("negative_elbo", "objective"),
    "bayes.mixture": ("Mixture",),
    "bayes.rse": ("AdditiveNoise", "add_noise"),
    "evaluation.accuracy": ("predict", "robust_accuracy"),
    "evaluation.examination": ("Examination",),
    "evaluation.worst_case": ("worst_case_accuracy",),
    "experiments.selection": ("Selection",),
    "system.errors": ("InputError", "Note"),
    "training.algorithm1": ("train_step",),
    "training.checkpoints": ("load", "save"),
    "training.fitting": ("fit",),
    "training.natural_gradient": ("NaturalGradient",),
}
_MODULES = {"checks": "evaluation", "datasets": "", "networks": "", "priors": "bayes", "uncertainty": "evaluation"}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name):
    if name in _MODULES:
        return import_module(".".join(filter(None, (__name__, _MODULES[name], name))))
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
