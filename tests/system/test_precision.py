"""Tests of precisions: in which arithmetic products are computed."""
from types import SimpleNamespace

import pytest
import torch

from pyro_advbnn.system import precision as precisions
from pyro_advbnn.system.precision import arithmetic, autocast

CPU = torch.device("cpu")


def test_bf16_arithmetic_computes_products_in_bfloat16_and_fp32_does_not():
    a = torch.rand(4, 4)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with arithmetic(CPU, precision):
            assert (a @ a).dtype == dtype


def test_a_weight_that_changes_in_between_is_cast_anew():
    """As those do that are perturbed in a step: a cast that was kept would be of the weights before."""
    linear, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    with autocast(CPU, "bf16"):
        before = linear(x)
        with torch.no_grad():
            linear.weight += 1
        assert (linear(x) - before).min() > 3.5


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_on_cuda_only_tf32_allows_tf32_and_the_setting_comes_back(precision, monkeypatch):
    seen, device = [], SimpleNamespace(type="cuda")
    monkeypatch.setattr(precisions, "autocast", lambda device, precision: torch.no_grad())
    places = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [place.fp32_precision for place in places]
    with arithmetic(device, precision):
        seen = [place.fp32_precision for place in places]
    assert seen == 2 * ["tf32" if precision == "tf32" else "ieee"]
    assert [place.fp32_precision for place in places] == before
