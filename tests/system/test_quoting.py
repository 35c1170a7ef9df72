"""Tests of what messages repeat."""
import pytest

from pyro_advbnn.system.quoting import reason


@pytest.mark.parametrize(("error", "told"), [
    (ValueError("mat1 and\n  mat2 do\tnot fit"), "mat1 and mat2 do not fit"), (KeyError(), "KeyError"),
    (RuntimeError(" \n"), "RuntimeError"), (RuntimeError("word " * 1000), ("word " * 60)),
])
def test_a_reason_is_one_line_that_is_neither_empty_nor_endless(error, told):
    assert reason(error) == told
