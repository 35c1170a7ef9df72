"""The exponential moving average of a classifier's weights over the steps of a training (Polyak and Juditsky, 1992)."""
import copy

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """A classifier whose state follows that of another: decay x its own + (1 - decay) x the other's, at each `update`.

    All that is of floating point is averaged: mean and log std of a posterior, deterministic parameters, and BatchNorm's
    statistics; integer counters are copied. decay: in (0, 1); at the beginning, after t steps, it is (1 + t) / (10 + t) where
    that is less, so that the start is forgotten in short trainings too (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, classifier, decay):
        self.classifier, self.decay = copy.deepcopy(classifier), decay

    @torch.no_grad()
    def update(self, classifier, step):
        """Follow `classifier`, one of the same architecture.   step: how many updates came before this one."""
        average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        ours, theirs = ([*each.parameters(), *each.buffers()] for each in (self.classifier, classifier))     # shared ones once
        pairs = list(zip(ours, theirs, strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        average(*map(list, zip(*floats, strict=True)), None)                # how many came before is not used by it
        for ours, theirs in pairs:
            if not ours.is_floating_point():
                ours.copy_(theirs)
