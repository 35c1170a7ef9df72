"""What the settings of a Bayesian classifier may say: names of priors, and stds by number, fan-in or name pattern. No torch."""
import fnmatch
import math
import numbers
import re
from collections.abc import Mapping

from pyro_advbnn.system.errors import InputError

Std = float | str | Mapping[str, float]                 # of each weight: see `per_parameter_std`
PRIORS = ("normal", "scale_mixture", "spike_and_slab")
KL_OVER = ("all", "last")
BATCH_STATISTICS = ("mean", "draw")


def per_parameter_std(std, network, argument="prior_std", within=(1e-15, 1e15)):
    """{parameter name: std} for every parameter of `network`, by a mapping for the trainable ones.

    std: a number; "fan_in" = sqrt(2 / fan_in) for weights and the biases of their layer, 1 for the scale and shift of
    normalisation layers (He et al. 2015), or a multiple of it such as "fan_in/10" or "fan_in*0.5"; or a mapping from
    name patterns to numbers, of which the first that matches counts.

    Raises InputError, naming `argument`, for anything else and for stds that are not `within` their range; that of the prior's
    leaves its square and the inverse of that numbers in float32.
    """
    names = [name for name, _ in network.named_parameters()]
    if isinstance(std, Mapping):
        unused = [pattern for pattern in std if not fnmatch.filter(names, pattern)]
        if unused:
            raise InputError(f"{argument}: no parameter matches {unused[0]!r}")
        stds = {name: _first_match(std, name, argument) for name, p in network.named_parameters() if p.requires_grad}
    elif isinstance(std, str):
        factor = fan_in_factor(std, argument)
        stds = {name: factor * s for name, s in _fan_in_std(network).items()}
    else:
        stds = dict.fromkeys(names, std)
    _check_within(stds, within, argument)
    return stds


def _check_within(stds, within, argument):
    low, high = within
    for name, value in stds.items():
        if not isinstance(value, numbers.Real) or not low <= value <= high:
            raise InputError(f"{argument} must lie between {low:g} and {high:g}, got {value!r} for {name}")


def initial_std(std, network, within):
    """{parameter name: the std that the posterior starts with, a number, or a tensor of the parameter's shape}.

    std: as of `per_parameter_std`, or "share/10", a tenth of each weight's absolute value, or another multiple of that, brought
    `within` the range (MOPED, Krishnan et al. 2020, arXiv 1906.05323). A weight counts as no smaller than a tenth of the root
    mean square of all in its layer: one near 0 would start nearly certain, which nothing has told, and its std, which grows by
    a small factor in each step, would take thousands of steps to that of the others.

    Raises InputError as `per_parameter_std`.
    """
    share = share_factor(std)
    if share is None:
        return per_parameter_std(std, network, "init_std", within)
    _check_within({"each weight's share": share}, within, "init_std")
    stds = {}
    for _, own in parameters_by_layer(network):
        sizes = {name: p.detach().float().abs() for name, p in own.items()}
        if sizes:
            mean_square = sum(size.square().sum() for size in sizes.values()) / sum(size.numel() for size in sizes.values())
            stds |= {name: (share * size.clamp(min=mean_square.sqrt() / 10)).clamp(*within) for name, size in sizes.items()}
    return stds


def fan_in_factor(text, argument="prior_std"):
    """The factor of "fan_in", "fan_in/10" or "fan_in*0.1".   Raises InputError for any other text."""
    factor = _multiple("fan_in", text)
    if factor is None:
        share = " (of each weight's size: share/10)" if argument.endswith("init_std") else ""
        auto = "auto, " if argument == "--prior_std" else ""
        raise InputError(f"{argument} must be {auto}a number > 0, fan_in, or a multiple such as fan_in/10{share}, got {text!r}")
    return factor


def share_factor(std):
    """The factor of "share", "share/10" or "share*0.1"; None for anything else."""
    return _multiple("share", std) if isinstance(std, str) else None


def _multiple(unit, text):
    match = re.fullmatch(rf"{unit}(?:([*/])([0-9.]+(?:e-?\d+)?))?", text.replace(" ", ""))
    if match is None:
        return None
    operator, number = match.groups()
    if operator is None:
        return 1.0
    try:
        return 1 / float(number) if operator == "/" else float(number)
    except (ValueError, ZeroDivisionError):              # 1.2.3, or / 0
        return None


def _first_match(patterns, name, argument):
    for pattern, std in patterns.items():
        if fnmatch.fnmatchcase(name, pattern):
            return std
    raise InputError(f"{argument} has no pattern that matches the parameter {name}")


def parameters_by_layer(network):
    """(module, {name: parameter} of its own and of what its parametrizations make its weights of) for every module."""
    for prefix, module in network.named_modules():
        if "parametrizations" not in prefix.split("."):
            own = dict(module.named_parameters(prefix, recurse=False))
            for inner, made_of in getattr(module, "parametrizations", {}).items():
                own |= made_of.named_parameters(f"{prefix}.parametrizations.{inner}".lstrip("."))
            yield module, own


def _fan_in_std(network):
    stds = {}
    for module, own in parameters_by_layer(network):
        matrices = [] if hasattr(module, "normalized_shape") else [p for p in own.values() if p.dim() > 1]     # of LayerNorm
        layer_std = math.sqrt(2 / max(p[0].numel() for p in matrices)) if matrices else 1.0
        for name, p in own.items():
            stds[name] = math.sqrt(2 / p[0].numel()) if matrices and p.dim() > 1 else layer_std
    return {name: stds[name] for name, _ in network.named_parameters()}
