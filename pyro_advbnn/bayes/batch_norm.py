"""BatchNorm by other statistics than those of its own batch: of the joined batch of several processes, or of the mean network.

In training a Bayesian network's batch is normalised by the statistics of its draw, which divides out what a wide draw does;
predictions and attacks have running statistics, and meet it. Normalised by what the mean network makes of the same batch,
training and prediction are one function, and the likelihood sees what draws this wide cost.
"""
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from pyro_advbnn.bayes.kernels.frozen_calls import answering
from pyro_advbnn.system import distributed
from pyro_advbnn.system.errors import InputError


def synchronise(network, device_type):
    """`network` with every BatchNorm normalising by the joined batch of all processes; alone, as it is.

    Works in place; names, order and values of parameters and buffers stay. "cuda" takes torch's SyncBatchNorm, which
    refuses tensors on the CPU.   Raises InputError for a BatchNorm with a forward of its own.
    """
    if distributed.world_size() == 1:
        return network
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not _calls_torchs(module):
            raise InputError(f"--batch_norm sync cannot join the batches of {name}, a {type(module).__name__} with a forward "
                             f"of its own; --batch_norm broadcast leaves each process its own part")
    kind = nn.SyncBatchNorm if device_type == "cuda" else SyncedBatchNorm
    synced = {norm: _as(kind, norm) for norm in network.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)}
    for module in network.modules():
        for name, child in module._modules.items():      # named_children() tells one of a norm's names alone
            module._modules[name] = synced.get(child, child)
    return synced.get(network, network)


@contextmanager
def statistics_of(norms, call, kept):
    """Inside, `norms` normalise by the statistics that `call`, a function of nothing, has shown them; its gradient included.

    What `call` shows them moves their running statistics; what comes inside does not. norms: some of `norms_in_training`.
    kept: a dict for this alone, the same in every call, so that torch.compile meets the same functions again.
    """
    for norm in norms:
        if norm not in kept:
            shown = []
            kept[norm] = partial(_show, norm, shown), partial(_use, norm, shown), shown
    showing, using, all_shown = zip(*map(kept.get, norms), strict=True)
    try:
        with answering(dict(zip(norms, showing, strict=True))):
            call()
        with answering(dict(zip(norms, using, strict=True))):
            yield
    finally:
        for shown in all_shown:
            shown.clear()


def norms_in_training(network):
    """The BatchNorms of a network that normalise by batches now and keep running statistics for later, by torch's forward."""
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
            and module.track_running_stats and _calls_torchs(module)]


def _calls_torchs(norm):
    """Whether a BatchNorm's forward is torch's, or ours of the joined batch: neither its class nor it has one of its own."""
    return getattr(norm.forward, "__func__", None) in _FORWARDS


def processes_joined(norms):
    """Of how many processes the images together tell the statistics of `norms`."""
    return distributed.world_size() if any(isinstance(norm, nn.SyncBatchNorm) for norm in norms) else 1


def _show(norm, shown, x):
    """x normalised by its own statistics, which move the running ones; they are added to those `shown` before."""
    if processes_joined([norm]) > 1:
        mean, var, count = _joined_statistics(_exact(x))
        normalised = _normalised(x, mean, var, norm.weight, norm.bias, norm.eps)
    else:
        with_statistics = _in_steps if norm.weight is None else _InOnePass.apply
        normalised, mean, var = with_statistics(x, norm.weight, norm.bias, norm.eps)
        count = x.numel() // x.shape[1]
    if norm.track_running_stats:
        _track(norm, mean.detach(), var.detach(), count)
    shown.append((mean, var))
    return normalised


def _use(norm, shown, x):
    """x normalised by the first statistics `shown` that have not been used; by the running ones where there are none."""
    mean, var = shown.pop(0) if shown else (norm.running_mean, norm.running_var)
    return _normalised(x, mean, var, norm.weight, norm.bias, norm.eps)


def _in_steps(x, weight, bias, eps):
    """(x normalised by its own statistics, their mean, their biased variance), differentiable in all three."""
    var, mean = torch.var_mean(_exact(x), [0, *range(2, x.dim())], correction=0)
    return _normalised(x, mean, var, weight, bias, eps), mean, var


class _InOnePass(torch.autograd.Function):
    """`_in_steps` by torch's kernel in half of the time: it has the statistics, but tells no gradient by them."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        normalised, mean, scale = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        ctx.eps = eps
        return normalised, mean, (scale**-2 - eps).clamp(min=0)

    @staticmethod
    def backward(ctx, grad, grad_mean, grad_var):
        x, weight, bias, mean, scale = ctx.saved_tensors
        if torch.is_grad_enabled():                      # create_graph=True: this gradient will be differentiated
            needed = [t for t, needs in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if needs]
            found = iter(torch.autograd.grad(_in_steps(x, weight, bias, ctx.eps), needed, (grad, grad_mean, grad_var),
                                             create_graph=True))
            return *(next(found) if needs else None for needs in ctx.needs_input_grad[:3]), None
        by_x, *by_others = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, scale, True, ctx.eps, ctx.needs_input_grad[:3])
        count, shape = x.numel() // x.shape[1], (1, -1, *[1] * (x.dim() - 2))
        slope = 2 / count * grad_var
        if by_x is not None:
            shift = grad_mean / count - slope * mean
            slope, shift = (each.view(shape).to(x.dtype) for each in (slope, shift))     # mixed, a CPU takes ten times as long
            by_x.addcmul_(x, slope).add_(shift)
        return by_x, *by_others, None


def _normalised(x, mean, var, weight, bias, eps):
    """(x - mean) / sqrt(var + eps) x weight + bias, differentiable in all of them.

    Of torch's kernel for fixed statistics, which tells no gradient by these, weight and bias are given terms of 0 that have it.
    """
    still_mean, still_var = mean.detach().clone(), var.detach().clone()      # a later batch may move the running ones
    factor = ((still_var + eps) / (var + eps)).sqrt()
    factor = factor if weight is None else factor * weight
    shift = (still_mean - mean) * factor * (still_var + eps).rsqrt()
    shift = shift if bias is None else shift + bias
    return F.batch_norm(x, still_mean, still_var, factor, shift, False, 0.0, eps)


def _exact(x):
    return x if x.dtype == torch.float64 else x.float()


@torch.no_grad()
def _track(norm, mean, var, count):
    """Move the running statistics of a norm by those of a batch, var the biased variance."""
    if isinstance(count, int) and count == 1:            # that of several processes is on the device, for which nobody waits
        raise ValueError("BatchNorm in training needs more than 1 value per channel, got 1")
    norm.num_batches_tracked += 1
    momentum = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_((var * (count / (count - 1))).to(norm.running_var.dtype), momentum)


def _as(kind, norm):
    other = kind(norm.num_features)
    vars(other).update(vars(norm))                       # parameters, buffers, hooks and mode
    return other


class SyncedBatchNorm(nn.SyncBatchNorm):
    """torch's, on the CPU too: x (B, C, ...) of this process alone, B may differ between the processes."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        return _show(self, [], x)


def _joined_statistics(x):
    """(mean (C,), biased variance (C,), count) over all processes; in two passes, as one would lose digits."""
    dims = [0, *range(2, x.dim())]
    sums = distributed.Sum.apply(torch.cat([x.sum(dims), x.new_full((1,), x.numel() // x.shape[1])]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    deviations = x - mean.view(1, -1, *[1] * (x.dim() - 2))
    return mean, distributed.Sum.apply(deviations.square().sum(dims)) / count, count


_FORWARDS = (nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward, SyncedBatchNorm.forward)
