"""What tests of evaluation share: a seed, and a Bayesian network with images that its mean network gets right."""
import pytest
import torch
from torch import nn

import pyro_advbnn as ab


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return ab.BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3)), 1.0, 0.3)


@pytest.fixture(scope="module")
def batch(classifier):
    torch.manual_seed(1)
    x = torch.rand(60, 1, 4, 4)
    return x, classifier.mean_network()(x).argmax(-1).detach()
