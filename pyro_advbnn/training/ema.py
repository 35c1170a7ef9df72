"""The exponential moving average of a classifier's weights over the steps of a training (Polyak and Juditsky, 1992)."""
import copy
import itertools

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """A classifier whose state follows that of another: decay x its own + (1 - decay) x the other's, at each `update`.

    All finite numbers of floating point are averaged: mean and log std of a posterior, deterministic parameters, and
    BatchNorm's statistics; integer counters are copied, and a mask of infinities. decay: in (0, 1); at the beginning, after
    t steps, it is (1 + t) / (10 + t) where that is less, so that the start is forgotten in short trainings too (as in
    TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, classifier, decay):
        self.classifier, self.decay = copy.deepcopy(classifier), decay
        self._is_averaged = [t.is_floating_point() and bool(t.isfinite().all()) for t in _tensors(classifier)]

    @torch.no_grad()
    def update(self, classifier, step):
        """Follow `classifier`, one of the same architecture.   step: how many updates came before this one."""
        average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        pairs = list(zip(_tensors(self.classifier), _tensors(classifier), strict=True))
        averaged = itertools.compress(pairs, self._is_averaged)
        average(*map(list, zip(*averaged, strict=True)), None)              # how many came before is not used by it
        for (ours, theirs), is_averaged in zip(pairs, self._is_averaged, strict=True):
            if not is_averaged:
                ours.copy_(theirs)


def _tensors(classifier):
    return [*classifier.parameters(), *classifier.buffers()]                # shared ones once
