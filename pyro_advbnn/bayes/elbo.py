"""The objective, Eq. (10): what Pyro's `TraceMeanField_ELBO` gives for a classifier's model and guide.

The draw comes with its KL in one pass, and nothing is computed that the loss does not need, nor read from a GPU.
"""
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine

from pyro_advbnn.bayes.classifier import Classifier
from pyro_advbnn.system.errors import InputError


@dataclass(frozen=True)
class Objective:
    """One evaluation of Eq. (10): loss = nll + kl_weight * kl, all scalars; only loss is to be differentiated.

    nll: mean negative log-likelihood of the batch, weighted by class where there are class_weights. kl: over the counted
    weights, unweighted. logits: (B, classes).
    """

    loss: torch.Tensor
    nll: torch.Tensor
    kl: torch.Tensor
    logits: torch.Tensor


def negative_elbo(classifier: Classifier, x: torch.Tensor, y: torch.Tensor, *, kl_weight: float) -> torch.Tensor:
    """Eq. (10) on one batch: mean cross-entropy under one draw + kl_weight * KL(posterior || prior), a scalar.

    x (B, C, H, W), y (B,). kl_weight >= 0: alpha / N for N training images. With an empty guide the loss is the
    cross-entropy alone.

    Raises InputError for a kl_weight out of range, and where the network does not return logits (B, classes).
    """
    return objective(classifier, x, y, kl_weight=kl_weight).loss


def objective(classifier: Classifier, x: torch.Tensor, y: torch.Tensor, *, kl_weight: float) -> Objective:
    """`negative_elbo` with its parts, as an `Objective`."""
    weights, kl = classifier.weights_and_kl()
    try:
        model = poutine.trace(poutine.condition(classifier.unregistered_model, weights)).get_trace(x, y, kl_weight)
    except InputError as error:                          # to which Pyro has added lines, the shapes of its trace
        raise error.__cause__ or error from None
    model.compute_log_prob(lambda name, site: name == "y")
    nodes: Any = model.nodes
    nll = -nodes["y"]["log_prob_sum"]
    kl = torch.zeros_like(nll) if kl is None else kl
    return Objective(nll + kl_weight * kl, nll.detach(), kl.detach(), nodes["_RETURN"]["value"].detach())
