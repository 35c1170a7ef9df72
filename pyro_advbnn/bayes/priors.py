"""Priors over one flat vector of weights, and the KL from a mean-field posterior to each of them.

The default is a zero-mean Normal with one std for all weights (the paper) or one per parameter. Any other Pyro
distribution over a single weight works too; its KL is in closed form where torch knows one against a Normal, and
otherwise a one-draw Monte-Carlo estimate (Section 2 of the paper, after Eq. 6).
"""
import copy
import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints, kl_divergence
from torch.distributions.kl import register_kl

from pyro_advbnn.bayes.guide import MeanFieldNormal, kl_to_normal
from pyro_advbnn.bayes.kernels.posterior import kl_by_log_std
from pyro_advbnn.bayes.settings import PRIORS, Std
from pyro_advbnn.system.errors import InputError


class NormalPrior(TorchDistribution):
    """Independent N(0, std^2) over d weights, std constant over each piece, with a scalar log density.

    pieces: [(start, stop, std), ...] that cover [0, d) in order. counted: the range (start, stop) that the log density
    and the KL count.
    """

    arg_constraints = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, pieces, counted=None, like=None):
        self.pieces = pieces
        self.counted = (0, pieces[-1][1]) if counted is None else counted
        self._like = torch.empty(0) if like is None else like    # its dtype and device are those of a draw
        super().__init__(event_shape=torch.Size([pieces[-1][1]]), validate_args=False)

    def rsample(self, sample_shape=()):
        draw = torch.randn(*sample_shape, *self.event_shape, dtype=self._like.dtype, device=self._like.device)
        for start, stop, std in self.pieces:
            draw[..., start:stop] *= std
        return draw

    def log_prob(self, value):
        """The log density (*S,) of each of the draws (*S, d)."""
        total = value.new_zeros(value.shape[:-1])
        for part, std in self.counted_pieces():
            w = value[..., part]
            total = total - w.square().sum(-1) / (2 * std**2) - (math.log(std) + 0.5 * math.log(2 * math.pi)) * w.shape[-1]
        return total

    def kl_by_log_std(self, log_std):
        """d KL(posterior || prior) / d log_std (d,): std^2 / prior_std^2 - 1, or 0 where none counts."""
        slope = torch.zeros_like(log_std)
        for piece, prior_std in self.counted_pieces():
            slope[piece] = kl_by_log_std(log_std[piece], prior_std)
        return slope

    def counted_pieces(self):
        """[(slice, std), ...]: the pieces, cut to the weights that count."""
        first, last = self.counted
        cut = [(max(start, first), min(stop, last), std) for start, stop, std in self.pieces]
        return [(slice(start, stop), std) for start, stop, std in cut if start < stop]


class ElementwisePrior(TorchDistribution):
    """d independent weights, each with the same one-weight distribution, with a scalar log density over `counted`."""

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, one_weight, counted=None, *, like):
        if one_weight.event_shape or one_weight.batch_shape:
            raise InputError(f"prior must be a distribution over one weight, got batch shape "
                             f"{tuple(one_weight.batch_shape)} and event shape {tuple(one_weight.event_shape)}")
        self.one_weight, self._device, self._like = one_weight, None, like
        self.counted = (0, len(like)) if counted is None else counted
        super().__init__(event_shape=like.shape, validate_args=False)

    def sample(self, sample_shape=()):
        return self._on(self._like.device).sample(torch.Size(sample_shape) + self.event_shape).to(self._like.dtype)

    def log_prob(self, value):
        """The log density (*S,) of each of the draws (*S, d)."""
        return self._on(value.device).log_prob(value[..., slice(*self.counted)]).sum(-1)

    def _on(self, device):
        if self._device != device:
            self.one_weight, self._device = _moved(self.one_weight, device), device
        return self.one_weight


def _moved(distribution, device):
    """A copy of `distribution` whose tensors, and those of the distributions inside it, live on `device`."""
    moved = copy.copy(distribution)
    for name, value in vars(distribution).items():
        if isinstance(value, torch.Tensor):
            moved.__dict__[name] = value.to(device)
        elif isinstance(value, torch.distributions.Distribution):
            moved.__dict__[name] = _moved(value, device)
    return moved


def scale_mixture(weights: Sequence[float], stds: Sequence[float]) -> dist.Distribution:
    """Mixture of zero-mean Normals with the given weights and stds (Blundell et al. 2015, Eq. 7)."""
    probs, scales = (torch.as_tensor(numbers, dtype=torch.float32) for numbers in (weights, stds))
    in_range = not (probs < 0).any() and abs(probs.sum() - 1) < 1e-4 and (scales > 0).all()
    if probs.shape != scales.shape or probs.dim() != 1 or not in_range:
        raise InputError("scale_mixture takes as many weights (>= 0, of sum 1) as stds (> 0)")
    return dist.MixtureSameFamily(dist.Categorical(probs=probs), dist.Normal(torch.zeros_like(scales), scales))


def spike_and_slab(slab_std: float = 1.0, spike_std: float = 1e-3, slab_probability: float = 0.5) -> dist.Distribution:
    """Spike and slab with a narrow Normal for the spike, so that a density exists (Ishwaran and Rao 2005)."""
    return scale_mixture([slab_probability, 1 - slab_probability], [slab_std, spike_std])


def named_prior(name: str, std: Std) -> dist.Distribution | None:
    """The distribution over one weight called `name`, with prior_std `std`; None for "normal".

    scale_mixture: half std, half std / 10. spike_and_slab: half std, half std / 100.
    Raises InputError for an unknown name, and for a mixture whose std is not one number.
    """
    if name not in PRIORS:
        raise InputError(f"prior must be one of {', '.join(PRIORS)} or a Pyro distribution, got {name!r}")
    if name == "normal":
        return None
    if not isinstance(std, int | float) or not 0 < std < math.inf:
        raise InputError(f"prior {name} needs prior_std to be one number > 0, got {std!r}")
    if name == "scale_mixture":
        return scale_mixture([0.5, 0.5], [std, std / 10])
    return spike_and_slab(std, std / 100)


def has_closed_form(prior: NormalPrior | ElementwisePrior) -> bool:
    """True where the KL from a mean-field Normal to `prior` is computed exactly."""
    if isinstance(prior, NormalPrior):
        return True
    try:
        kl_divergence(dist.Normal(0.0, 1.0), prior.one_weight)
    except NotImplementedError:
        return False
    return True


@register_kl(MeanFieldNormal, NormalPrior)
def _kl_to_normal(posterior, prior):
    return sum(kl_to_normal(posterior.loc[part], posterior.log_std[part], std) for part, std in prior.counted_pieces())


@register_kl(MeanFieldNormal, ElementwisePrior)
def _kl_elementwise(posterior, prior):
    part = slice(*prior.counted)
    weights = dist.Normal(posterior.loc[part], posterior.log_std[part].exp())
    return kl_divergence(weights, prior._on(weights.loc.device)).sum()
