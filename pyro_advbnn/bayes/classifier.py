"""Classifiers: modules that map images to logits, with a Pyro model and guide behind them.

A deterministic (or noisy) network is the case of an empty guide, so one objective serves all defences; see
`bayesian_classifier` for the other case.
"""
import copy
import functools
import itertools

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from pyro_advbnn.bayes.averaging import AveragedClassifier
from pyro_advbnn.bayes.kernels.frozen_calls import LeanCalls, autocast_dtype
from pyro_advbnn.bayes.parameters import shared_modules
from pyro_advbnn.bayes.rse import AdditiveNoise
from pyro_advbnn.system.errors import InputError


class Classifier(nn.Module):
    """A deterministic or noisy network: (B, C, H, W) in [0, 1] -> logits (B, classes)."""

    _numbers = itertools.count()

    def __init__(self, network):
        super().__init__()
        self.network = network
        self._pyro_name = f"classifier{next(self._numbers)}"
        self._shared = shared_modules(network)
        self._kept = None

    def forward(self, x):
        """Logits (B, classes) under fresh randomness.

        Where no weight requires a gradient, folded weights are kept from call to call: change weights in place, not through
        .data, of which torch tells nobody, or call eval() or train() afterwards.
        """
        if any(p.requires_grad for p in self.parameters()):
            return checked_logits(self.network(x), len(x))
        return checked_logits(self._lean_calls(self._kept_weights(x), x), len(x))

    @functools.cached_property
    def _lean_calls(self):
        return LeanCalls(self.network, self._shared)

    def _kept_weights(self, x):
        """The weights of lean calls, made anew where a weight, a buffer, a mode or autocast's dtype is not as it was."""
        parameters = dict(self.network.named_parameters())
        versions = [(t._version, t.data_ptr()) for t in (*parameters.values(), *self.network.buffers())]
        state = versions, [module.training for module in self.network.modules()], autocast_dtype(x.device)
        if self._kept is None or self._kept[0] != state:
            self._kept = state, self._lean_calls.weights(parameters)
        return self._kept[1]

    def train(self, mode=True):
        self._kept = None
        return super().train(mode)

    def model(self, x, y, kl_weight=None):
        """The Pyro model of one batch, for `pyro.infer.SVI` with `TraceMeanField_ELBO`; returns the logits.

        kl_weight: alpha / N as in `negative_elbo`, an argument of `SVI.step(x, y, kl_weight)`; None takes the batch for
        the whole data set, 1 / B.
        """
        pyro.module(self._pyro_name, self)
        return self.unregistered_model(x, y, 1 / len(y) if kl_weight is None else kl_weight)

    def guide(self, x, y, kl_weight=None):
        """The Pyro guide with model's signature; {site: value}."""
        return {}

    def kl(self):
        """KL(posterior || prior) over the counted weights, a scalar (Eq. 6); 0 without a posterior."""
        return torch.zeros(())

    def constrain_(self):
        """Bring the parameters back into their range, after an optimizer step."""

    def exploded(self):
        """Whether a std has come to its upper bound, a bool scalar tensor; None where nothing can explode."""
        return None

    def release_buffers(self):
        """Give back the work memory that calls keep; the next call takes it anew."""
        self._kept = None
        self.__dict__.pop("_lean_calls", None)

    def draw(self):
        """The network with one draw of its randomness fixed, an independent module."""
        network = copy.deepcopy(self.network)
        for module in network.modules():
            if isinstance(module, AdditiveNoise):
                module.fix(int(torch.randint(2**63 - 1, ())))
        return network

    def mean_network(self):
        """The network at the posterior's mean, an independent module; a copy of the network where there is no posterior."""
        return copy.deepcopy(self.network)

    def averaged(self, num_samples):
        """This classifier with every call answered by num_samples >= 1 draws; see `AveragedClassifier`."""
        return AveragedClassifier(self, num_samples)

    def settings(self):
        """What a checkpoint must know, beside the network and the state, to build this classifier again."""
        return {"kind": "deterministic"}

    def unregistered_model(self, x, y, kl_weight):
        """`model` without registering parameters in Pyro's store, as `elbo.objective` runs it."""
        return self._observe(self(x), y)

    def weights_and_kl(self):
        """({site: its value}, KL): one draw from the guide and `kl()`; ({}, None) where the guide is empty."""
        return {}, None

    @staticmethod
    def _observe(logits, y):
        with pyro.plate("batch", len(y)), poutine.scale(scale=1 / len(y)):
            pyro.sample("y", dist.Categorical(logits=logits.float()), obs=y)
        return logits

    def __setstate__(self, state):
        super().__setstate__(state)                      # a copy is another classifier to Pyro's parameter store
        self._pyro_name = f"classifier{next(self._numbers)}"
        self.release_buffers()


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
