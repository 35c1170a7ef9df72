"""What tests of attacks share: a seed, images with pixels at both borders, a linear network, a small one that knows digits."""
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
