"""The state that a classifier is attacked and measured in, and whether it is random at all."""
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pyro_advbnn.system.random_streams import undisturbed

_ROUNDING_OF_LOGITS, _ROUNDING_OF_GRADIENTS = 1e-5, 1e-3           # of the largest: a GPU adds in no fixed order
_CALLS = 16                                              # two equally likely answers come out alike in 1 of 32,768 cases


@contextmanager
def eval_mode(classifier: nn.Module) -> Iterator[nn.Module]:
    """Every module in eval mode (BatchNorm still, no dropout) inside, each back in its own mode afterwards."""
    modes = [(module, module.training) for module in classifier.modules()]
    classifier.eval()
    try:
        yield classifier
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen(classifier):
    """No parameter requires a gradient inside: the attack pays for the input's gradient alone."""
    trainable = [p for p in classifier.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)


@torch.no_grad()
def draws_anew(classifier, x, calls=_CALLS):
    """Whether `calls` calls, in eval mode, give logits of the same images (B, C, H, W) that differ by more than rounding."""
    with eval_mode(classifier), undisturbed():
        first = classifier(x.clone())
        return any(differ(first, classifier(x.clone())) for _ in range(calls - 1))


def is_random(classifier, x):
    """Whether calls on the same images differ, in the logits or in their gradient by the images, by more than rounding."""
    def gradient():
        inputs = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = classifier(inputs.clone())          # a first layer may work in place
        if not logits.requires_grad:
            return torch.zeros(1)
        return torch.autograd.grad(logits.float().logsumexp(-1).sum(), inputs)[0]

    with eval_mode(classifier), frozen(classifier), undisturbed():
        return draws_anew(classifier, x) or differ(gradient(), gradient(), _ROUNDING_OF_GRADIENTS)


def differ(first, second, rounding=_ROUNDING_OF_LOGITS):
    """Whether two answers to the same images are apart by more than rounding."""
    return bool((first - second).abs().max() > rounding * torch.maximum(first.abs().max(), second.abs().max()))
