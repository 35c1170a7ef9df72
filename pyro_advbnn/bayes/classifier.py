"""Classifiers: modules that map images to logits, with a Pyro model and guide behind them.

A deterministic (or noisy) network is the case of an empty guide, so one objective serves all defences; see
`bayesian_classifier` for the other case.
"""
import copy
import functools
import itertools
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from pyro_advbnn.bayes.averaging import AveragedClassifier
from pyro_advbnn.bayes.kernels.frozen_calls import LeanCalls, autocast_dtype
from pyro_advbnn.bayes.kernels.layout import as_convolutions_like
from pyro_advbnn.bayes.kernels.vectors import in_transform
from pyro_advbnn.bayes.parameters import check_network, copied, left_out, shared_modules
from pyro_advbnn.bayes.rse import noise_before, noises, silent_layers
from pyro_advbnn.system.errors import InputError, Note, check_number

_CALLING = threading.RLock()


def alone(method):
    """A method of classifiers for one thread at a time: calls put their weights into modules that all of them share."""
    @functools.wraps(method)
    def call(*args, **kwargs):
        if torch.compiler.is_compiling():
            return method(*args, **kwargs)
        with _CALLING:
            return method(*args, **kwargs)
    return call


def categorical(logits):
    """The likelihood of class numbers: logits (B, classes) -> a distribution of batch shape (B,)."""
    return dist.Categorical(logits=logits.float())


