"""Tests of text tables: numbers as readers know them."""

import pytest

from pyro_advbnn.cli import text_tables


def test_a_table_aligns_its_columns_under_their_titles():
    rows = [{"a": 1, "b": "long text"}, {"a": 1000, "b": ""}]
    assert text_tables.table(rows, {"first": lambda row: row["a"], "b": lambda row: row["b"]}) == (
        "first          b\n"
        "    1  long text\n"
        " 1000           ")


def test_a_number_is_shown_with_its_interval():
    row = {"accuracy": 0.98765, "accuracy_low": 0.9, "accuracy_high": 1.0}
    assert text_tables.with_interval(row) == "98.8 [90.0, 100.0]"
    assert text_tables.with_interval(row, "accuracy", "{:.3f}".format) == "0.988 [0.900, 1.000]"
    assert text_tables.with_interval({"auroc": None}, "auroc") == "-"


@pytest.mark.parametrize(("text", "expected"), [
    (text_tables.share(0.5), "50.0"), (text_tables.share(None), "-"), (text_tables.decimal(0.6249), "0.62"),
    (text_tables.fraction(0.02), "1/50"), (text_tables.fraction(0.3), "0.3"), (text_tables.fraction(1), "1"),
    (text_tables.fraction(1 / 500), "1/500"), (text_tables.fraction(0.15), "0.15"), (text_tables.fraction(0.0007), "0.0007"),
    (text_tables.counted(1, "draw", " per gradient"), "1 draw per gradient"),
    (text_tables.counted(1000, "image"), "1,000 images"),
    (text_tables.shown(0.123456), "0.1235"), (text_tables.shown(""), "-"), (text_tables.shown(12), "12"),
    (text_tables.count(66026), "66,026"), (text_tables.count(None), "-"),
])
def test_numbers_are_told_as_readers_know_them(text, expected):
    assert text == expected


@pytest.mark.parametrize(("seconds", "told"), [
    (0.25, "0.2 s"), (59.96, "1 min 00 s"), (3599.7, "1 h 00 min"), (7384, "2 h 03 min")])
def test_times_are_told_as_people_tell_them(seconds, told):
    assert text_tables.duration(seconds) == told
