"""What wrapping a network needs: its trainable parameters, all their names, and the network without them."""
import copy
import fnmatch

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from pyro_advbnn.system.errors import InputError


def trainable_parameters(network):
    """{name: parameter} of those that require a gradient.

    Raises InputError for what is no nn.Module, where there are none, and for parameters that have no shape yet, are of several
    dtypes or on several devices.
    """
    if not isinstance(network, nn.Module):
        raise InputError(f"the network must be an nn.Module, got {type(network).__name__}")
    parameters = dict(network.named_parameters())
    for name, p in parameters.items():
        if isinstance(p, nn.parameter.UninitializedTensorMixin):
            raise InputError(f"parameter {name} has no shape yet: run the network once on a batch first")
    trainable = {name: p for name, p in parameters.items() if p.requires_grad}
    if not trainable:
        raise InputError(f"{type(network).__name__} has no parameters that require a gradient, so nothing can be trained")
    if len({(p.dtype, p.device) for p in parameters.values()}) > 1:
        raise InputError("the parameters must share one dtype and one device")
    return trainable


def matching_parameters(patterns, parameters):
    """{name: parameter} of those whose name matches a pattern, in their order.   Raises InputError for one without a match."""
    for pattern in patterns:
        if not fnmatch.filter(parameters, pattern):
            raise InputError(f"deterministic: no parameter matches {pattern!r}; there are {', '.join(list(parameters)[:8])}...")
    return {name: p for name, p in parameters.items() if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}


def parameter_aliases(network):
    """{name of a trainable parameter: the names under which modules hold it}, one for each module that does.

    A module that is itself there under several names counts once: its weight would be replaced, and put back, twice.
    """
    aliases, names, places = {}, {}, set()
    for name, p in network.named_parameters(remove_duplicate=False):
        module, _, leaf = name.rpartition(".")
        place = id(network.get_submodule(module)), leaf
        if p.requires_grad and place not in places:
            places.add(place)
            aliases.setdefault(names.setdefault(id(p), name), []).append(name)
    return aliases


def shared_modules(network):
    """The names of modules that hold a parameter which has another name too."""
    names = {}
    for name, p in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name.rpartition(".")[0])
    return {module for modules in names.values() if len(modules) > 1 for module in modules}


def skeleton(network):
    """A copy of the network's structure and buffers with None for every trainable parameter, which is not copied."""
    return copy.deepcopy(network, {id(p): None for p in network.parameters() if p.requires_grad})


def names_unreached(output, weights):
    """The names of those of `weights`, {name: tensor}, that require a gradient and on which `output` does not depend."""
    found, ways = set(), [get_gradient_edge(output)[:2]] if output.requires_grad else []
    while ways:
        way = ways.pop()
        if way not in found:
            found.add(way)
            ways += [each for each in way[0].next_functions if each[0] is not None]
    return [name for name, w in weights.items() if w.requires_grad and get_gradient_edge(w)[:2] not in found]


def flatten(parameters):
    """{name: parameter} as one vector (d,), a copy without gradient."""
    return torch.cat([p.detach().reshape(-1) for p in parameters.values()])


def last_layer_names(network):
    """The names of the parameters of the module that comes last in registration order."""
    names = []
    for prefix, module in network.named_modules():
        names = [name for name, _ in module.named_parameters(prefix, recurse=False)] or names
    return set(names)
