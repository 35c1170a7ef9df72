"""Tests of randomness: what is drawn inside leaves the stream outside where it was; random classifiers are known."""
import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.attacks.modes import draws_anew, is_random
from pyro_advbnn.system.random_streams import own_stream, separate_randomness, undisturbed

NETWORK = ab.networks.convnet(width=4)


class Rounding(nn.Module):
    """A network that answers alike but for rounding, as on a GPU, or for noise of another share."""

    def __init__(self, share, scale=1.0):
        super().__init__()
        self.network, self.share, self.scale = NETWORK, share, scale

    def forward(self, x):
        logits = self.scale * self.network(x)
        return logits * (1 + self.share * torch.rand_like(logits))


class NoisyGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.rand_like(grad)


class HidesItsGradient(nn.Module):
    def forward(self, x):
        return NETWORK(NoisyGradient.apply(x))


@pytest.mark.parametrize(("classifier", "of_logits", "of_any"), [
    (NETWORK, False, False), (nn.Sequential(nn.ReLU(inplace=True), NETWORK), False, False),
    (Rounding(1e-7), False, False), (Rounding(1e-2), True, True), (HidesItsGradient(), False, True),
    (Rounding(1e-7, scale=1e4), False, False), (Rounding(1e-2, scale=1e-6), True, True),
    (nn.Sequential(NETWORK, nn.Dropout()), False, False),          # still, in eval mode
    (ab.BayesianClassifier(NETWORK, init_std=0.1), True, True), (ab.BayesianClassifier(NETWORK, init_std=1e-8), False, False)])
def test_a_classifier_is_random_where_its_calls_differ_by_more_than_rounding(classifier, of_logits, of_any):
    x, state, training = torch.rand(2, 1, 8, 8), torch.get_rng_state(), classifier.training
    before = x.clone()
    assert draws_anew(classifier, x) == of_logits and is_random(classifier, x) == of_any
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, before) and classifier.training == training
    assert not any(p.grad is not None for p in classifier.parameters())


def test_streams_of_their_own_leave_the_global_one_where_it_would_be():
    torch.manual_seed(3)
    expected = torch.rand(2)
    for context in (undisturbed(), separate_randomness(7)):
        torch.manual_seed(3)
        with context:
            torch.rand(100)
        assert torch.equal(torch.rand(2), expected)
    ends = []
    for count in (1, 100):
        torch.manual_seed(3)
        with own_stream():
            torch.rand(count)
        ends.append(torch.rand(2))
    assert torch.equal(*ends)


def test_equal_seeds_give_equal_numbers_inside():
    drawn = []
    for _ in "ab":
        torch.rand(5)
        with separate_randomness(7):
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
