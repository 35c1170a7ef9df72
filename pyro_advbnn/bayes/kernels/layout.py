"""In which order a network's images lie in memory: channels last, where its convolutions are faster so."""
from math import prod

import torch
from torch.nn.modules.conv import _ConvNd

from pyro_advbnn.bayes.kernels.vectors import in_transform

_KNOWN = ("torch.nn.", "torchvision.", "pyro_advbnn.")     # modules that leave the order of numbers in memory to torch
_MANY_WEIGHTS = 2**21              # of one convolution; 3x3 of 512 to 512 channels have 2.4 million


def as_convolutions_like(x, network):
    """Images x as the convolutions of `network` like them best in memory: channels last, or as they are.

    Under autocast channels last is for GPUs and for CPUs with AMX. In float32 on a CPU, for images of 32 pixels and more, it
    was measured to save 7 to 20 % of attacks, predictions and training steps of Model A and of a VGG16 of 16 base channels; a
    full VGG16 is slower so. A forward written elsewhere may take its activations for contiguous, as x.view(len(x), -1) does: it
    gets them so. Under torch.func, which cannot reorder, images stay as they are.
    """
    if x.dim() != 4 or in_transform():
        return x
    if torch.is_autocast_enabled(x.device.type):
        likes = x.device.type == "cuda" or (x.device.type == "cpu" and torch.cpu._is_amx_tile_supported())
    else:
        likes = x.device.type == "cpu" and x.shape[-1] >= 32 and not _is_wide(network)
    if likes and all(type(module).__module__.startswith(_KNOWN) for module in network.modules()):
        return x.contiguous(memory_format=torch.channels_last)
    return x


def laying_out(network):
    """The network itself, whose calls from now on lay their images out by `as_convolutions_like`."""
    network.register_forward_pre_hook(_lay_out)
    return network


def _lay_out(network, arguments):
    return as_convolutions_like(*arguments, network)


def _is_wide(network):
    convolutions = [module for module in network.modules() if isinstance(module, _ConvNd)]
    return any(c.in_channels // c.groups * c.out_channels * prod(c.kernel_size) > _MANY_WEIGHTS for c in convolutions)
