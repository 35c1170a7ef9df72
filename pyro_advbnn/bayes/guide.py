"""The guide: a factorised normal over all weights as one vector (Eq. 5), and its KL from a normal prior (Eq. 6)."""
import math

import torch
from pyro.distributions import Normal, TorchDistribution
from torch.distributions import constraints, kl_divergence

from pyro_advbnn.bayes.kernels.posterior import draw_with_kl
from pyro_advbnn.bayes.kernels.vectors import in_transform, normal_


def draw(mean, log_std, eps):
    """Weights w = mean + exp(log_std) * eps, with eps ~ N(0, I) a draw from the guide (Eq. 5); eps and w are (..., d)."""
    return mean + log_std.exp() * eps


def kl_to_normal(mean, log_std, prior_std):
    """KL(N(mean, exp(log_std)^2) || N(0, prior_std^2)), summed over the weights (Eq. 6); (d,), (d,), number > 0 -> scalar."""
    kl = math.log(prior_std) - log_std + ((2 * log_std).exp() + mean**2) / (2 * prior_std**2) - 0.5
    return kl.sum()


class MeanFieldNormal(TorchDistribution):
    """w_i ~ N(mean_i, exp(log_std_i)^2) as one distribution over a vector (d,), with a scalar log density.

    mean, log_std: (d,). counted: the range (start, stop) of weights that the log density counts. std: exp(log_std) where the
    caller has it already.
    """

    arg_constraints = {"loc": constraints.real_vector, "log_std": constraints.real_vector}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, mean, log_std, *, counted=None, std=None):
        self.loc, self.log_std = mean, log_std
        self.counted = (0, len(mean)) if counted is None else counted
        self._std = std
        super().__init__(event_shape=mean.shape, validate_args=False)

    @property
    def mean(self):
        return self.loc

    @property
    def stddev(self):
        return self.log_std.exp()

    def rsample(self, sample_shape=()):
        """(*sample_shape, d) draws; gradients reach mean and log_std (Eq. 8)."""
        if sample_shape or in_transform():
            eps = torch.randn(*sample_shape, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
            return draw(self.loc, self.log_std, eps)
        if torch.is_grad_enabled() and (self.loc.requires_grad or self.log_std.requires_grad):
            return draw_with_kl(self.loc, self.log_std, [])[0]
        with torch.no_grad():
            return normal_(torch.empty_like(self.loc), self.loc, self.log_std.exp() if self._std is None else self._std)

    def rsample_with_kl(self, prior):
        """(a draw (d,), the KL to a `NormalPrior`, a scalar) as `rsample` and `kl_divergence` give them, in one pass."""
        if in_transform():
            return self.rsample(), kl_divergence(self, prior)
        return draw_with_kl(self.loc, self.log_std, prior.counted_pieces())

    def log_prob(self, value):
        """The log density (*S,) of each of the draws (*S, d)."""
        part = slice(*self.counted)
        weights = Normal(self.loc[part], self.log_std[part].exp(), validate_args=False)
        return weights.log_prob(value[..., part]).sum(-1)
