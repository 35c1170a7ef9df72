"""Random self-ensemble (RSE): Gaussian noise before every convolution, in training and in testing.

Liu, Cheng, Zhang and Hsieh, "Towards Robust Neural Networks via Random Self-Ensemble" (ECCV 2018), one of the paper's
baselines. A network without convolutions gets it before every linear layer, of which the paper says nothing.
"""
import itertools
from collections import Counter

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from pyro_advbnn.bayes.kernels.vectors import in_transform
from pyro_advbnn.bayes.parameters import check_network, copied
from pyro_advbnn.system.errors import InputError

_CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d


class AdditiveNoise(nn.Module):
    """x -> x + std * N(0, 1), fresh in every call, in training and in evaluation alike; std >= 0.

    `fix(seed)` makes the noise the same for every call with the same shape, and for every image of a batch.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std
        self.seed: int | None = None
        self._kept: dict = {}
        self.drawn = False                               # whether a call has come through

    def fix(self, seed: int) -> None:
        self.seed, self._kept = seed, {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.drawn = True
        if self.seed is None:
            return x + self.std * torch.randn(x.shape, device=x.device, dtype=x.dtype)     # not by the order in memory
        return x + self.std * self._fixed(x)

    def _fixed(self, x):
        """The fixed noise of x, kept from its first call on: torch.export follows no generator."""
        kind = x.shape[1:], x.device, x.dtype
        if kind in self._kept:
            return self._kept[kind]
        generator = torch.Generator(x.device).manual_seed(self.seed)
        noise = torch.randn(x.shape[1:], generator=generator, device=x.device, dtype=x.dtype)
        return noise if in_transform() else self._kept.setdefault(kind, noise)

    def extra_repr(self) -> str:
        return f"std={self.std}"


def add_noise_to_input(layer, arguments):
    """The hook of a layer that noise is added before; its weights, its name and its kind stay as they are."""
    return layer.rse_noise(arguments[0]), *arguments[1:]


def add_noise(network: nn.Module, first_std: float = 0.2, inner_std: float = 0.1) -> nn.Module:
    """A copy of `network` with noise before its first convolution (first_std) and before each other one (inner_std).

    Convolutions are taken in the order in which the network registers them; without any, linear layers are, but for those
    whose weights an attention reads. (Encoder layers leave torch's fast path, which a hook bars.)

    Raises InputError for a network that has neither, or noise already, and as `parameters.check_network`.
    """
    check_network(network)
    if noises(network):
        raise InputError("the network has noise before its layers already")
    noisy = copied(network)
    layers: list[nn.Module] = [module for module in noisy.modules() if isinstance(module, _CONVOLUTIONS)]
    if not layers:
        layers = [module for module in noisy.modules()
                  if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)]
    if not layers:
        raise InputError(f"RSE needs convolutions or linear layers to put noise before; {type(network).__name__} has neither")
    for layer, std in zip(layers, itertools.chain([first_std], itertools.repeat(inner_std))):
        layer.rse_noise = AdditiveNoise(std)
        layer._forward_pre_hooks[-1] = add_noise_to_input            # torch's numbers begin anew where a pickle is read
    return noisy


def noise_before(network):
    """{kind of layer: how many have noise before them}, of those that a call has come through; before the first call of all."""
    layers = list(_noisy_layers(network).values())
    return dict(Counter(type(layer).__name__ for layer in [each for each in layers if each.rse_noise.drawn] or layers))


def noises(network):
    """The `AdditiveNoise` modules of a network, in its order."""
    return [module for module in network.modules() if isinstance(module, AdditiveNoise)]


def silent_layers(network):
    """The names of layers that have noise before them and that no call has come through."""
    return [name for name, layer in _noisy_layers(network).items() if not layer.rse_noise.drawn]


def _noisy_layers(network):
    return {name: module for name, module in network.named_modules()
            if add_noise_to_input in module._forward_pre_hooks.values()}
