"""Adv-BNN as others write it, for the benchmark alone: the plain Pyro way, and the way of the authors' code.

Both compute what `bayes.BayesianClassifier` computes: the same posterior, prior, attack and Eq. (10), from the same
network. The tests hold them to it.
"""
import copy
import math

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn

from pyro_advbnn.attacks.attack import unchecked
from pyro_advbnn.attacks.modes import eval_mode
from pyro_advbnn.system.errors import InputError


class PlainPyro(nn.Module):
    """`network` as a PyroModule, a site per parameter: (B, C, H, W) -> logits (B, classes) under fresh weights.

    Model: w ~ Normal(0, prior_std) for every parameter by `PyroSample`. Guide: w ~ Normal(mean, exp(log_std)), sampled
    site by site. A forward call traces the guide and replays the model, for `attacks.pgd.pgd` with its frozen parameters: no
    draw of an attack pays for gradients of the weights. The KL is Pyro's closed form, summed over the sites. The network
    has no tied parameters, which would be sites of their own.
    """

    def __init__(self, network, prior_std, init_std):
        super().__init__()
        self.network = copy.deepcopy(network)
        parameters = dict(self.network.named_parameters())
        self.names = list(parameters)
        self.means = nn.ParameterList(p.detach().clone() for p in parameters.values())
        self.log_stds = nn.ParameterList(torch.full_like(p, math.log(init_std)) for p in self.means)
        to_pyro_module_(self.network)
        for module in self.network.modules():
            for name, value in list(module.named_parameters(recurse=False)):
                prior = dist.Normal(value.new_zeros(()), prior_std).expand(value.shape).to_event(value.dim())
                setattr(module, name, PyroSample(prior))

    def forward(self, x):
        return poutine.replay(self.network, trace=poutine.trace(self._draw).get_trace())(x)

    def train_step(self, optimizer, x, y, *, attack, kl_weight):
        """One step of Algorithm 1; the loss, Eq. (10), on the attacked batch."""
        x_adv = unchecked(attack)(self, x, y)
        loss = TraceMeanField_ELBO().differentiable_loss(self.model, self.guide, x_adv, y, kl_weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def model(self, x, y, kl_weight):
        with poutine.scale(scale=kl_weight):
            logits = self.network(x)
        with pyro.plate("batch", len(y)), poutine.scale(scale=1 / len(y)):
            pyro.sample("y", dist.Categorical(logits=logits.float()), obs=y)

    def guide(self, x, y, kl_weight):
        with poutine.scale(scale=kl_weight):
            self._draw()

    def _draw(self):
        for name, mean, log_std in zip(self.names, self.means, self.log_stds, strict=True):
            pyro.sample(name, dist.Normal(mean, log_std.exp()).to_event(mean.dim()))


class AuthorsStyle(nn.Module):
    """`network` with random layers: (B, C, H, W) -> (logits (B, classes), KL), as in the authors' code.

    Every layer keeps mu and sigma, the log std, per tensor, draws with torch.randn_like in each forward call, and adds its
    KL (Eq. 6) to the graph, needed or not. The attack calls backward() and so computes the gradients of all weights too.
    Unlike the authors' VGG, which returned the KL of the last layer, this sums the KL of all layers.

    Raises InputError where a parameter belongs to a module that has modules of its own: no call of a layer would draw it.
    """

    def __init__(self, network, prior_std, init_std):
        super().__init__()
        self.network = copy.deepcopy(network)
        for name, module in list(self.network.named_modules()):
            if not list(module.parameters(recurse=False)):
                continue
            if not name or list(module.children()):
                raise InputError(f"contestant authors takes no network with a {type(module).__name__} that has parameters "
                                 f"outside of its layers")
            parent, _, leaf = name.rpartition(".")
            setattr(self.network.get_submodule(parent), leaf, _RandomLayer(module, prior_std, init_std))

    def forward(self, x):
        logits = self.network(x)
        return logits, sum(layer.take_kl() for layer in self.modules() if isinstance(layer, _RandomLayer))

    def train_step(self, optimizer, x, y, *, attack, kl_weight):
        """One step of Algorithm 1 with the settings of `attack`; the loss, Eq. (10), on the attacked batch."""
        x_adv = self.attack(x, y, attack.epsilon, attack.step_size, attack.num_steps)
        optimizer.zero_grad()
        logits, kl = self(x_adv)
        loss = F.cross_entropy(logits, y) + kl_weight * kl
        loss.backward()
        optimizer.step()
        return loss.detach()

    def attack(self, x, y, epsilon, step_size, num_steps):
        """`attacks.pgd.pgd`, with the gradients of the weights computed and thrown away at every step."""
        x_adv = x.clone()
        with eval_mode(self):
            for _ in range(num_steps):
                self.zero_grad()
                x_adv.requires_grad_()
                logits, _ = self(x_adv)
                F.cross_entropy(logits, y).backward()
                with torch.no_grad():
                    change = (x_adv + step_size * x_adv.grad.sign() - x).clamp_(-epsilon, epsilon)
                    x_adv = change.add_(x).clamp_(0, 1)
        self.zero_grad()
        return x_adv.detach()


class _RandomLayer(nn.Module):
    def __init__(self, layer, prior_std, init_std):
        super().__init__()
        parameters = dict(layer.named_parameters(recurse=False))
        self.layer, self.names, self.prior_std = layer, list(parameters), prior_std
        self.mu = nn.ParameterList(p.detach().clone() for p in parameters.values())
        self.sigma = nn.ParameterList(torch.full_like(p, math.log(init_std)) for p in self.mu)
        for name in self.names:
            delattr(layer, name)                         # a drawn weight takes its place during a call
        self._kl = None

    def forward(self, x):
        self._kl = 0
        for name, mu, sigma in zip(self.names, self.mu, self.sigma, strict=True):
            std = torch.exp(sigma)
            setattr(self.layer, name, mu + std * torch.randn_like(std))
            kl = math.log(self.prior_std) - sigma + (std**2 + mu**2) / (2 * self.prior_std**2) - 0.5
            self._kl = self._kl + kl.sum()
        out = self.layer(x)
        for name in self.names:
            delattr(self.layer, name)
        return out

    def take_kl(self):
        kl, self._kl = self._kl, None
        return kl
