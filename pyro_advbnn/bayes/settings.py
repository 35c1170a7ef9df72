"""What the settings of a Bayesian classifier may say: names of priors, and stds by number, fan-in or name pattern. No torch."""
import fnmatch
import math
import re
from collections.abc import Mapping

from pyro_advbnn.system.errors import InputError

PRIORS = ("normal", "scale_mixture", "spike_and_slab")
KL_OVER = ("all", "last")
BATCH_STATISTICS = ("mean", "draw")


def per_parameter_std(std, network, argument="prior_std", within=(1e-15, 1e15)):
    """{parameter name: std} for every parameter of `network`.

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
        stds = {name: _first_match(std, name, argument) for name in names}
    elif isinstance(std, str):
        factor = fan_in_factor(std, argument)
        stds = {name: factor * s for name, s in _fan_in_std(network).items()}
    else:
        stds = dict.fromkeys(names, std)
    low, high = within
    for name, value in stds.items():
        if not isinstance(value, int | float) or not low <= value <= high:
            raise InputError(f"{argument} must lie between {low:g} and {high:g}, got {value!r} for {name}")
    return stds


def fan_in_factor(text, argument="prior_std"):
    """The factor of "fan_in", "fan_in/10" or "fan_in*0.1".   Raises InputError for any other text."""
    match = re.fullmatch(r"fan_in(?:([*/])([0-9.]+(?:e-?\d+)?))?", text.replace(" ", ""))
    try:
        operator, number = match.groups()
        factor = 1.0 if operator is None else float(number) if operator == "*" else 1 / float(number)
    except (AttributeError, ValueError, ZeroDivisionError):
        raise InputError(f"{argument} must be a number > 0, fan_in, or a multiple such as fan_in/10, got {text!r}") from None
    return factor


def _first_match(patterns, name, argument):
    for pattern, std in patterns.items():
        if fnmatch.fnmatchcase(name, pattern):
            return std
    raise InputError(f"{argument} has no pattern that matches the parameter {name}")


def _fan_in_std(network):
    stds = {}
    for prefix, module in network.named_modules():
        own = dict(module.named_parameters(prefix, recurse=False))
        matrices = [p for p in own.values() if p.dim() > 1]
        layer_std = math.sqrt(2 / matrices[0][0].numel()) if matrices else 1.0
        for name, p in own.items():
            stds[name] = math.sqrt(2 / p[0].numel()) if p.dim() > 1 else layer_std
    return {name: stds[name] for name, _ in network.named_parameters()}
