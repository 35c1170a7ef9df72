"""Streams of torch's global generators, so that measuring changes no training; and whether a classifier is random at all."""
from contextlib import contextmanager

import torch

from pyro_advbnn.attacks.pgd import eval_mode, frozen

_ROUNDING_OF_LOGITS, _ROUNDING_OF_GRADIENTS = 1e-5, 1e-3           # of the largest: a GPU adds in no fixed order


@contextmanager
def own_stream():
    """torch's global generators inside begin anew from one draw of the stream outside, which moves on by that draw alone.

    What is drawn inside, however much, then changes nothing that comes after.
    """
    with separate_randomness(int(torch.randint(2**63 - 1, ()))):
        yield


@contextmanager
def undisturbed():
    """torch's global generators afterwards stand where they stood before."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        yield


@contextmanager
def separate_randomness(seed):
    """torch's global generators seeded inside, and back where they were afterwards: measuring changes no training."""
    with undisturbed():
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def draws_anew(classifier, x):
    """Whether two calls, in eval mode, give logits of the same images (B, C, H, W) that differ by more than rounding."""
    with eval_mode(classifier), undisturbed():
        return _differ(classifier(x.clone()), classifier(x.clone()), _ROUNDING_OF_LOGITS)


def is_random(classifier, x):
    """Whether two calls on the same images differ, in the logits or in their gradient by the images, by more than rounding."""
    def gradient():
        inputs = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = classifier(inputs.clone())          # a first layer may work in place
        return torch.autograd.grad(logits.float().logsumexp(-1).sum(), inputs)[0]

    with eval_mode(classifier), frozen(classifier), undisturbed():
        return draws_anew(classifier, x) or _differ(gradient(), gradient(), _ROUNDING_OF_GRADIENTS)


def _differ(first, second, rounding):
    return bool((first - second).abs().max() > rounding * torch.maximum(first.abs().max(), second.abs().max()))
