"""Cheaper calls of a network for which no weight needs a gradient, as in an attack and in a prediction.

A BatchNorm that keeps still is an affine map of each channel: folded into the convolution before it, it costs one pass over
that layer's weights instead of several over its activations. Under autocast the weights are brought to its dtype once for
all calls that share them. 2x2 max-poolings are done by a faster loop, and the ReLU before one with it.

A forward may do what its modules do not tell. So both ways of calling are compared, once, and only where they agree is the
cheaper one taken.
"""
import warnings
from contextlib import contextmanager

import torch
from torch import fx, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from pyro_advbnn.bayes.kernels import max_pool
from pyro_advbnn.bayes.parameters import copied
from pyro_advbnn.bayes.rse import add_noise_to_input
from pyro_advbnn.system.errors import Note
from pyro_advbnn.system.memory import is_out_of_memory
from pyro_advbnn.system.random_streams import undisturbed

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CAST = (*_CONVOLUTIONS, nn.Linear)                      # whose weights autocast brings to its dtype
_PLAIN = (bool, int, float, str, type(None))


class LeanCalls:
    """Calls of a network with weights given by name, BatchNorm folded where it keeps still.

    network: the structure, whose parameters and modes stay as they are. shared: names of modules that share weights; they and
    modules with hooks or a forward of their own are called as they are, and of networks that torch.fx cannot trace all but
    the poolings.
    """

    def __init__(self, network, shared):
        self.network, self._traced, self._left_by_calls = network, structure(network), set()
        self._cast = [f"{name}.weight" for name, module in network.named_modules() if type(module) in _CAST]
        pairs = [pair for pair in fusible(network) if not set(shared) & set(pair)]
        before = {second: first for first, second in pairs}
        self._poolings = {name: before.get(name) for name, module in network.named_modules() if max_pool.is_2x2(module)}
        self._pairs = [pair for pair in pairs if pair[1] not in self._poolings]
        self._agree = {}                                 # by the dtype of autocast, and in inference mode or not

    def are_up_to_date(self):
        """Whether the network still is what was traced, but for what its own calls change."""
        return _changed(self._traced, structure(self.network)) <= self._left_by_calls

    def __call__(self, weights, x):
        """What the network returns for x with what `weights` made."""
        tensors, folded = weights
        with answering(dict.fromkeys(folded, _same) | self._pooled()):
            return self._full_call(tensors, x)

    def _pooled(self):
        """What poolings, and the ReLUs before them, are to answer: these only in eval mode, in which the network was traced."""
        answers, in_training = {}, any(module.training for module in self.network.modules())
        for pooling, relu in self._poolings.items():
            pooling, relu = self.network.get_submodule(pooling), relu and self.network.get_submodule(relu)
            if not _is_plain(pooling):
                continue
            if relu and _is_plain(relu) and not in_training:
                answers |= {relu: _same, pooling: max_pool.max_pool_2x2_of_relu}
            else:
                answers[pooling] = max_pool.max_pool_2x2
        return answers

    def _full_call(self, tensors, x):
        return functional_call(self.network, tensors, (x,), tie_weights=False)

    def agree(self, x, tensors):
        """Whether calls answer as the network does: found out on the first images x in eval mode, and said where not.

        tensors: parameters by name, None for the network's own. torch's global generators stand where they stood.
        """
        dtype = autocast_dtype(x.device)
        if not (self._pairs or self._poolings or dtype and self._cast):
            return True
        key = dtype, torch.is_inference_mode_enabled()
        if key not in self._agree and not any(module.training for module in self.network.modules()):
            before = structure(self.network)
            self._agree[key] = self._compare(x, dict(self.network.named_parameters()) if tensors is None else tensors)
            self._left_by_calls |= _changed(before, structure(self.network))
        return self._agree.get(key, False)

    @torch.no_grad()
    def _compare(self, x, tensors):
        for (_, name), _, norm in self.still_pairs():
            tensors = tensors | _moved(name, norm)
        with undisturbed():
            full = tree_leaves(self._full_call(tensors, x.clone()))        # a first layer may work in place
        try:
            with undisturbed():
                agree = all(map(_is_close, tree_leaves(self(self.weights(tensors), x.clone())), full))
        except RuntimeError as error:                    # a part that leaves autocast meets weights of its dtype
            if autocast_dtype(x.device) is None or is_out_of_memory(error):
                raise
            agree = False
        agree = agree and (torch.is_inference_mode_enabled() or not self._calls_again(tensors, x[:2]))
        if not agree:
            warnings.warn("called more cheaply, with BatchNorm folded into convolutions, weights in autocast's dtype, or "
                          "another loop for 2x2 max-pooling and the ReLU before it, the network answers otherwise, so its "
                          "forward does what its modules do not tell, or its gradient calls modules anew, as by activation "
                          "checkpointing: attacks and predictions call it as it is, which takes longer", Note, stacklevel=2)
        return agree

    @torch.enable_grad()
    def _calls_again(self, tensors, x):
        """Whether the gradient calls modules anew, as activation checkpointing does: by then they would answer otherwise."""
        called, x = [], x.detach().clone().requires_grad_()
        hook = nn.modules.module.register_module_forward_pre_hook(lambda *_: called.append(True))
        try:
            with undisturbed(), saved_tensors_hooks(_same, _same):       # not by a checkpoint that the whole call is in
                answers = [t.sum() for t in tree_leaves(self._full_call(tensors, x * 1)) if getattr(t, "requires_grad", False)]
                called.clear()
                torch.autograd.grad(answers, x, allow_unused=True)
        except Exception as error:                       # an operation without a gradient: a prediction needs none
            if is_out_of_memory(error):
                raise
        finally:
            hook.remove()
        return bool(called)

    def weights(self, tensors, owned=()):
        """(tensors to call with, the BatchNorms that are in them) from parameters by name.

        owned: the names of parameters whose memory may be written to.
        """
        tensors, folded = dict(tensors), self.still_pairs()
        with torch.no_grad():
            for (convolution, norm), *modules in folded:
                tensors |= _folded(tensors, convolution, norm, *modules, owned)
            return self._autocast(tensors), [norm for *_, norm in folded]

    def still_pairs(self):
        """[((names), convolution, BatchNorm), ...] that are folded now: the norm keeps still, and neither has got hooks."""
        pairs = [(pair, *map(self.network.get_submodule, pair)) for pair in self._pairs]
        return [(pair, convolution, norm) for pair, convolution, norm in pairs
                if not norm.training and norm.running_mean is not None and _is_plain(convolution) and _is_plain(norm)]

    def _autocast(self, tensors):
        names = [name for name in self._cast if name in tensors and tensors[name].dtype == torch.float32]
        dtype = autocast_dtype(tensors[names[0]].device) if names else None
        return tensors if dtype is None else tensors | {name: tensors[name].to(dtype) for name in names}


