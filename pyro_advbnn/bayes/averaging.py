"""One answer from many draws or many networks, for tools that expect a deterministic network."""
import math

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pyro_advbnn.bayes.kernels.layout import laying_out
from pyro_advbnn.system.errors import check_at_least


def log_mean_probability(draws):
    """The log of the mean probability over draws, from their log-probabilities: (n, B, K) -> (B, K)."""
    return draws.logsumexp(0) - math.log(len(draws))


def log_mean_softmax(answers):
    """The log of the mean softmax of logits (B, K), of which `answers` is an iterable; (B, K), float32."""
    return log_mean_probability(torch.stack([logits.float().log_softmax(-1) for logits in answers]))


class AveragedClassifier(nn.Module):
    """(B, C, H, W) -> (B, classes): the log of the mean softmax over num_samples draws, in float32.

    For attack libraries that expect a single answer; its softmax is the averaged prediction. Raises InputError for
    num_samples < 1.
    """

    def __init__(self, classifier: nn.Module, num_samples: int) -> None:
        super().__init__()
        check_at_least("num_samples", num_samples, 1)
        self.classifier = classifier
        self.num_samples = num_samples
        self.training = classifier.training              # tools warn of a module in training mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return log_mean_softmax(self.classifier(x.clone()) for _ in range(self.num_samples))   # one may work in place


class Pool(nn.Module):
    """Fixed networks that answer as one: (B, C, H, W) -> (B, classes), the log of their mean softmax, in float32.

    A pool of m draws holds m copies of the weights; its activations are those of one network, since the pass for the
    gradient repeats each network's forward call. It is built in eval mode, and no parameter requires a gradient.
    """

    def __init__(self, networks):
        super().__init__()
        self.networks = nn.ModuleList(map(laying_out, networks))
        self.eval().requires_grad_(False)

    def forward(self, x):
        return log_mean_softmax(checkpoint(_answer, network, x, use_reentrant=False) for network in self.networks)


def _answer(network, x):
    return network(x.clone())                            # a first layer may work in place
