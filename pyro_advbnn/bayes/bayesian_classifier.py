"""The Bayesian classifier: any network with a normal posterior over its weights, drawn anew in every call."""
import copy
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn
from torch.distributions import kl_divergence
from torch.func import functional_call

from pyro_advbnn.bayes.batch_norm import norms_in_training, processes_joined, statistics_of
from pyro_advbnn.bayes.classifier import Classifier, categorical, site_scales
from pyro_advbnn.bayes.guide import MeanFieldNormal
from pyro_advbnn.bayes.kernels.layout import as_convolutions_like
from pyro_advbnn.bayes.kernels.vectors import in_transform, unflatten
from pyro_advbnn.bayes.parameters import (
    counted_parameters,
    flatten,
    matching_parameters,
    parameter_aliases,
    shared_modules,
    skeleton,
    trainable_parameters,
)
from pyro_advbnn.bayes.priors import ElementwisePrior, NormalPrior, has_closed_form, named_prior
from pyro_advbnn.bayes.settings import BATCH_STATISTICS, KL_OVER, Std, initial_std, per_parameter_std
from pyro_advbnn.system import distributed
from pyro_advbnn.system.errors import InputError

STD_RANGE = (1e-8, 10.0)
LOG_STD_RANGE = tuple(map(math.log, STD_RANGE))
_HUGE_STD = 9.99                     # a std that starts this close to the bound may reach it without diverging


