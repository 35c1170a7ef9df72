"""A batch that does not fit into memory, in pieces: the same draw of the weights for each, and the same gradient.

The attack and, but for BatchNorm, the gradient are those of the whole batch. BatchNorm in training mode normalises each
piece by its own statistics, as it must where the images are not in the network together.
"""
from contextlib import nullcontext

import torch

from pyro_advbnn.bayes.bayesian_classifier import BayesianClassifier
from pyro_advbnn.bayes.elbo import Objective, objective
from pyro_advbnn.system.random_streams import undisturbed


def attack_in_pieces(attack, classifier, x, y, size):
    """`attack` on at most `size` images at a time, every piece under the same draws of the weights: x_adv (B, C, H, W)."""
    return torch.cat([attack(classifier, *piece) for piece in _under_equal_draws(classifier, x, y, size)])


def backward_in_pieces(classifier, x, y, kl_weight, size, factor):
    """Add `factor` times the gradients of Eq. (10) on the whole batch to the parameters' grad; its `elbo.Objective`.

    Each piece counts by its share of the images, so that the KL counts once.
    """
    pieces, shares = [], []
    for x_piece, y_piece in _under_equal_draws(classifier, x, y, size):
        parts, share = objective(classifier, x_piece, y_piece, kl_weight=kl_weight), len(y_piece) / len(y)
        (factor * share * parts.loss).backward()
        pieces.append(parts)
        shares.append(share)
    mean = {name: sum(share * getattr(parts, name).detach() for share, parts in zip(shares, pieces, strict=True))
            for name in ("loss", "nll", "kl")}
    return Objective(**mean, logits=torch.cat([parts.logits for parts in pieces]))


def _under_equal_draws(classifier, x, y, size):
    """The pieces of a batch; weights, which come from the global generators, are drawn alike for each.

    Noise belongs to the images, not to the weights, and differs from piece to piece; but where weights are drawn, dropout and
    the like are drawn alike with them.
    """
    pieces = list(zip(x.split(size), y.split(size), strict=True))
    for i, piece in enumerate(pieces, 1):
        again = isinstance(classifier, BayesianClassifier) and i < len(pieces)
        with undisturbed() if again else nullcontext():
            yield piece
