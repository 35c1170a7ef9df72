"""Cheaper calls of a network for which no weight needs a gradient, as in an attack and in a prediction.

A BatchNorm that keeps still is an affine map of each channel: folded into the convolution before it, it costs one pass over
that layer's weights instead of several over its activations. Under autocast the weights are brought to its dtype in memory
that is kept; autocast itself would make that copy anew in every call. 2x2 max-poolings are done by a faster loop.
"""
import copy
import warnings
from contextlib import contextmanager

import torch
from torch import fx, nn
from torch.func import functional_call

from pyro_advbnn.bayes.kernels.max_pool import MaxPool2x2, is_2x2
from pyro_advbnn.bayes.kernels.vectors import Buffers

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm           # with SyncBatchNorm
_CAST = (*_CONVOLUTIONS, nn.Linear)                      # whose weights autocast brings to its dtype


class LeanCalls:
    """Calls of a network with weights given by name, BatchNorm folded where it keeps still.

    network: the structure, whose parameters and modes stay as they are. shared: names of modules that share weights; they,
    modules with hooks, and networks that torch.fx cannot trace are called as they are.
    """

    def __init__(self, network, shared=()):
        self.network = network
        self._cast = [f"{name}.weight" for name, module in network.named_modules() if type(module) in _CAST]
        self._poolings = [name for name, module in network.named_modules() if is_2x2(module) and name]
        self._pairs = [pair for pair in foldable(network) if not set(shared) & set(pair)]
        self._buffers = Buffers()

    def __call__(self, weights, x):
        """What the network returns for x with what `weights` made."""
        tensors, folded = weights
        poolings = [name for name in self._poolings if not _has_hooks(self.network.get_submodule(name))]
        with _replaced(self.network, dict.fromkeys(folded, nn.Identity) | dict.fromkeys(poolings, MaxPool2x2)):
            return functional_call(self.network, tensors, (x,), tie_weights=False)

    def weights(self, tensors, owned=()):
        """(tensors to call with, names of the BatchNorms that are in them) from parameters by name.

        owned: the names of parameters whose memory may be written to.
        """
        tensors, folded = dict(tensors), self._still_pairs()
        with torch.no_grad():
            for (convolution, norm), *modules in folded:
                tensors |= _folded(tensors, convolution, norm, *modules, owned)
            return self._autocast(tensors), [norm for (_, norm), *_ in folded]

    def _still_pairs(self):
        pairs = [(pair, *map(self.network.get_submodule, pair)) for pair in self._pairs]
        return [(pair, convolution, norm) for pair, convolution, norm in pairs
                if not norm.training and norm.running_mean is not None and not _has_hooks(convolution) | _has_hooks(norm)]

    def _autocast(self, tensors):
        names = [name for name in self._cast if name in tensors and tensors[name].dtype == torch.float32]
        dtype = autocast_dtype(tensors[names[0]].device) if names else None
        if dtype is None:
            return tensors
        sizes = [tensors[name].numel() for name in names]
        pieces = self._buffers.take(tensors[names[0]].new_empty(0, dtype=dtype), sum(sizes)).split(sizes)
        return tensors | {name: piece.view(tensors[name].shape).copy_(tensors[name])
                          for name, piece in zip(names, pieces, strict=True)}


def _folded(tensors, convolution, norm, convolution_module, norm_module, owned):
    """The weight and bias with which the convolution gives what the BatchNorm after it would."""

    def tensor(name, module, leaf):
        return tensors.get(f"{name}.{leaf}", getattr(module, leaf))

    weight, bias = (tensor(convolution, convolution_module, leaf) for leaf in ("weight", "bias"))
    gamma, beta = (tensor(norm, norm_module, leaf) for leaf in ("weight", "bias"))
    scale = (norm_module.running_var + norm_module.eps).rsqrt()
    scale = scale if gamma is None else scale * gamma
    shift = -norm_module.running_mean if bias is None else bias - norm_module.running_mean
    name, per_channel = f"{convolution}.weight", scale.view(-1, *[1] * (weight.dim() - 1))
    return {name: weight.mul_(per_channel) if name in owned else weight * per_channel,
            f"{convolution}.bias": shift * scale if beta is None else torch.addcmul(beta, shift, scale)}


def autocast_dtype(device):
    """The dtype that autocast computes in on this kind of device, None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def foldable(network):
    """[(name of a convolution, name of the BatchNorm that alone reads its output), ...]; [] where torch.fx cannot trace."""
    tensors = {id(t): t for t in (*network.parameters(), *network.buffers())}          # are looked at, so need no copies
    try:
        with warnings.catch_warnings(action="ignore"):
            traced = fx.Tracer().trace(copy.deepcopy(network, tensors).eval())
    except Exception:                                    # control flow that depends on the images, for one
        return []
    modules, calls = dict(network.named_modules()), [node.target for node in traced.nodes if node.op == "call_module"]
    pairs = [(node.args[0].target, node.target) for node in traced.nodes if _alone_reads_a_module(node)]
    return [(convolution, norm) for convolution, norm in pairs
            if type(modules[convolution]) in _CONVOLUTIONS and isinstance(modules[norm], _BATCH_NORMS)
            and calls.count(convolution) == calls.count(norm) == 1]


def _alone_reads_a_module(node):
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        return False
    return node.args[0].op == "call_module" and len(node.args[0].users) == 1


def _has_hooks(module):
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


@contextmanager
def _replaced(network, replacements):
    """Modules of these names are new ones, {name: class}, inside: `functional_call` may leave tensors in them."""
    places = [(network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in replacements]
    modules = [parent._modules[leaf] for parent, leaf in places]
    for (parent, leaf), replacement in zip(places, replacements.values(), strict=True):
        parent._modules[leaf] = replacement()
    try:
        yield
    finally:
        for (parent, leaf), module in zip(places, modules, strict=True):
            parent._modules[leaf] = module
