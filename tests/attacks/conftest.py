"""What tests of attacks share: a seed, images with pixels at both borders, a small network that knows digits."""
import pytest
import torch
from torch import nn

import pyro_advbnn as ab


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def batch():
    x = torch.rand(6, 1, 8, 8)
    x[:, :, 0], x[:, :, 1] = 0, 1                        # pixels at both borders of [0, 1]
    return x, torch.randint(10, (6,))


@pytest.fixture
def trained_on_digits():
    """A function that trains a small network; it gives the network and 500 digits (x, y) on most of which it is right."""
    def train(num_steps, bayesian=False):
        digits = ab.datasets.load("digits", "train")
        x, y = digits.images[:500].float() / 255, digits.labels[:500].long()
        network = ab.networks.convnet(width=8)
        network = ab.BayesianClassifier(network, init_std=0.02) if bayesian else network
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(num_steps):
            part = torch.randint(500, (50,))
            loss = nn.functional.cross_entropy(network(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return network.eval(), x, y
    return train
