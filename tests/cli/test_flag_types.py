"""Tests of values: which texts are numbers and lists of numbers."""

import pytest

from pyro_advbnn.cli.flag_types import read
from pyro_advbnn.system.errors import InputError


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("-1/2", -0.5), ("1e-3", 1e-3), ("1_000", 1000.0), ("+.5", 0.5), ("5.", 5.0), ("0.5/2", 0.25)],
)
def test_a_number_may_be_a_decimal_or_a_fraction(text, value):
    assert read(text, float) == value


@pytest.mark.parametrize("text", ["", "8/0", "8/2x", "1/2/3", "nan", "inf", "-inf", "1e400", "1__0", "0x1", "٣"])
def test_what_is_no_finite_number_is_refused(text):
    with pytest.raises(InputError, match="must be a number, got "):
        read(text, float)


def test_an_exponent_that_would_fill_the_memory_is_refused_unread():
    with pytest.raises(InputError, match=r"got '1e9999999'$"):
        read("1e9999999", float)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0:0.07:0.005", [float(f"{5 * k}e-3") for k in range(15)]),
        ("0:1:0.3", [0.0, 0.3, 0.6, 0.9]),
        ("3:1:-1", [3.0, 2.0, 1.0]),
        ("2:2:1", [2.0]),
        ("0:8/255:1/255", [k / 255 for k in range(9)]),
        ("0:1:0.3333333333333334", [0.0, 0.3333333333333334, 0.6666666666666668, 1.0]),
        ("0,0.01:0.03:0.01,8/255", [0.0, 0.01, 0.02, 0.03, 8 / 255]),
    ],
)
def test_a_range_holds_clean_values_and_its_stop_when_a_step_hits_it(text, values):
    assert read(text, list[float]) == values


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0:1", "three numbers"),
        ("0:1:0", "does not lead from start to stop"),
        ("1:0:0.1", "does not lead from start to stop"),
        ("0:1:1e-9", "more than 10000 numbers"),
        ("0:1:1e-300", "more than 10000 numbers"),
        ("0:6000:1,0:6000:1", "more than 10000 numbers"),
        ("0,,1", "an element is empty"),
        ("", "an element is empty"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused_with_the_reason(text, reason):
    with pytest.raises(InputError, match=reason):
        read(text, list[float])


def test_the_longest_range_that_is_taken_has_ten_thousand_numbers():
    assert len(read("1:10000:1", list[float])) == 10_000
