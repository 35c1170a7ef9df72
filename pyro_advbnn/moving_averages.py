"""The exponential moving average of a classifier's weights over the steps of a training (Polyak and Juditsky, 1992)."""
import copy

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """A classifier whose state follows that of another: decay x its own + (1 - decay) x the other's, at each `update`.

    All that is of floating point is averaged: mean and log std of a posterior, deterministic parameters, and BatchNorm's
    statistics; what counts is copied. decay: in (0, 1). It starts as a copy of `classifier`.
    """

    def __init__(self, classifier, decay):
        self.classifier = copy.deepcopy(classifier)
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, classifier):
        """Follow `classifier`, one of the same architecture."""
        pairs = list(zip(self.classifier.state_dict().values(), classifier.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._average(*map(list, zip(*floats, strict=True)), None)          # how often, which the third is, does not matter to it
        for ours, theirs in pairs:
            if not ours.is_floating_point():
                ours.copy_(theirs)