def _moved(name, norm):
    """Other running statistics by name: with a new BatchNorm's, 0 and 1, a fold changes nothing and so cannot be seen wrong.

    They amplify somewhat, as a new network makes little of its images.
    """
    var = norm.running_var * torch.linspace(0.1, 1, len(norm.running_var)).to(norm.running_var)
    shift = torch.linspace(-0.1, 0.1, len(var)).to(var)
    return {f"{name}.running_mean": norm.running_mean + shift * norm.running_var.sqrt(), f"{name}.running_var": var}


def _folded(tensors, convolution, norm, convolution_module, norm_module, owned):
    """The weight and bias with which the convolution gives what the BatchNorm after it would."""

    def tensor(name, module, leaf):
        return tensors.get(f"{name}.{leaf}", getattr(module, leaf))

    weight, bias = (tensor(convolution, convolution_module, leaf) for leaf in ("weight", "bias"))
    gamma, beta, mean, var = (tensor(norm, norm_module, leaf) for leaf in ("weight", "bias", "running_mean", "running_var"))
    scale = (var + norm_module.eps).rsqrt()
    scale = scale if gamma is None else scale * gamma
    shift = -mean if bias is None else bias - mean
    name, per_channel = f"{convolution}.weight", scale.view(-1, *[1] * (weight.dim() - 1))
    return {name: weight.mul_(per_channel) if name in owned else weight * per_channel,
            f"{convolution}.bias": shift * scale if beta is None else torch.addcmul(beta, shift, scale)}


