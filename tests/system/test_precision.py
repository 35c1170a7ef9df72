"""Tests of precisions: in which arithmetic products are computed."""
from types import SimpleNamespace

import pytest
import torch

from pyro_advbnn.system import precision as precisions
from pyro_advbnn.system.precision import arithmetic

CPU = torch.device("cpu")


def test_bf16_arithmetic_computes_products_in_bfloat16_and_fp32_does_not():
    a = torch.rand(4, 4)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with arithmetic(CPU, precision):
            assert (a @ a).dtype == dtype


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
