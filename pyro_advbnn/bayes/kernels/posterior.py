"""Passes over a mean-field posterior's vectors: a draw with its KL, both gradients of them, a step of the natural gradient.

`guide.draw` and `guide.kl_to_normal` say in plain lines what is computed here: over long vectors on the CPU piece by piece by
`_posterior`, where it was compiled, otherwise by torch, where the step takes whole vectors.
"""
import math

import torch

from pyro_advbnn.bayes.kernels.vectors import SHARE, addresses, are_long, chunks, in_threads, standard_normal_

try:                                                     # compiled at installation, where there is a C compiler
    from pyro_advbnn.bayes.kernels import _posterior  # type: ignore[attr-defined]
except ImportError:
    _posterior = None


def draw_with_kl(mean, log_std, prior_pieces):
    """(weights (d,), KL): w = mean + exp(log_std) * eps (Eq. 5), and Eq. (6) summed, a scalar.

    mean, log_std: (d,). prior_pieces: [(slice, prior_std), ...] in order, the weights that the KL counts; [] for a KL of 0.

    The gradients are those of the paper's RandLayer (Appendix A): grad + k mean / s0^2 and
    grad exp(s) eps + k (exp(2 s) / s0^2 - 1), with k the gradient of the KL.
    """
    return _DrawWithKL.apply(mean, log_std, prior_pieces)


class _DrawWithKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mean, log_std, prior_pieces):
        shift = standard_normal_(torch.empty_like(mean))
        weights = torch.empty_like(mean)
        vectors = weights, shift, mean, log_std
        if _is_compiled_for(*vectors):
            kl = mean.new_tensor(sum(_in_pieces(_posterior.draw, vectors, prior_pieces)), dtype=torch.float64)
        else:
            kl = _draw(*vectors, prior_pieces)
        ctx.save_for_backward(mean, log_std, shift)
        ctx.prior_pieces = prior_pieces
        ctx.set_materialize_grads(False)
        return weights, kl.to(mean.dtype)

    @staticmethod
    def backward(ctx, grad, grad_kl):
        mean, log_std, shift = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(mean)
        if torch.is_grad_enabled():                      # create_graph=True: these gradients will be differentiated
            return *_differentiable_gradients(grad, 0.0 if grad_kl is None else grad_kl, *ctx.saved_tensors,
                                              ctx.prior_pieces), None
        if grad_kl is None:
            return grad, grad * shift, None
        grads = torch.empty_like(mean), torch.empty_like(mean)
        vectors = *grads, grad, shift, mean, log_std
        if _is_compiled_for(*vectors):
            _in_pieces(_posterior.gradients, vectors, ctx.prior_pieces, grad_kl.item())
        else:
            _gradients(*vectors, ctx.prior_pieces, grad_kl)
        return *grads, None


def _draw(weights, shift, mean, log_std, prior_pieces):
    """weights = mean + exp(log_std) * shift, shift *= exp(log_std), from normals in shift; returns the KL."""
    kl = mean.new_zeros((), dtype=torch.float64)
    for part, prior_std in _parts(prior_pieces, mean):
        std = log_std[part].exp()
        if prior_std is not None:
            kl += _kl(mean[part], log_std[part], std, prior_std)
        torch.add(mean[part], shift[part].mul_(std), out=weights[part])
    return kl


def _gradients(grad_mean, grad_log_std, grad, shift, mean, log_std, prior_pieces, grad_kl):
    """Both of them by `grad`, that of the weights, and grad_kl."""
    for part, prior_std in _parts(prior_pieces, mean):
        torch.mul(grad[part], shift[part], out=grad_log_std[part])
        if prior_std is None:
            grad_mean[part] = grad[part]
            continue
        torch.addcmul(grad[part], mean[part], grad_kl, value=prior_std**-2, out=grad_mean[part])
        grad_log_std[part].addcmul_(kl_by_log_std(log_std[part], prior_std), grad_kl)


def _differentiable_gradients(grad, grad_kl, mean, log_std, shift, prior_pieces):
    """What `_gradients` writes, as functions of all of them."""
    counted, precision = torch.zeros_like(mean), torch.zeros_like(mean)
    for part, prior_std in prior_pieces:
        counted[part], precision[part] = 1.0, prior_std**-2
    shift = shift * (log_std - log_std.detach()).exp()   # the noise stays, the std does not
    return grad + grad_kl * mean * precision, grad * shift + grad_kl * ((2 * log_std).exp() * precision - counted)


def step_by_squares_(log_std, grad, prior_pieces, slope, *, kl_weight, share, rate, bound):
    """log_std -= rate * clamp(share D^2 + K, -bound, bound), D = grad - K; returns (2,), the sums of D and of D^2 before it.

    log_std, grad: (d,). K: kl_weight times the KL's gradient by log_std. prior_pieces: as in `draw_with_kl`, None where the
    prior is not normal. slope(): that gradient (d,). share: a scalar.
    """
    if prior_pieces is not None and _is_compiled_for(log_std, grad):
        sums = _in_pieces(_posterior.step, (log_std, grad), prior_pieces, kl_weight, share.item(), rate, bound)
        torch.autograd.graph.increment_version(log_std)  # for those who keep what they made of it, as torch's step does
        return log_std.new_tensor([sum(each) for each in zip(*sums, strict=True)])
    of_kl = slope().mul_(kl_weight)
    of_draws = grad - of_kl
    log_std.sub_(torch.clamp(of_kl.addcmul_(share * of_draws, of_draws), -bound, bound), alpha=rate)
    return torch.stack([of_draws.sum(), of_draws.dot(of_draws)])


def kl_by_log_std(log_std, prior_std):
    """d/dlog_std of Eq. (6) by weight, std^2 / prior_std^2 - 1; (d,), number > 0 -> (d,)."""
    return torch.add(log_std.new_full((), -2 * math.log(prior_std)), log_std, alpha=2).exp_().sub_(1)


def _parts(prior_pieces, like, size=None):
    """(slice of one chunk, its prior std, or None where the KL does not count) over all weights, in order."""
    start = 0
    for piece, prior_std in [*prior_pieces, (slice(len(like), len(like)), None)]:
        yield from ((part, None) for part in chunks(start, piece.start, like.device, size))
        yield from ((part, prior_std) for part in chunks(piece.start, piece.stop, like.device, size))
        start = piece.stop


def _is_compiled_for(*vectors):
    return _posterior is not None and are_long(*vectors)


def _in_pieces(function, vectors, prior_pieces, *numbers):
    """[what a function of `_posterior` returns for each piece of the vectors, ...]"""

    def piece(part_and_prior):
        part, prior_std = part_and_prior
        return function(*addresses(part.start, *vectors), part.stop - part.start, prior_std or 0.0, *numbers)

    return in_threads(piece, _parts(prior_pieces, vectors[0], SHARE))


def _kl(mean, log_std, std, prior_std):
    """Eq. (6) summed over one part."""
    squares = (std.dot(std) + mean.dot(mean)) / (2 * prior_std**2)
    return squares - log_std.sum() + (math.log(prior_std) - 0.5) * len(mean)
