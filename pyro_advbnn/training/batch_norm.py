"""BatchNorm by other statistics than those of the batch: of the joined batch of several processes, or the running ones."""
import torch
import torch.nn.functional as F
from torch import nn

from pyro_advbnn.system import distributed


def synchronise(network, device_type):
    """`network` with every BatchNorm normalising by the joined batch of all processes; alone, as it is.

    Works in place; names, order and values of parameters and buffers stay. "cuda" takes torch's SyncBatchNorm, which
    refuses tensors on the CPU.
    """
    if distributed.world_size() == 1:
        return network
    if device_type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return _replaced(network, SyncedBatchNorm)


def prepare_running(network):
    """`network` with every BatchNorm that has running statistics one that `normalise_by_running` can switch; in place."""
    return _replaced(network, RunningBatchNorm)


def normalise_by_running(network, on):
    """Whether the norms of a prepared network normalise training batches by their running statistics from now on."""
    for module in network.modules():
        if isinstance(module, RunningBatchNorm):
            module.by_running = on


def _replaced(network, kind):
    if isinstance(network, nn.modules.batchnorm._BatchNorm):
        return _like(network, kind) if network.track_running_stats or kind is SyncedBatchNorm else network
    for name, child in network.named_children():
        network.add_module(name, _replaced(child, kind))
    return network


def _like(norm, kind):
    other = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    other.weight, other.bias, other.training = norm.weight, norm.bias, norm.training
    for name, buffer in norm.named_buffers():
        setattr(other, name, buffer)
    return other


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """`F.batch_norm` of the joined batch: x (B, C, ...) of this process alone, B may differ between the processes."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        values = x if x.dtype == torch.float64 else x.float()
        mean, var, count = _joined_statistics(values)
        if self.track_running_stats:
            self._track(mean.detach(), var.detach(), count)
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale = (var + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        normalised = (values - mean.view(shape)) * scale.view(shape)
        return (normalised + self.bias.view(shape) if self.affine else normalised).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean, var, count):
        self.num_batches_tracked += 1
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), momentum)

    def _check_input_dim(self, x):
        if x.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {x.dim()}D input)")


class RunningBatchNorm(SyncedBatchNorm):
    """A BatchNorm that, where `by_running`, normalises training batches by its running statistics; each batch moves them first.

    A Bayesian network's batch is normalised by the statistics of its own draw, which hides from the likelihood what a wide
    draw does to predictions and attacks, whose statistics are those of many draws. Without `by_running` it is an ordinary
    one, or in several processes a `SyncedBatchNorm`. No gradient goes through the running statistics.
    """

    by_running = False

    def forward(self, x):
        if not (self.training and self.by_running):
            alone = distributed.world_size() == 1
            return nn.modules.batchnorm._BatchNorm.forward(self, x) if alone else super().forward(x)
        self._check_input_dim(x)
        with torch.no_grad():
            mean, var, count = _joined_statistics(x if x.dtype == torch.float64 else x.float())
            self._track(mean, var, count)
        mean, var = self.running_mean.clone(), self.running_var.clone()      # another call may move them before the gradient
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)


def _joined_statistics(x):
    """(mean (C,), biased variance (C,), count) over all processes; in two passes, as one would lose digits."""
    dims = [0, *range(2, x.dim())]
    sums = distributed.Sum.apply(torch.cat([x.sum(dims), x.new_tensor([x.numel() // x.shape[1]])]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    deviations = x - mean.view(1, -1, *[1] * (x.dim() - 2))
    return mean, distributed.Sum.apply(deviations.square().sum(dims)) / count, count
