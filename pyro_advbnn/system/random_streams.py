"""Streams of torch's global generators, so that measuring changes no training."""
from contextlib import contextmanager

import torch


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
