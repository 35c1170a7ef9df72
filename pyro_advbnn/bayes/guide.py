"""The mean-field posterior over one flat vector of weights, as a Pyro distribution."""
import math

import torch
from pyro.distributions import TorchDistribution
from torch.autograd.function import once_differentiable
from torch.distributions import constraints

from pyro_advbnn.bayes.kernels.vectors import Buffers, chunks, normal_, standard_normal_


class MeanFieldNormal(TorchDistribution):
    """Fully factorised normal over a vector, w_i ~ N(mean_i, exp(log_std_i)^2) (Eq. 5), with a scalar log density.

    mean, log_std: (d,). prior: the `priors.NormalPrior` whose KL shall be computed on the way, in the same pass as a
    draw. counted: the range (start, stop) of weights that the log density counts. std: exp(log_std) where the caller has
    it already. buffers: where draws take their memory from; a draw never shares memory with one that is in use.
    """

    arg_constraints = {"loc": constraints.real_vector, "log_std": constraints.real_vector}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, mean, log_std, *, prior=None, counted=None, std=None, buffers=None):
        self.loc, self.log_std = mean, log_std
        self.prior = prior
        self.counted = (0, len(mean)) if counted is None else counted
        self.buffers = Buffers() if buffers is None else buffers
        self.kl_to_prior = None
        self._std = std
        self._last_draw = self._last_log_prob = None
        super().__init__(event_shape=mean.shape, validate_args=False)

    @property
    def mean(self):
        return self.loc

    @property
    def stddev(self):
        return self.log_std.exp()

    @property
    def variance(self):
        return (2 * self.log_std).exp()

    def rsample(self, sample_shape=()):
        """(*sample_shape, d) draws w = mean + exp(log_std) * eps; gradients reach mean and log_std (Eq. 8)."""
        if sample_shape:
            eps = torch.randn(*sample_shape, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
            return self.loc + self.log_std.exp() * eps
        if torch.is_grad_enabled() and (self.loc.requires_grad or self.log_std.requires_grad):
            return self._differentiable_draw()
        with torch.no_grad():
            std = (lambda part: self.log_std[part].exp()) if self._std is None else self._std
            return normal_(self.buffers.take(self.loc), self.loc, std)

    def log_prob(self, value):
        """The log density of `value` (d,): a scalar."""
        known = self._last_log_prob if value is self._last_draw else None
        return _LogDensity.apply(value, self.loc, self.log_std, self.counted, known)

    def _differentiable_draw(self):
        if self.prior is None:
            return _Draw.apply(self.loc, self.log_std, None, self.counted, self.buffers)[0]
        weights, kl, log_prob = _Draw.apply(self.loc, self.log_std, self.prior, self.counted, self.buffers)
        self.kl_to_prior, self._last_draw, self._last_log_prob = kl, weights, log_prob.detach()
        return weights


class _Draw(torch.autograd.Function):
    """(weights, KL to the prior, log density of the weights) in one pass, and in one pass back.

    The gradients are those of the paper's RandLayer (Appendix A): grad + k mean / s0^2 and
    grad exp(s) eps + k (exp(2 s) / s0^2 - 1), with k the gradient of the KL.
    """

    @staticmethod
    def forward(ctx, mean, log_std, prior, counted, buffers):
        shift = standard_normal_(buffers.take(mean))
        weights = buffers.take(mean)
        kl, log_prob = mean.new_zeros(2, dtype=torch.float64).unbind()
        for part, prior_std in _parts(prior, len(mean), counted, mean.device):
            std = log_std[part].exp()
            if prior_std is not None:
                sum_log_std = log_std[part].sum()
                log_prob -= 0.5 * shift[part].dot(shift[part]) + sum_log_std
                kl += _kl(mean[part], sum_log_std, std, prior_std)
            torch.add(mean[part], shift[part].mul_(std), out=weights[part])
        log_prob -= 0.5 * math.log(2 * math.pi) * (counted[1] - counted[0])
        ctx.save_for_backward(mean, log_std, shift)
        ctx.prior, ctx.counted, ctx.buffers = prior, counted, buffers
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(log_prob)
        return weights, kl.to(mean.dtype), log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_kl, _):
        mean, log_std, shift = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(mean)
        if grad_kl is None:
            return grad, torch.mul(grad, shift, out=ctx.buffers.take(mean)), None, None, None
        grad_mean, grad_log_std = ctx.buffers.take(mean), ctx.buffers.take(mean)
        for part, prior_std in _parts(ctx.prior, len(mean), ctx.counted, mean.device):
            torch.mul(grad[part], shift[part], out=grad_log_std[part])
            if prior_std is None:
                grad_mean[part] = grad[part]
                continue
            torch.addcmul(grad[part], mean[part], grad_kl, value=prior_std**-2, out=grad_mean[part])
            ratio = torch.add(log_std.new_tensor(-2 * math.log(prior_std)), log_std[part], alpha=2).exp_().sub_(1)
            grad_log_std[part].addcmul_(ratio, grad_kl)
        return grad_mean, grad_log_std, None, None, None


def _parts(prior, size, counted, device):
    """(slice, prior std, or None where the KL does not count) over all weights."""
    if prior is None:
        return [(part, None) for part in chunks(0, size, device)]
    return [*((part, None) for part in chunks(0, counted[0], device)), *prior.counted_parts(device),
            *((part, None) for part in chunks(counted[1], size, device))]


def _kl(mean, sum_log_std, std, prior_std):
    """Eq. (6) summed over one part."""
    squares = (std.dot(std) + mean.dot(mean)) / (2 * prior_std**2)
    return squares - sum_log_std + (math.log(prior_std) - 0.5) * len(mean)


class _LogDensity(torch.autograd.Function):
    """TraceMeanField_ELBO asks for the value in every step, and never for the gradient; `known` makes it free."""

    @staticmethod
    def forward(ctx, value, mean, log_std, counted, known):
        ctx.save_for_backward(value, mean, log_std)
        ctx.counted = counted
        if known is not None:
            return known.to(value.dtype)
        total = value.new_tensor(-0.5 * math.log(2 * math.pi) * (counted[1] - counted[0]))
        for part in chunks(*counted, value.device):
            z = (value[part] - mean[part]).mul_((-log_std[part]).exp_())
            total -= 0.5 * z.dot(z) + log_std[part].sum()
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        value, mean, log_std = ctx.saved_tensors
        grad_mean, grad_log_std = torch.zeros_like(mean), torch.zeros_like(mean)
        for part in chunks(*ctx.counted, value.device):
            precision = (-log_std[part]).exp_()
            z = (value[part] - mean[part]) * precision
            grad_mean[part] = z * precision * grad
            grad_log_std[part] = (z * z - 1) * grad
        return -grad_mean, grad_mean, grad_log_std, None, None
