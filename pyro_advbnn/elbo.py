"""The objective, Eq. (10), as Pyro's closed-form mean-field ELBO over a classifier's model and guide."""
from dataclasses import dataclass

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO


@dataclass(frozen=True)
class Objective:
    """One evaluation of Eq. (10): loss = nll + kl_weight * kl, all scalars; only loss is to be differentiated.

    nll: mean negative log-likelihood of the batch. kl: over the counted weights, unweighted. logits: (B, classes).
    """

    loss: torch.Tensor
    nll: torch.Tensor
    kl: torch.Tensor
    logits: torch.Tensor


def negative_elbo(classifier, x, y, *, kl_weight):
    """Eq. (10) on one batch: mean cross-entropy under one draw + kl_weight * KL(posterior || prior), a scalar.

    x (B, C, H, W), y (B,). kl_weight >= 0: alpha / N for N training images. With an empty guide the loss is the
    cross-entropy alone.

    Raises InputError for a kl_weight out of range, and where the network does not return logits (B, classes).
    """
    return objective(classifier, x, y, kl_weight=kl_weight).loss


def objective(classifier, x, y, *, kl_weight):
    """`negative_elbo` with its parts, as an `Objective`."""
    elbo = _TracedELBO()
    loss = elbo.differentiable_loss(classifier.unregistered_model, classifier.unregistered_guide, x, y, kl_weight)
    model = elbo.model_trace.nodes
    return Objective(loss, -model["y"]["log_prob_sum"].detach(), _kl(elbo).detach(), model["_RETURN"]["value"].detach())


def skip_validation():
    """Turn Pyro's and torch's checks of distributions off for this process, as commands do: they cost time in every step."""
    pyro.enable_validation(False)
    torch.distributions.Distribution.set_default_validate_args(False)


class _TracedELBO(TraceMeanField_ELBO):
    """Keeps the two traces, so that what was computed for the loss can be recorded too."""

    def _get_trace(self, model, guide, args, kwargs):
        self.model_trace, self.guide_trace = super()._get_trace(model, guide, args, kwargs)
        return self.model_trace, self.guide_trace


def _kl(elbo):
    if "weights" not in elbo.guide_trace.nodes:
        return torch.zeros(())
    prior, posterior = elbo.model_trace.nodes["weights"], elbo.guide_trace.nodes["weights"]
    try:
        return torch.distributions.kl_divergence(posterior["fn"], prior["fn"])
    except NotImplementedError:
        return posterior["unscaled_log_prob"] - prior["unscaled_log_prob"]
