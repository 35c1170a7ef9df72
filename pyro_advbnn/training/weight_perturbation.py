"""Adversarial weight perturbation: a step's gradient is taken at weights that are attacked, too.

Wu, Xia and Wang, "Adversarial Weight Perturbation Helps Robust Generalization" (NeurIPS 2020, arXiv 2004.05884). As in the
authors' code tensors of one dimension, biases and the scales of norms, are left alone. Of a posterior the mean is perturbed.
"""
from contextlib import contextmanager

import torch

_TINY = 1e-20                                            # as the authors have it


@contextmanager
def perturbed(classifier, awp):
    """Inside, every weight tensor w of the network is w + awp ||w|| / ||g|| g; afterwards it has its bits again.

    awp: the paper's gamma. g: the gradient by w that lies in the parameters' .grad when this begins.
    """
    weights = classifier.weight_tensors(torch.Tensor.detach)
    kept = [w.clone() for w in weights]
    _climb(weights, classifier.weight_tensors(lambda p: torch.zeros_like(p) if p.grad is None else p.grad), awp)
    try:
        yield
    finally:
        for w, before in zip(weights, kept, strict=True):
            w.copy_(before)


def _climb(weights, gradients, awp):
    for w, g in zip(weights, gradients, strict=True):
        w.add_(awp * w.norm() / (g.norm() + _TINY) * g)


@contextmanager
def buffers_kept(network):
    """Afterwards every buffer, as BatchNorm's running statistics, is what it was before."""
    kept = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.copy_(before)
