"""The classifier of a defence around a network."""
from collections.abc import Callable, Iterable, Sequence

import torch
from pyro.distributions import Distribution
from torch import nn

from pyro_advbnn.bayes.bayesian_classifier import BayesianClassifier
from pyro_advbnn.bayes.classifier import Classifier, categorical
from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.bayes.parameters import copied
from pyro_advbnn.bayes.rse import add_noise
from pyro_advbnn.bayes.settings import Std
from pyro_advbnn.system.errors import InputError


def build_classifier(defense: str, network: nn.Module, *, prior_std: Std = 0.05, init_std: Std = 0.05,
                     prior: str | Distribution = "normal", kl_over: str = "all", deterministic: str | Iterable[str] = (),
                     batch_statistics: str = "mean", likelihood: Callable = categorical,
                     class_weights: Sequence[float] | torch.Tensor | None = None) -> Classifier:
    """The classifier of a defence (a name of DEFENSES) around `network`, an nn.Module, which is left as it is.

    The settings are those of BayesianClassifier; only the last two say something to the other kinds. Raises InputError.
    """
    if defense not in DEFENSES:
        raise InputError(f"defense must be one of {', '.join(DEFENSES)}, got {defense!r}")
    kind = DEFENSES[defense].kind
    if kind == "bayesian":
        return BayesianClassifier(network, prior_std, init_std, prior=prior, kl_over=kl_over, deterministic=deterministic,
                                  batch_statistics=batch_statistics, likelihood=likelihood, class_weights=class_weights)
    network = add_noise(network) if kind == "noisy" else copied(network)
    return Classifier(network, likelihood=likelihood, class_weights=class_weights)
