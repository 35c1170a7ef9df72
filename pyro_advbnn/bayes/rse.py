"""Random self-ensemble (RSE): Gaussian noise before every convolution, in training and in testing.

Liu, Cheng, Zhang and Hsieh, "Towards Robust Neural Networks via Random Self-Ensemble" (ECCV 2018), one of the paper's
baselines.
"""
import copy

import torch
from torch import nn


class AdditiveNoise(nn.Module):
    """x -> x + std * N(0, 1), fresh in every call, in training and in evaluation alike; std >= 0.

    `fix(seed)` makes the noise the same for every call with the same shape, and for every image of a batch.
    """

    def __init__(self, std):
        super().__init__()
        self.std = std
        self.seed = None

    def fix(self, seed):
        self.seed = seed

    def forward(self, x):
        if self.seed is None:
            return x + self.std * torch.randn_like(x)
        generator = torch.Generator(x.device).manual_seed(self.seed)
        noise = torch.randn(x.shape[1:], generator=generator, device=x.device, dtype=x.dtype)
        return x + self.std * noise

    def extra_repr(self):
        return f"std={self.std}"


def add_noise(network, first_std=0.2, inner_std=0.1):
    """A copy of `network` with noise before its first convolution (first_std) and before each other one (inner_std).

    Convolutions are taken in the order in which the network registers them.
    """
    noisy = copy.deepcopy(network)
    names = [name for name, module in noisy.named_modules() if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    for i, name in enumerate(names):
        parent, _, child = name.rpartition(".")
        convolution = noisy.get_submodule(name)
        noise = AdditiveNoise(inner_std if i else first_std)
        setattr(noisy.get_submodule(parent), child, nn.Sequential(noise, convolution))
    return noisy
