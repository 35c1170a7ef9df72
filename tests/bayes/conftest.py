"""What every test of bayes/ begins with."""
import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    pyro.clear_param_store()
