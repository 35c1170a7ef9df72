"""A mixture of classifiers: one random classifier whose calls visit its components in turn."""
from collections.abc import Iterable

import torch
from torch import nn

from pyro_advbnn.bayes.averaging import AveragedClassifier, Pool
from pyro_advbnn.bayes.classifier import Classifier, categorical, checked_logits
from pyro_advbnn.system.errors import InputError

_REMEMBERED = 10_000                                     # calls; no gradient averages more


class Mixture(nn.Module):
    """Classifiers with equal weights: (B, C, H, W) -> logits (B, classes) of one of the K, under fresh randomness of its own.

    K calls in a row visit each component once, in an order drawn from torch's global generator, so that an average over draws
    is stratified; the order begins anew with every `eval()` or `train()`, as predictions and attacks begin with. A call that
    is repeated from the same state of the generator, as torch's checkpoint does on the way back, visits the same component.

    Raises InputError for less than two components, and for one that is no `Classifier` of class numbers.
    """

    def __init__(self, classifiers: Iterable[Classifier]) -> None:
        super().__init__()
        classifiers = list(classifiers)
        fit = all(isinstance(each, Classifier) and each.likelihood is categorical for each in classifiers)
        if len(classifiers) < 2 or not fit:
            given = ", ".join(type(each).__name__ for each in classifiers) or "none"
            raise InputError(f"a mixture needs two or more of this package's classifiers, of class numbers, got {given}; "
                             f"ab.Classifier wraps a network")
        self.classifiers = nn.ModuleList(classifiers)
        self.num_classes = None                          # as the first call finds it
        self.train(classifiers[0].training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = checked_logits(self._next()(x), len(x), self.num_classes)
        self.num_classes = logits.shape[1]
        return logits

    def train(self, mode: bool = True) -> "Mixture":
        self._left: list[int] = []
        self._visited: dict[int, int] = {}
        return super().train(mode)

    def draw(self) -> nn.Module:
        """One component with one draw of its randomness fixed, an independent module; K draws in a row visit each once."""
        return self._next().draw()

    def mean_network(self) -> nn.Module:
        """The components' mean networks as one, an independent module in eval mode: the log of their mean probabilities."""
        return Pool(each.mean_network() for each in self.classifiers)  # type: ignore[operator]

    def averaged(self, num_samples: int) -> AveragedClassifier:
        """This mixture with every call answered by num_samples >= 1 draws; see `AveragedClassifier`."""
        return AveragedClassifier(self, num_samples)

    def _next(self):
        """The component of the next call, by one number from torch's generator on the CPU: no GPU is waited for."""
        number = int(torch.randint(2**63 - 1, ()))
        if number not in self._visited:
            self._left = self._left or list(range(len(self.classifiers)))
            self._visited[number] = self._left.pop(number % len(self._left))
            if len(self._visited) > _REMEMBERED:
                del self._visited[next(iter(self._visited))]
        return self.classifiers[self._visited[number]]