class Classifier(nn.Module):
    """A deterministic or noisy network: (B, C, H, W) in [0, 1] -> logits (B, classes).

    network: an nn.Module, which is trained itself; `build_classifier` takes a copy.
    likelihood: a function from the network's output, one tensor, to a Pyro distribution of batch shape (B,). With another
    one than `categorical` a call returns what the network does: `lambda out: dist.Normal(out[:, 0], 0.1)` is a regression.
    class_weights: (classes,) numbers > 0, factors of the log-likelihood by class. With a mean of 1 over the training set
    kl_weight keeps its meaning. Predictions and attacks are not weighted.

    Raises InputError for class_weights that are none, and for networks that no classifier can take, such as lazy ones.
    """

    class_weights: torch.Tensor | None
    _numbers = itertools.count()

    def __init__(self, network: nn.Module, *, likelihood: Callable = categorical,
                 class_weights: Sequence[float] | torch.Tensor | None = None) -> None:
        check_network(network)
        super().__init__()
        self.network, self.likelihood = network, likelihood
        self.register_buffer("class_weights", _as_weights(class_weights), persistent=False)
        self._pyro_name = f"classifier{next(self._numbers)}"
        self._shared = shared_modules(network)
        self._kept = None
        self.unreached = None                            # by training, as the first step found: names of weights, shapes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) under fresh randomness.

        Where no weight requires a gradient, folded weights are kept from call to call: change weights in place, not through
        .data or by a fused optimizer, of which torch tells nobody, or call eval() afterwards, as attacks and predictions do.
        Call it, too, after replacing a layer, or changing a bool, number or text by which a forward chooses its way.
        """
        x = as_convolutions_like(x, self.network)
        if any(p.requires_grad for p in self.parameters()):
            self._kept = None                            # as fused optimizers change weights without a new _version
        elif self._may_be_lean(x):
            return self._checked(self._lean_calls(self._kept_weights(x), x), x)
        return self._checked(self.network(x), x)

    @alone
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)

    @alone
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return super().state_dict(*args, **kwargs)

    def _may_be_lean(self, x, tensors=None):
        """Whether lean calls may answer where no weight requires a gradient: in eval mode, and not under torch.func."""
        return not (self.network.training or in_transform()) and self._lean_calls.agree(x, tensors)

    @functools.cached_property
    def _lean_calls(self):
        return LeanCalls(self.network, self._shared)

    def _kept_weights(self, x):
        """The weights of lean calls, made anew where a weight, a buffer, autocast's dtype or what may be folded has changed."""
        parameters = dict(self.network.named_parameters())
        return self._kept_while([*parameters.values(), *self.network.buffers()], lambda: self._lean_calls.weights(parameters),
                                self._lean_calls.still_pairs(), autocast_dtype(x.device))

    def _kept_while(self, tensors, make, *others):
        """make(), kept from call to call while neither the tensors nor `others` change, until train() or eval()."""
        versions = [object() if t.is_inference() else t._version for t in tensors]     # nothing tells of those: never alike
        state, kept = ([(id(t), t.data_ptr()) for t in tensors], versions, others), self._kept
        if kept is None or kept[0] != state:
            with torch.inference_mode(False):            # a later call may take gradients with it
                self._kept = kept = state, make(), tensors           # held, or others may come to lie where they did
        return kept[1]

    @alone
    def train(self, mode: bool = True) -> "Classifier":
        self._kept = None
        if not mode and "_lean_calls" in vars(self) and not self._lean_calls.are_up_to_date():
            del self._lean_calls
        return super().train(mode)

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None, kl_weight: float | None = None, *,
              num_data: int | None = None) -> torch.Tensor:
        """The Pyro model: log p(w) + log p(y | x, w), the batch standing for num_data images; returns the logits.

        For `SVI`, `NUTS` and `Predictive`; for `NUTS` and guides of your own call eval() first: in training BatchNorm goes by
        the statistics at this classifier's own mean (`batch_statistics`), whatever w is. x (B, C, H, W). y: (B,), or None,
        which samples it; with y Pyro's `Predictive` gives back the labels that went in. num_data: N, by default B, the batch
        being the whole data set. kl_weight: alpha / N as in `negative_elbo`, an argument of `SVI.step(x, y, kl_weight)` with
        `TraceMeanField_ELBO`, for Eq. (10): it scales the density of the weights, in the guide too, and 1 / B the likelihood.

        Raises InputError where one of the two is out of range or both are given, for several draws of the weights at once
        (vectorised particles), for a likelihood of another batch shape than (B,), and where the network does not return logits
        (B, classes).
        """
        pyro.module(self._pyro_name, self)
        return self.unregistered_model(x, y, kl_weight, num_data)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None, kl_weight: float | None = None, *,
              num_data: int | None = None) -> dict[str, torch.Tensor]:
        """The Pyro guide with model's signature; {site: value}."""
        return {}

    def kl(self) -> torch.Tensor:
        """KL(posterior || prior) over the counted weights, a scalar (Eq. 6); 0 without a posterior."""
        return torch.zeros(())

    def parameter_groups(self) -> list[dict]:
        """All parameters for an optimizer of torch's, in groups: what weight decay must not pull at has a group without."""
        return [{"params": list(self.parameters())}]

    def weight_tensors(self, of: Callable) -> list[torch.Tensor]:
        """The weight tensors of two dimensions and more, shaped as in the network, as views of `of(parameter)`.

        `torch.Tensor.detach` gives the weights, `lambda p: p.grad` their gradients.
        """
        return [of(p) for p in self.parameters() if p.requires_grad and p.dim() > 1]

    def constrain_(self) -> None:
        """Bring the parameters back into their range, after an optimizer step."""

    def exploded(self) -> torch.Tensor | None:
        """Whether a std has come to its upper bound, a bool scalar tensor; None where nothing can explode."""
        return None

    def forget(self) -> None:
        """Give back what calls keep; the next call makes it anew."""
        self._kept = None

    @alone
    def draw(self) -> nn.Module:
        """The network with one draw of its randomness fixed, an independent module."""
        network = copied(self.network)
        for module in noises(network):
            module.fix(int(torch.randint(2**63 - 1, ())))
        return network

    @alone
    def mean_network(self) -> nn.Module:
        """The network at the posterior's mean, an independent module; a copy of the network where there is no posterior."""
        return copied(self.network)

    def averaged(self, num_samples: int) -> AveragedClassifier:
        """This classifier with every call answered by num_samples >= 1 draws; see `AveragedClassifier`."""
        return AveragedClassifier(self, num_samples)

    def settings(self) -> dict:
        """What a checkpoint must know, beside the network and the state, to build this classifier again."""
        weights = None if self.class_weights is None else self.class_weights.tolist()
        likelihood = None if self.likelihood is categorical else getattr(self.likelihood, "__qualname__", repr(self.likelihood))
        noise = noise_before(self.network)
        return {"kind": "deterministic", "likelihood": likelihood, "class_weights": weights,
                **({"noise_before": noise, "noise_stds": [module.std for module in noises(self.network)]} if noise else {})}

    def unregistered_model(self, x: torch.Tensor, y: torch.Tensor | None, kl_weight: float | None = None,
                           num_data: int | None = None) -> torch.Tensor:
        """`model` without registering parameters in Pyro's store, as `elbo.objective` runs it."""
        scale = site_scales(len(x), kl_weight, num_data)[1]
        weights = dict(self.network.named_parameters()) if self.unreached is None else {}
        return self._observe(self(x), x, y, scale, weights)

    def weights_and_kl(self) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """({site: its value}, KL): one draw from the guide and `kl()`; ({}, None) where the guide is empty."""
        return {}, None

    def _observe(self, output, x, y, scale, weights):
        if self.unreached is None and torch.is_grad_enabled() and any(w.requires_grad for w in weights.values()):
            self.unreached = left_out(output, weights, x, *self.parameters())
            if self.unreached:
                warnings.warn(told_unreached(self.unreached), Note, stacklevel=2)
            if silent := silent_layers(self.network):
                warnings.warn(f"no noise is drawn before {', '.join(silent)}: the network does not call it", Note, stacklevel=2)
        likelihood = self.likelihood(output)
        if likelihood.batch_shape != (len(x),) or y is not None and y.shape != likelihood.shape():    # else Pyro broadcasts
            raise InputError(f"the likelihood of {len(x)} images must have the batch shape ({len(x)},) and y its shape, got "
                             f"{tuple(likelihood.batch_shape)} and {None if y is None else tuple(y.shape)}")
        if self.class_weights is not None and output.shape[-1] != len(self.class_weights):
            raise InputError(f"there are {len(self.class_weights)} class_weights for {output.shape[-1]} classes")
        if self.class_weights is not None and y is not None:
            scale = scale * self.class_weights[y.long()]         # of uint8 it would take a mask
        with pyro.plate("batch", len(x)), poutine.scale(scale=scale):
            pyro.sample("y", likelihood, obs=y)
        return output

    def _checked(self, output, x):
        return checked_logits(output, len(x)) if self.likelihood is categorical else output

    @alone
    def __deepcopy__(self, memo):
        other = memo[id(self)] = type(self).__new__(type(self))
        copied(self.network, memo)                       # which the memo holds from here on
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return other

    def __getstate__(self):
        return {key: value for key, value in super().__getstate__().items() if key != "_lean_calls"} | {"_kept": None}

    def __setstate__(self, state):
        super().__setstate__(state)                      # a copy is another classifier to Pyro's parameter store
        self._pyro_name = f"classifier{next(self._numbers)}"


