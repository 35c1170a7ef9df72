"""The objective, Eq. (10), as Pyro's closed-form mean-field ELBO over a classifier's model and guide."""
from dataclasses import dataclass

import torch
from pyro.distributions.util import scale_and_mask
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
    elbo = _UnreadELBO()
    loss = elbo.differentiable_loss(classifier.unregistered_model, classifier.unregistered_guide, x, y, kl_weight)
    model = elbo.model_trace.nodes
    kl = torch.zeros_like(loss) if elbo.kl is None else elbo.kl
    return Objective(loss, -model["y"]["log_prob_sum"].detach(), kl.detach(), model["_RETURN"]["value"].detach())


class _UnreadELBO(TraceMeanField_ELBO):
    """Pyro's mean-field ELBO of our sites, but the host never reads its value, for which it would wait for a GPU.

    Keeps the model's trace and the unweighted KL, so that what was computed for the loss can be recorded too.
    """

    kl = None

    def differentiable_loss(self, model, guide, *args, **kwargs):
        self.model_trace, guide_trace = self._get_trace(model, guide, args, kwargs)
        loss = -self.model_trace.nodes["y"]["log_prob_sum"]
        if "weights" not in guide_trace.nodes:
            return loss
        return loss + self._weighted_kl(self.model_trace.nodes["weights"], guide_trace.nodes["weights"])

    def _weighted_kl(self, prior, posterior):
        try:
            self.kl = torch.distributions.kl_divergence(posterior["fn"], prior["fn"])
            return scale_and_mask(self.kl, posterior["scale"], posterior["mask"])
        except NotImplementedError:
            self.kl = posterior["unscaled_log_prob"] - prior["unscaled_log_prob"]
            return posterior["log_prob_sum"] - prior["log_prob_sum"]
