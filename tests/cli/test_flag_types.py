"""Tests of what flags may be: numbers, lists, choices; in texts, and as values from Python and JSON."""
import math
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest

from pyro_advbnn.cli.flag_types import Range, read, take
from pyro_advbnn.system.errors import InputError


@pytest.mark.parametrize(("text", "value"), [
    ("8/255", 8 / 255), ("-1/2", -0.5), ("1e-3", 1e-3), ("1_000", 1000.0), ("+.5", 0.5), ("5.", 5.0), ("0.5/2", 0.25)])
def test_a_number_may_be_a_decimal_or_a_fraction(text, value):
    assert read("x", text, float) == value


@pytest.mark.parametrize("text", ["", "8/0", "8/2x", "1/2/3", "nan", "inf", "-inf", "1e400", "1__0", "0x1", "٣"])
def test_what_is_no_finite_number_is_refused(text):
    with pytest.raises(InputError, match="x must be a number, got "):
        read("x", text, float)


def test_an_exponent_that_would_fill_the_memory_is_refused_unread():
    with pytest.raises(InputError, match=r"got '1e9999999'$"):
        read("x", "1e9999999", float)


@pytest.mark.parametrize(("text", "values"), [
    ("0:0.07:0.005", [float(f"{5 * k}e-3") for k in range(15)]),
    ("0:1:0.3", [0.0, 0.3, 0.6, 0.9]),
    ("3:1:-1", [3.0, 2.0, 1.0]),
    ("2:2:1", [2.0]),
    ("0:8/255:1/255", [k / 255 for k in range(9)]),
    ("0:1:0.3333333333333334", [0.0, 0.3333333333333334, 0.6666666666666668, 1.0]),
    ("0,0.01:0.03:0.01,8/255", [0.0, 0.01, 0.02, 0.03, 8 / 255]),
])
def test_a_range_holds_clean_values_and_its_stop_when_a_step_hits_it(text, values):
    assert read("x", text, list[float]) == values


@pytest.mark.parametrize(("text", "reason"), [
    ("0:1", "three numbers"),
    ("0:1:0", "does not lead from start to stop"),
    ("1:0:0.1", "does not lead from start to stop"),
    ("0:1:1e-9", "more than 10000 numbers"),
    ("0:1:1e-300", "more than 10000 numbers"),
    ("0,,1", "an element is empty"),
    ("", "an element is empty"),
])
def test_a_list_that_makes_no_sense_is_refused_with_the_reason(text, reason):
    with pytest.raises(InputError, match=reason):
        read("x", text, list[float])


def test_the_longest_range_that_is_taken_has_ten_thousand_numbers():
    assert len(read("x", "1:10000:1", list[float])) == 10_000


@pytest.mark.parametrize(("value", "annotation", "taken"), [
    (3, int, 3), (np.int64(3), int, 3), (2, float, 2), (np.float32(0.5), float, 0.5), (Fraction(1, 4), float, 0.25),
    (None, int | None, None), ("auto", float | Literal["auto"], "auto"), (True, bool, True), ("a/b", Path, Path("a/b")),
    (Path("a"), Path, Path("a")), (0.5, list[float], [0.5]), ((1, 2), list[int], (1, 2)), (["a"], list[Path], [Path("a")]),
    (np.linspace(0, 1, 3), list[float], [0.0, 0.5, 1.0]), ("0.1", float | str, "0.1"),
])
def test_a_value_from_python_or_json_is_taken_as_its_annotation_has_it(value, annotation, taken):
    found = take("x", value, annotation)
    assert found == taken and type(found) is type(taken)


@pytest.mark.parametrize(("value", "annotation", "message"), [
    ("3", int, "x must be an integer, got '3'"), (True, int, "an integer, got True"), (2.5, int, "an integer, got 2.5"),
    (math.nan, float, "a number, got nan"), (math.inf, float, "a number, got inf"), (False, float, "a number, got False"),
    (2, Annotated[float, Range(0, 1)] | str, r"a number in \[0, 1\] or text, got 2"), (1, bool, "true or false, got 1"),
    ("adb", Literal["adv", "none"] | None, "one of adv, none, got 'adb'"), ("", Path, "a path, got ''"),
    (3, Path, "a path, got 3"), (b"x", Path, "a path, got b'x'"), ("0,1", list[float], "a list of numbers, got '0,1'"),
    ([], list[float], "a list of numbers"), ([0, 2], list[Annotated[float, Range(0, 1)]], r"a list of numbers in \[0, 1\]"),
    pytest.param(10 ** 400, float, "a number, got 10", id="huge"), ("a,b", list[Path], "a list, each a path, got 'a,b'"),
    (None, int, "an integer, got None"), ({}, str, "text, got {}"),
])
def test_a_value_of_another_kind_is_refused_with_what_was_expected(value, annotation, message):
    with pytest.raises(InputError, match=message):
        take("x", value, annotation)