class BayesianClassifier(Classifier):
    """`network` with a factorised normal posterior over all its weights as one vector of length d (Eq. 5).

    Model: w ~ prior, y ~ Categorical(logits(x; w)). Guide: w ~ N(mean, exp(log_std)^2). The trainable tensors are mean
    (d,), log_std (d,) and, where asked for, deterministic (k,). mean starts at the network's own parameters; the network
    is left as it is and may be wrapped again. Parameters that require no gradient stay fixed.

    prior_std, init_std: a number, "fan_in" or a multiple of it, or a mapping from parameter name patterns to numbers
    (`settings.per_parameter_std`); init_std, the std that the posterior starts with, lies in [1e-8, 10]; it may also be
    "share/10", a tenth of each weight's size in the network, which then should be a trained one (`settings.initial_std`).
    prior: "normal", "scale_mixture" or "spike_and_slab" (`priors.named_prior`, prior_std a number), or a Pyro
    distribution over one weight instead of N(0, prior_std^2).
    deterministic: name patterns ("*.bias") of parameters that are trained without a distribution.
    kl_over: "all", or "last" for the KL of the last layer alone, as in the authors' code.
    batch_statistics: those by which BatchNorm normalises a batch in training mode: "mean", of the mean network on an eighth of
    the batch (at least 64 images, all of a batch below 128), or "draw", of the drawn network, as in the authors' code.
    Predictions and attacks go by running averages: with "draw" these are another function, the more so the wider the
    posterior (docs/method.md).
    likelihood, class_weights: as of `Classifier`.

    Raises InputError for settings out of range, a pattern that matches nothing, and networks that cannot be Bayesian
    (`parameters.trainable_parameters`, recurrent layers, and parameters of several dtypes or on several devices).
    """

    def __init__(self, network: nn.Module, prior_std: Std = 0.05, init_std: Std = 0.05, *,
                 prior: str | dist.Distribution = "normal", deterministic: str | Iterable[str] = (), kl_over: str = "all",
                 batch_statistics: str = "mean", likelihood: Callable = categorical,
                 class_weights: Sequence[float] | torch.Tensor | None = None) -> None:
        deterministic = [deterministic] if isinstance(deterministic, str) else list(deterministic)
        if isinstance(network, Classifier):
            raise InputError("the network is a classifier already; wrap classifier.mean_network() or the plain network")
        trainable = trainable_parameters(network)
        if any(isinstance(module, nn.RNNBase) for module in network.modules()):
            raise InputError("recurrent layers keep a second list of their weights, which a draw cannot replace")
        if len({(p.dtype, p.device) for p in network.parameters()}) > 1:
            raise InputError("the parameters must share one dtype and one device")
        if batch_statistics not in BATCH_STATISTICS:
            raise InputError(f"batch_statistics must be one of {', '.join(BATCH_STATISTICS)}, got {batch_statistics!r}")
        fixed = matching_parameters(deterministic, trainable)
        random = {name: p for name, p in trainable.items() if name not in fixed}
        if not random:
            raise InputError("deterministic leaves no parameter to be Bayesian")
        super().__init__(skeleton(network), likelihood=likelihood, class_weights=class_weights)
        self._settings = {"kind": "bayesian", "prior_std": prior_std, "init_std": init_std,
                          "prior": prior if isinstance(prior, str) else repr(prior),
                          "deterministic": deterministic, "kl_over": kl_over, "batch_statistics": batch_statistics}
        self._aliases = parameter_aliases(network)
        self._shapes = {name: p.shape for name, p in random.items()}
        self._fixed_shapes = {name: p.shape for name, p in fixed.items()}
        self.mean = nn.Parameter(flatten(random))
        stds = initial_std(init_std, network, STD_RANGE)
        self.log_std = nn.Parameter(flatten({name: _log_like(p, stds[name]) for name, p in random.items()}))
        self.deterministic = nn.Parameter(flatten(fixed)) if fixed else None
        self.prior = self._prior(network, prior_std, prior, self._counted(network, kl_over))
        prior_stds = per_parameter_std(prior_std, network, within=(0, math.inf))
        self._may_explode = max(self.log_std.detach().max().exp().item(), *prior_stds.values()) < _HUGE_STD
        self._answers: dict = {}                         # of norms, in `statistics_of`
        self._shared = shared_modules(network)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) under fresh weights; a draw costs one normal and one multiply-add per weight.

        Where nothing requires a gradient, exp(log_std) is kept from call to call: change it in place, not through .data, of
        which torch tells nobody, or call eval() or train() afterwards.
        """
        x, by_name = as_convolutions_like(x, self.network), self._by_name(self.posterior_distribution().rsample())
        tensors = self._by_alias(by_name)
        if any(tensor.requires_grad for tensor in tensors.values()) or not self._may_be_lean(x, tensors):
            return self._logits(by_name, x)
        calls = self._lean_calls
        return self._checked(calls(calls.weights(tensors, owned=self._shapes), x), x)

    def posterior_distribution(self) -> MeanFieldNormal:
        """The guide's distribution over the flat vector (d,)."""
        return MeanFieldNormal(self.mean, self.log_std, counted=self.prior.counted, std=self._std_while_frozen())

    def shapes(self) -> dict[str, torch.Size]:
        """{parameter name: shape} in the order in which mean and log_std hold them."""
        return dict(self._shapes)

    def fixed_shapes(self) -> dict[str, torch.Size]:
        """The same of `deterministic`."""
        return dict(self._fixed_shapes)

    def posterior(self) -> dict[str, dist.Normal]:
        """{parameter name: Normal}, shapes as in the network: a copy, which a training that goes on does not change."""
        means, stds = (unflatten(vector, self._shapes.values())
                       for vector in (self.mean.detach().clone(), self.log_std.detach().exp()))
        return {name: dist.Normal(mean, std, validate_args=False)
                for name, mean, std in zip(self._shapes, means, stds, strict=True)}

    def kl(self, weights: torch.Tensor | None = None, counted: tuple[int, int] | None = None) -> torch.Tensor:
        """KL(posterior || prior) over the counted weights, a scalar (Eq. 6).

        Without a closed form the estimate of one draw, `weights` (d,) or a new one (Section 2 of the paper, after Eq. 6).
        counted: another range (start, stop) of the vector (d,) than the prior's.
        """
        q, prior = self.posterior_distribution(), self.prior
        if counted is not None:
            prior = copy.copy(prior)
            prior.counted = q.counted = counted
        if has_closed_form(prior):
            return kl_divergence(q, prior)
        weights = q.rsample() if weights is None else weights
        return q.log_prob(weights) - prior.log_prob(weights)

    def kl_by_log_std(self) -> torch.Tensor:
        """d kl() / d log_std (d,); where it has no closed form, that of a draw of its own."""
        if isinstance(self.prior, NormalPrior):
            return self.prior.kl_by_log_std(self.log_std.detach())
        with torch.enable_grad():
            slope, = torch.autograd.grad(self.kl(), self.log_std)
        return distributed.sum_(slope) / distributed.world_size()        # each process has drawn its own

    def weights_and_kl(self) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        q = self.posterior_distribution()
        if isinstance(self.prior, NormalPrior):
            weights, kl = q.rsample_with_kl(self.prior)
        else:
            weights = q.rsample()
            kl = self.kl(weights)
        return {"weights": weights}, kl

    def parameter_groups(self) -> list[dict]:
        others = [p for p in self.parameters() if p is not self.log_std]     # decay would pull every std towards 1
        return [{"params": others}, {"params": [self.log_std], "weight_decay": 0.0}]

    def weight_tensors(self, of: Callable) -> list[torch.Tensor]:
        vectors = [(self.mean, self._shapes)] + ([(self.deterministic, self._fixed_shapes)] if self._fixed_shapes else [])
        return [part for vector, shapes in vectors for part in unflatten(of(vector), shapes.values()) if part.dim() > 1]

    @torch.no_grad()
    def constrain_(self) -> None:
        """Clamp log_std to [log 1e-8, log 10], after an optimizer step."""
        self.log_std.clamp_(*LOG_STD_RANGE)

    def exploded(self) -> torch.Tensor | None:
        """Whether a weight's std is at its upper bound of 10, or NaN; None where init_std or prior_std put it there."""
        return ~(self.log_std.detach().max() < LOG_STD_RANGE[1]) if self._may_explode else None

    @torch.no_grad()
    def draw(self) -> nn.Module:
        return self._with_weights(super().draw(), self.posterior_distribution().rsample())

    @torch.no_grad()
    def mean_network(self) -> nn.Module:
        return self._with_weights(super().mean_network(), self.mean)

    def _with_weights(self, network, weights):
        parameters = {name: nn.Parameter(w.clone()) for name, w in self._by_name(weights).items()}
        for name, aliases in self._aliases.items():
            for alias in aliases:
                module, _, leaf = alias.rpartition(".")
                place = network.get_submodule(module)
                vars(place).pop(leaf, None)              # a copied GraphModule has None as a plain attribute
                place.register_parameter(leaf, parameters[name])
        return network

    def settings(self) -> dict:
        kl = "closed form" if has_closed_form(self.prior) else "Monte-Carlo estimate"
        return {**super().settings(), **self._settings, "kl": kl}

    def extra_repr(self) -> str:
        return f"weights={len(self.mean)}, prior_std={self._settings['prior_std']}, kl_over={self._settings['kl_over']}"

    def unregistered_model(self, x: torch.Tensor, y: torch.Tensor | None, kl_weight: float | None = None,
                           num_data: int | None = None) -> torch.Tensor:
        of_weights, of_likelihood = site_scales(len(x), kl_weight, num_data)
        with _scaled(of_weights):
            weights = pyro.sample("weights", self.prior)
        if weights.dim() > 1:
            raise InputError("one draw of the weights in a call: Trace_ELBO(vectorize_particles=False), "
                             "Predictive(parallel=False)")
        by_name = self._by_name(weights)
        return self._observe(self._logits(by_name, as_convolutions_like(x, self.network)), x, y, of_likelihood, by_name)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None, kl_weight: float | None = None, *,
              num_data: int | None = None) -> dict[str, torch.Tensor]:
        with _scaled(site_scales(len(x), kl_weight, num_data)[0]):
            return {"weights": pyro.sample("weights", self.posterior_distribution())}

    def _logits(self, by_name, x):
        norms = norms_in_training(self.network) if self._settings["batch_statistics"] == "mean" and not in_transform() else ()
        if not norms:
            return self._checked(self._call(by_name, x), x)
        stride = statistics_stride(len(x) * processes_joined(norms))
        with statistics_of(norms, lambda: self._call(self._by_name(self.mean), x[::stride].clone()), self._answers):
            return self._checked(self._call(by_name, x), x)

    def _call(self, by_name, x):
        return functional_call(self.network, self._by_alias(by_name), (x,), tie_weights=False)

    def _by_alias(self, by_name):
        return {alias: by_name[name] for name, aliases in self._aliases.items() for alias in aliases}

    def _by_name(self, weights):
        """{parameter name: view} of weights (d,) and of the deterministic ones."""
        views = unflatten(weights, self._shapes.values())
        by_name = dict(zip(self._shapes, views, strict=True))
        if self.deterministic is not None:
            fixed = unflatten(self.deterministic, self._fixed_shapes.values())
            by_name |= zip(self._fixed_shapes, fixed, strict=True)
        return by_name

    def _std_while_frozen(self):
        """exp(log_std), kept while log_std requires no gradient, as in an attack, from one train() or eval() on."""
        if self.log_std.requires_grad or in_transform():
            self._kept = None
            return None
        return self._kept_while([self.log_std], self.log_std.exp)

    def _pieces(self, value_of):
        """[(start, stop, value), ...] over the flat vector, neighbours of equal value joined; value_of: name -> value."""
        pieces, start = [], 0
        for value, names in itertools.groupby(self._shapes, value_of):
            stop = start + sum(self._shapes[name].numel() for name in names)
            pieces.append((start, stop, value))
            start = stop
        return pieces

    def _counted(self, network, kl_over):
        """The range (start, stop) of weights that the KL counts."""
        if kl_over not in KL_OVER:
            raise InputError(f"kl_over must be one of {', '.join(KL_OVER)}, got {kl_over!r}")
        names = counted_parameters(self._shapes, network, kl_over)
        return next((start, stop) for start, stop, counts in self._pieces(names.__contains__) if counts)

    def _prior(self, network, prior_std, prior, counted):
        if prior is None or isinstance(prior, str):
            prior = named_prior(prior, prior_std)
        if prior is not None:
            return ElementwisePrior(prior, counted, like=self.mean)
        return NormalPrior(self._pieces(per_parameter_std(prior_std, network).get), counted, like=self.mean)


def _log_like(p, std):
    """log of std, a number or a tensor like p, in the shape of p."""
    return std.log().to(p.dtype) if isinstance(std, torch.Tensor) else torch.full_like(p, math.log(std))


def statistics_stride(num_images):
    """One image in how many of a batch tells the mean network's statistics: 8, or fewer where 64 images would not be left."""
    return max(1, min(8, num_images // 64))


def _scaled(scale):
    """Scale the latent site, in model and guide alike; poutine.scale refuses 0, a mask does the same there."""
    return poutine.scale(scale=scale) if scale > 0 else poutine.mask(mask=False)
