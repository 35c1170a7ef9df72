"""A draw of the weights and its KL in one pass, and both gradients in one pass back.

`guide.draw` and `guide.kl_to_normal` say in plain lines what is computed here chunk by chunk, without whole-vector temporaries.
"""
import math

import torch
from torch.autograd.function import once_differentiable

from pyro_advbnn.bayes.kernels.vectors import chunks, standard_normal_


def draw_with_kl(mean, log_std, prior_pieces, buffers):
    """(weights (d,), KL): w = mean + exp(log_std) * eps (Eq. 5), and Eq. (6) summed, a scalar. Differentiable once.

    mean, log_std: (d,). prior_pieces: [(slice, prior_std), ...] in order, the weights that the KL counts; [] for a KL of 0.
    buffers: a `Buffers`, where the draw and the gradients take their memory from.

    The gradients are those of the paper's RandLayer (Appendix A): grad + k mean / s0^2 and
    grad exp(s) eps + k (exp(2 s) / s0^2 - 1), with k the gradient of the KL.
    """
    return _DrawWithKL.apply(mean, log_std, prior_pieces, buffers)


class _DrawWithKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mean, log_std, prior_pieces, buffers):
        shift = standard_normal_(buffers.take(mean))
        weights = buffers.take(mean)
        kl = mean.new_zeros((), dtype=torch.float64)
        for part, prior_std in _parts(prior_pieces, len(mean), mean.device):
            std = log_std[part].exp()
            if prior_std is not None:
                kl += _kl(mean[part], log_std[part], std, prior_std)
            torch.add(mean[part], shift[part].mul_(std), out=weights[part])
        ctx.save_for_backward(mean, log_std, shift)
        ctx.prior_pieces, ctx.buffers = prior_pieces, buffers
        ctx.set_materialize_grads(False)
        return weights, kl.to(mean.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_kl):
        mean, log_std, shift = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(mean)
        if grad_kl is None:
            return grad, torch.mul(grad, shift, out=ctx.buffers.take(mean)), None, None
        grad_mean, grad_log_std = ctx.buffers.take(mean), ctx.buffers.take(mean)
        for part, prior_std in _parts(ctx.prior_pieces, len(mean), mean.device):
            torch.mul(grad[part], shift[part], out=grad_log_std[part])
            if prior_std is None:
                grad_mean[part] = grad[part]
                continue
            torch.addcmul(grad[part], mean[part], grad_kl, value=prior_std**-2, out=grad_mean[part])
            grad_log_std[part].addcmul_(kl_by_log_std(log_std[part], prior_std), grad_kl)
        return grad_mean, grad_log_std, None, None


def kl_by_log_std(log_std, prior_std):
    """d/dlog_std of Eq. (6) by weight, std^2 / prior_std^2 - 1; (d,), number > 0 -> (d,)."""
    return torch.add(log_std.new_full((), -2 * math.log(prior_std)), log_std, alpha=2).exp_().sub_(1)


def _parts(prior_pieces, size, device):
    """(slice of one chunk, its prior std, or None where the KL does not count) over all weights, in order."""
    start = 0
    for piece, prior_std in [*prior_pieces, (slice(size, size), None)]:
        yield from ((part, None) for part in chunks(start, piece.start, device))
        yield from ((part, prior_std) for part in chunks(piece.start, piece.stop, device))
        start = piece.stop


def _kl(mean, log_std, std, prior_std):
    """Eq. (6) summed over one part."""
    squares = (std.dot(std) + mean.dot(mean)) / (2 * prior_std**2)
    return squares - log_std.sum() + (math.log(prior_std) - 0.5) * len(mean)
