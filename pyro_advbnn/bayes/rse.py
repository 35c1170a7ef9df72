"""Random self-ensemble (RSE): Gaussian noise before every convolution, in training and in testing.

Liu, Cheng, Zhang and Hsieh, "Towards Robust Neural Networks via Random Self-Ensemble" (ECCV 2018), one of the paper's
baselines. A network without convolutions gets it before every linear layer, of which the paper says nothing.
"""
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


class NoisyLayer(nn.Module):
    """Noise, then a layer, whose attributes it has too: a network may read self.conv.weight."""

    def __init__(self, noise, layer):
        super().__init__()
        self.noise, self.layer = noise, layer

    def forward(self, x):
        return self.layer(self.noise(x))

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):                    # how to copy it, for one
                raise
            return getattr(super().__getattr__("layer"), name)


def add_noise(network: nn.Module, first_std: float = 0.2, inner_std: float = 0.1) -> nn.Module:
    """A copy of `network` with noise before its first convolution (first_std) and before each other one (inner_std).

    Convolutions are taken in the order in which the network registers them; without any, linear layers are, but for those
    whose weights an attention reads. Encoder layers lose torch's fast path, which would read the weights of theirs.

    Raises InputError for a network that has neither, or noise already, and as `parameters.check_network`.
    """
    check_network(network)
    if noises(network):
        raise InputError("the network has noise before its layers already")
    noisy = nn.Sequential(copied(network))               # so that a network which is itself a layer has a parent
    named = list(noisy.named_modules(remove_duplicate=False))
    layers: list[tuple[str, nn.Module]] = [(name, module) for name, module in named if isinstance(module, _CONVOLUTIONS)]
    if not layers:
        layers = [(name, module) for name, module in named
                  if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)]
    if not layers:
        raise InputError(f"RSE needs convolutions or linear layers to put noise before; {type(network).__name__} has neither")
    made: dict = {}
    for name, layer in layers:
        parent, _, child = name.rpartition(".")
        noise = AdditiveNoise(inner_std if made else first_std)
        made.setdefault(layer, NoisyLayer(noise, layer))             # a layer under two names gets one noise under both
        setattr(noisy.get_submodule(parent), child, made[layer])
    for module in noisy.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
    return noisy[0]


def noise_before(network):
    """{kind of layer: how many have noise before them}, of those that a call has come through; before the first call of all."""
    layers = [module for module in network.modules() if isinstance(module, NoisyLayer)]
    return dict(Counter(type(m.layer).__name__ for m in [m for m in layers if m.noise.drawn] or layers))


def noises(network):
    """The `AdditiveNoise` modules of a network, in its order."""
    return [module for module in network.modules() if isinstance(module, AdditiveNoise)]


def silent_layers(network):
    """The names of layers that have noise before them and that no call has come through."""
    return [name for name, module in network.named_modules() if isinstance(module, NoisyLayer) and not module.noise.drawn]
