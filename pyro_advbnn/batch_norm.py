"""BatchNorm over several processes: its statistics are those of the joined batch."""
import torch
from torch import nn

from pyro_advbnn import distributed


def synchronise(network, device_type):
    """`network` with every BatchNorm normalising by the joined batch of all processes; alone, as it is.

    Works in place; names, order and values of parameters and buffers stay. "cuda" takes torch's SyncBatchNorm, which
    refuses tensors on the CPU.
    """
    if distributed.world_size() == 1:
        return network
    if device_type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if isinstance(network, nn.modules.batchnorm._BatchNorm):
        return _like(network)
    for name, child in network.named_children():
        network.add_module(name, synchronise(child, device_type))
    return network


def _like(norm):
    synced = SyncedBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    synced.weight, synced.bias, synced.training = norm.weight, norm.bias, norm.training
    for name, buffer in norm.named_buffers():
        setattr(synced, name, buffer)
    return synced


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """`F.batch_norm` of the joined batch: x (B, C, ...) of this process alone, B may differ between the processes."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        values = x if x.dtype == torch.float64 else x.float()
        mean, var, count = _joined_statistics(values)
        if self.track_running_stats:
            self._track(mean.detach(), var.detach() * (count / (count - 1)))
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale = (var + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        normalised = (values - mean.view(shape)) * scale.view(shape)
        return (normalised + self.bias.view(shape) if self.affine else normalised).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean, unbiased_var):
        self.num_batches_tracked += 1
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), momentum)

    def _check_input_dim(self, x):
        if x.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {x.dim()}D input)")


def _joined_statistics(x):
    """(mean (C,), biased variance (C,), count) over all processes; in two passes, as one would lose digits."""
    dims = [0, *range(2, x.dim())]
    sums = distributed.Sum.apply(torch.cat([x.sum(dims), x.new_tensor([x.numel() // x.shape[1]])]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    deviations = x - mean.view(1, -1, *[1] * (x.dim() - 2))
    return mean, distributed.Sum.apply(deviations.square().sum(dims)) / count, count