def _is_close(lean, full):
    """Whether two answers differ by rounding alone, as a share of the largest number; NaN in both is no difference.

    From VGG16 to DenseNet121 folding changes answers by up to 7e-6 in float32 and 6 % in bfloat16, where a fold that is wrong
    changes them by its own size. A GPU may take TF32 for float32.
    """
    if not isinstance(full, torch.Tensor) or not full.is_floating_point() or not full.numel():
        return True
    dtype = autocast_dtype(full.device) or full.dtype
    unit = 2**-10 if full.device.type == "cuda" and dtype == torch.float32 else torch.finfo(dtype).eps
    largest = full.nan_to_num(0, 0, 0).abs().amax().item()
    return torch.allclose(lean.double(), full.double(), rtol=0, atol=max(1e-3, 32 * unit) * largest, equal_nan=True)


def autocast_dtype(device):
    """The dtype that autocast computes in on this kind of device, None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def structure(network):
    """{what a forward may choose its way by: what it is}: modules under all of their names, and plain attributes of theirs."""
    found = {}
    for name, module in network.named_modules(remove_duplicate=False):
        found[name] = module, type(module)
        found |= {(name, key): value for key, value in vars(module).items() if type(value) in _PLAIN and key != "training"}
    return found


def _changed(before, after):
    return {key for key, _ in before.items() ^ after.items()}


def fusible(network):
    """[(name of a module, name of the one that alone reads its output), ...], neither of which does anything else.

    Convolutions with their BatchNorms, whose weight and bias are read in the one call alone, and ReLUs with their 2x2
    max-poolings. [] where torch.fx cannot trace the network, or may trace something else, as a module has a forward of its own.
    """
    modules, tensors = dict(network.named_modules()), {id(t): t for t in (*network.parameters(), *network.buffers())}
    if any("forward" in vars(module) for module in modules.values()):
        return []
    try:
        with warnings.catch_warnings(action="ignore"), undisturbed():
            structure = copied(network, tensors).eval()  # tensors are looked at, so need no copies
            for module in structure.modules():
                if type(module) in _CONVOLUTIONS:        # a skeleton has None there, and None leaves no trace
                    module.weight, module.bias = (nn.Parameter(torch.empty(()), requires_grad=False) for _ in range(2))
            nodes = fx.Tracer().trace(structure).nodes
    except Exception:                                    # control flow that depends on the images, for one
        return []
    calls, reads = ([node.target for node in nodes if node.op == op] for op in ("call_module", "get_attr"))

    def belong_together(first, second):
        one, other = (modules[node.target] for node in (first, second))
        if type(one) is nn.ReLU:                         # whose input, if changed in place, nobody else may read
            source = _alone_reads_a_module(first) and type(modules[first.args[0].target])
            together = first.target.rpartition(".")[0] == second.target.rpartition(".")[0]     # no container's hook between
            return max_pool.is_2x2(other) and source in (*_CONVOLUTIONS, *_BATCH_NORMS) and together
        return (type(one) in _CONVOLUTIONS and type(other) in _BATCH_NORMS
                and not {f"{first.target}.weight", f"{first.target}.bias"} & {*reads})

    pairs = [(node.args[0], node) for node in nodes if _alone_reads_a_module(node)]
    return [(first.target, second.target) for first, second in pairs
            if belong_together(first, second) and calls.count(first.target) == calls.count(second.target) == 1]


def _alone_reads_a_module(node):
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        return False
    return node.args[0].op == "call_module" and len(node.args[0].users) == 1


def _is_plain(module):
    """Whether a call of it is what its class does: it has neither hooks, but for RSE's noise, nor a forward of its own."""
    hooks = {*module._forward_hooks.values(), *module._forward_pre_hooks.values()} - {add_noise_to_input}
    return not (hooks or module._backward_hooks or module._backward_pre_hooks or "forward" in vars(module))


@contextmanager
def answering(forwards):
    """Modules answer as these functions do, {module: function}, inside; all else of them is as it was, for forwards to read."""
    for module, forward in forwards.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)


def _same(input):
    return input