def told_unreached(names):
    """What to say of weights that training leaves out."""
    told = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return (f"training leaves out {told}: the network's forward does not use what a classifier draws and trains; freeze by "
            f"requires_grad_(False) what it does not use, hold its layers in modules (nn.ModuleList for a list), and let it "
            f"read its own weights as self.NAME, not from outside")


def site_scales(num_images, kl_weight, num_data):
    """(that of the weights, that of the likelihood) in `Classifier.model` of num_images.   Raises InputError as it does."""
    if kl_weight is None:
        num_data = num_images if num_data is None else num_data
        check_number("num_data", num_data, above=True)
        return 1.0, num_data / num_images
    if num_data is not None:
        raise InputError("model and guide take kl_weight, for Eq. (10), or num_data, for the joint density, not both")
    check_number("kl_weight", kl_weight)
    return kl_weight, 1 / num_images


def check_explains_classes(module, logits):
    """Raises InputError where module, a Classifier or its average, has a likelihood that is no Categorical of its logits."""
    classifier = module.classifier if isinstance(module, AveragedClassifier) else module
    if isinstance(classifier, Classifier) and classifier.likelihood is not categorical:
        likelihood = classifier.likelihood(logits)
        if not isinstance(likelihood, dist.Categorical):
            raise InputError(f"attacks and predictions need logits of classes, with a Categorical as likelihood, not "
                             f"{type(likelihood).__name__}: call the classifier itself for what it returns")
        if not torch.allclose(likelihood.logits.float(), logits.float().log_softmax(-1), rtol=1e-2, atol=1e-2):
            raise InputError("attacks and predictions take the softmax of what the network returns, and the likelihood is a "
                             "Categorical of something else: let the network return its logits, a temperature included")


def _as_weights(class_weights):
    """(classes,) as a tensor, None as it is.   Raises InputError for what is not one positive number for each class."""
    if class_weights is None:
        return None
    weights = torch.as_tensor(class_weights, dtype=torch.float32).detach().clone()
    if weights.dim() != 1 or not ((weights > 0) & weights.isfinite()).all():
        raise InputError(f"class_weights must be a number > 0 for each class, got {class_weights!r:.200}")
    return weights


def checked_logits(logits, num_images, num_classes=None):
    """The logits.   Raises InputError where they are not one floating point tensor (num_images, num_classes).

    num_classes: None where any number of at least 2 will do.
    """
    is_tensor = isinstance(logits, torch.Tensor)
    if is_tensor and logits.is_floating_point() and logits.dim() == 2 and logits.shape[1] > 1 and (
            tuple(logits.shape) == (num_images, num_classes or logits.shape[1])):
        return logits
    got = f"a tensor {tuple(logits.shape)} of {logits.dtype}" if is_tensor else f"a {type(logits).__name__}"
    raise InputError(f"the network must return one tensor of logits (B, classes), here ({num_images}, "
                     f"{num_classes or '2 or more'}), got {got}; wrap it in a module that does")
