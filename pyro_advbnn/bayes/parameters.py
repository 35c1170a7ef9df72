"""What wrapping a network needs: its trainable parameters, all their names, and the network without them."""
import copy
import fnmatch

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from pyro_advbnn.bayes.settings import parameters_by_layer
from pyro_advbnn.system.errors import InputError, reason


def check_network(network):
    """Raises InputError for what is no nn.Module, and where a part of it calls other modules than those that it holds."""
    if not isinstance(network, nn.Module):
        raise InputError(f"the network must be an nn.Module, got {type(network).__name__}")
    for module in network.modules():
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise InputError(f"the network must be the plain one that a {type(module).__name__} wraps: pass its .module")
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError("the network must be the nn.Module that a TorchScript module was made from")


def trainable_parameters(network):
    """{name: parameter} of those that require a gradient.

    Raises InputError as `check_network`, where there are none, and for parameters that have no shape yet.
    """
    check_network(network)
    parameters = dict(network.named_parameters())
    for name, p in parameters.items():
        if isinstance(p, nn.parameter.UninitializedTensorMixin):
            raise InputError(f"parameter {name} has no shape yet: run the network once on a batch first")
    trainable = {name: p for name, p in parameters.items() if p.requires_grad}
    if not trainable:
        raise InputError(f"{type(network).__name__} has no parameters that require a gradient, so nothing can be trained")
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
    return copied(network, {id(p): None for p in network.parameters() if p.requires_grad})


def copied(module, memo=None):
    """A deep copy; tensors that a call has left in the module, such as an activation that it keeps, are there without graph.

    memo: as of copy.deepcopy.   Raises InputError with the name of an attribute that cannot be copied.
    """
    try:
        with _Detached():
            return copy.deepcopy(module, memo)
    except Exception:
        for place, part in module.named_modules():
            for name in [name for name in vars(part) if name not in vars(nn.Module())]:
                _check_copied(f"{place}.{name}".lstrip("."), vars(part)[name])
        raise


def _check_copied(name, value):
    try:
        with _Detached():
            copy.deepcopy(value)
    except Exception as error:
        raise InputError(f"the network cannot be copied, for its attribute {name} cannot: {reason(error)}") from None


class _Detached(TorchFunctionMode):
    """torch refuses to copy a tensor with a graph."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return function(*args, **(kwargs or {}))


def left_out(output, weights, *others):
    """What training by `output` leaves out: names of `weights`, {name: tensor}, on which it does not depend, and outside ones.

    These are tensors on which it depends beside weights and others, its inputs for one. Where a part of the graph is yet to
    come, by torch's checkpoint with use_reentrant=True, nothing is told.
    """
    known = {get_gradient_edge(tensor)[:2] for tensor in (*weights.values(), *others) if tensor.requires_grad}
    reached, outside, edges = set(), [], [get_gradient_edge(output)[:2]] if output.requires_grad else []
    while edges:
        edge = edges.pop()
        if edge not in reached:
            reached.add(edge)
            node, _ = edge
            if node.name() == "CheckpointFunctionBackward":
                return []
            if edge not in known:
                edges += [following for following in node.next_functions if following[0] is not None]
                if hasattr(node, "variable"):            # a leaf
                    outside.append(f"a tensor {tuple(node.variable.shape)} from outside")
    return [name for name, w in weights.items() if w.requires_grad and get_gradient_edge(w)[:2] not in reached] + outside


def state_tensors(state):
    """{name: tensor} of a state dict: a module's extra state may be anything."""
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def flatten(parameters):
    """{name: parameter} as one vector (d,), a copy without gradient."""
    return torch.cat([p.detach().reshape(-1) for p in parameters.values()])


def counted_parameters(parameters, network, kl_over):
    """{name: parameter} of those of `network`'s that the KL counts: "all", or those of the "last" layer.

    The last layer is the module with parameters that comes last in registration order.   Raises InputError where all of its
    parameters are deterministic, or one is another layer's, too.
    """
    if kl_over == "all":
        return parameters
    last = [own for _, own in parameters_by_layer(network) if own][-1]
    if last.keys() - dict(network.named_parameters()).keys():
        raise InputError("kl_over='last' cannot count a last layer that shares a weight with another layer")
    counted = {name: p for name, p in parameters.items() if name in last}
    if not counted:
        raise InputError("kl_over='last' counts nothing: the last layer is deterministic")
    return counted
