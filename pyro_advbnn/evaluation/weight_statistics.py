"""What the posterior says about single weights: how uncertain they are, which of them matter, what is left without the rest."""
import copy
import math

import numpy as np
import torch

from pyro_advbnn.bayes.bayesian_classifier import LOG_STD_RANGE, BayesianClassifier
from pyro_advbnn.bayes.priors import NormalPrior, has_closed_form
from pyro_advbnn.system.errors import InputError, check_number

NUM_BINS = 81                                            # odd, so that one value alone is inside of a bin
PRUNE_BY = ("signal_to_noise", "std")
_LOG10_RANGE = (-8.0, 8.0)                               # a mean of exactly 0 would be at minus infinity


def log10_signal_to_noise(classifier):
    """log10(|mean| / std) of every weight, a vector (d,), brought into [-8, 8]."""
    mean, log_std = classifier.mean.detach(), classifier.log_std.detach()
    return (mean.abs().log10() - log_std / math.log(10)).clamp(*_LOG10_RANGE)


def by_parameter(classifier, values):
    """{"all": values, parameter name: its part, flat} of a vector (d,) over the weights."""
    shapes = classifier.shapes()
    parts = values.split([shape.numel() for shape in shapes.values()])
    return {"all": values, **dict(zip(shapes, parts, strict=True))}


def module_ranges(classifier):
    """{module: the range (start, stop) of its weights in the vector (d,)} of the modules whose weights the KL counts."""
    found, stop = {}, 0
    first_counted, end_counted = classifier.prior.counted
    for name, shape in classifier.shapes().items():
        start, stop = stop, stop + shape.numel()
        if first_counted <= start < end_counted:
            module = name.rpartition(".")[0] or "network"
            first, _ = found.get(module, (start, stop))
            found[module] = first, stop
    return found


@torch.no_grad()
def module_numbers(classifier, kl_weight):
    """{"snr": number, "snr/MODULE": number, "kl_per_image/MODULE": number} for every MODULE of `module_ranges`.

    snr: the sum of mean^2 over the sum of std^2 of its weights; overall that of which ln(1 + snr) is the mean over all weights
    of their modules', as the KL to a prior of the weights' own size is half of it for each weight. kl_per_image: kl_weight
    times the module's KL, an estimate by one draw where the prior has no closed form.
    """
    ranges = module_ranges(classifier)
    drawn = None if has_closed_form(classifier.prior) else classifier.posterior_distribution().rsample()
    kl = torch.stack([classifier.kl(drawn, counted) for counted in ranges.values()]).double() * kl_weight
    snr = torch.stack([_energy(classifier.mean[start:stop]) / _energy(classifier.log_std[start:stop].exp())
                       for start, stop in ranges.values()])
    sizes = torch.tensor([stop - start for start, stop in ranges.values()], dtype=torch.float64, device=snr.device)
    overall = torch.expm1((sizes @ snr.log1p()) / sizes.sum())
    return {"snr": overall.item(), **{f"snr/{name}": value for name, value in zip(ranges, snr.tolist(), strict=True)},
            **{f"kl_per_image/{name}": value for name, value in zip(ranges, kl.tolist(), strict=True)}}


def _energy(values):
    return values.square().sum(dtype=torch.float64)


def prior_log_std(classifier):
    """log of the prior's std of every weight, a vector (d,), or None where the prior is not normal."""
    prior = classifier.prior
    if not isinstance(prior, NormalPrior):
        return None
    log_std = torch.empty(len(classifier.mean))
    for start, stop, std in prior.pieces:
        log_std[start:stop] = math.log(std)
    return log_std


def histogram(values):
    """[(left, right, share of the values), ...] of a vector of at least one value, over all its range."""
    values = values.detach().double().cpu()
    low, high = values.min().item() - 1e-3, values.max().item() + 1e-3
    counts, edges = torch.histogram(values, NUM_BINS, range=(low, high))
    shares, edges = (counts / len(values)).tolist(), edges.tolist()
    return list(zip(edges, edges[1:], shares, strict=False))


def density_rows(classifier):
    """Rows of quantity, layer, left, right, share for the table "density" (Fig. 4), over all weights and by layer.

    The quantities are log_std (natural logarithm), log10_signal_to_noise, and prior_log_std: one row with left == right
    for each std of the prior, absent where the prior is not normal.
    """
    rows = []
    quantities = {"log_std": classifier.log_std.detach(), "log10_signal_to_noise": log10_signal_to_noise(classifier)}
    for quantity, values in quantities.items():
        for layer, part in by_parameter(classifier, values).items():
            rows += [{"quantity": quantity, "layer": layer, "left": left, "right": right, "share": share}
                     for left, right, share in histogram(part)]
    prior = prior_log_std(classifier)
    for layer, part in ({} if prior is None else by_parameter(classifier, prior)).items():
        values, counts = part.unique(return_counts=True)
        rows += [{"quantity": "prior_log_std", "layer": layer, "left": value, "right": value, "share": count / len(part)}
                 for value, count in zip(values.tolist(), counts.tolist(), strict=True)]
    return rows


def layer_rows(classifier):
    """Rows for the table "layers": number, log std (natural) and signal-to-noise of the weights of each parameter."""
    log_std = by_parameter(classifier, classifier.log_std.detach())
    ratio, of_prior, rows = by_parameter(classifier, log10_signal_to_noise(classifier)), prior_log_std(classifier), []
    prior = None if of_prior is None else by_parameter(classifier, of_prior)
    for layer, values in log_std.items():
        low, middle, high = _quantiles(values, (0.05, 0.5, 0.95))
        rows.append({"layer": layer, "num_weights": len(values), "log_std_mean": values.double().mean().item(),
                     "log_std_q05": low, "log_std_median": middle, "log_std_q95": high,
                     "prior_log_std": prior[layer].double().mean().item() if prior else None,
                     "log10_signal_to_noise_median": _quantiles(ratio[layer], (0.5,))[0]})
    return rows


@torch.no_grad()
def prune(classifier: BayesianClassifier, fraction: float, by: str = "signal_to_noise") -> BayesianClassifier:
    """A copy of a BayesianClassifier without the given fraction of its weights (section 3.3).

    The weights that go are those of the lowest |mean| / std (Blundell et al. 2015), or by="std" of the largest std,
    counted over the whole network. fraction lies in [0, 1]. Their mean is then exactly 0 and their std the least allowed, 1e-8;
    pruned again, they go first.

    Raises InputError for other classifiers and for settings out of range.
    """
    if not isinstance(classifier, BayesianClassifier):
        raise InputError("only a Bayesian classifier knows which of its weights are uncertain")
    check_number("fraction", fraction, high=1)
    if by not in PRUNE_BY:
        raise InputError(f"by must be one of {', '.join(PRUNE_BY)}, got {by!r}")
    worth = log10_signal_to_noise(classifier) if by == "signal_to_noise" else -classifier.log_std.detach()
    worth[(classifier.mean == 0) & (classifier.log_std <= LOG_STD_RANGE[0])] = -math.inf
    gone = worth.argsort(stable=True)[:round(fraction * len(worth))]
    pruned = copy.deepcopy(classifier)
    pruned.mean[gone] = 0.0
    pruned.log_std[gone] = LOG_STD_RANGE[0]
    return pruned


def _quantiles(values, shares):
    return np.quantile(values.double().cpu().numpy(), shares, method="nearest").tolist()
