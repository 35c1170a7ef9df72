"""Tests of tables: rows come back as they were, are found by their settings, and damage is refused."""
import csv

import pytest

from pyro_advbnn import tables
from pyro_advbnn.errors import InputError
from pyro_advbnn.tables import Table

ROW = {"run": "a,b", "dataset": "digits", "network": "convnet", "defense": "adv", "alpha": 0.1, "prior_std": "fan_in",
       "checkpoint": "a,b/best.pt", "weights": "0123456789ab", "source": "target", "attack": "pgd", "epsilon": 0.2,
       "num_steps": 20, "step_size": 0.025, "attack_samples": 1, "num_samples": 20, "seed": 0, "num_examples": 360,
       "accuracy": 1 / 3, "accuracy_low": 0.25, "accuracy_high": 0.5, "reaches_ball": True}


def test_a_row_comes_back_with_its_types_and_the_columns_are_the_row_fields(tmp_path):
    Table(tmp_path, "accuracy").add([ROW])
    row, = tables.read(tmp_path, "accuracy")
    assert tuple(row) == tables.ROW_FIELDS == tuple(ROW)
    assert row == ROW | {"accuracy": 0.333333333} and isinstance(row["num_steps"], int)
    with (tmp_path / "evaluation" / "accuracy.csv").open(newline="") as file:
        line, = csv.DictReader(file)
    assert line == {name: str(value) for name, value in ROW.items()} | {"accuracy": "0.333333333", "reaches_ball": "true"}


def test_missing_cells_are_none_and_names_that_look_like_numbers_stay_text(tmp_path):
    Table(tmp_path, "accuracy").add([{"run": "1", "weights": "000000000000", "accuracy": 1e-12}])
    row, = tables.read(tmp_path, "accuracy")
    assert (row["run"], row["weights"], row["accuracy"], row["alpha"]) == ("1", "000000000000", 1e-12, None)


def test_rows_are_added_and_those_before_stay_byte_for_byte(tmp_path):
    table = Table(tmp_path, "accuracy")
    table.add([ROW])
    before = table.path.read_text()
    Table(tmp_path, "accuracy").add([ROW | {"seed": 1}, ROW | {"seed": 2}])
    assert table.path.read_text().startswith(before)
    assert [row["seed"] for row in tables.read(tmp_path, "accuracy")] == [0, 1, 2]


def test_a_row_is_found_by_its_settings_whatever_its_results(tmp_path):
    table = Table(tmp_path, "accuracy")
    table.add([ROW])
    settings = {name: value for name, value in ROW.items() if not name.startswith(("accuracy", "reaches"))}
    assert table.find(settings)["accuracy"] == 0.333333333
    for name, other in {"seed": 1, "weights": "ba9876543210", "epsilon": 0.2001, "num_examples": 359, "run": "b"}.items():
        assert table.find(settings | {name: other}) is None
    assert Table(tmp_path, "accuracy").find(settings | {"accuracy": 0.9}) == tables.read(tmp_path, "accuracy")[0]


def test_a_row_of_the_same_settings_takes_the_place_of_the_older_one(tmp_path):
    table = Table(tmp_path, "accuracy")
    table.add([ROW, ROW | {"seed": 1}])
    table.add([ROW | {"accuracy": 0.75}])
    rows = tables.read(tmp_path, "accuracy")
    assert [(row["seed"], row["accuracy"]) for row in rows] == [(0, 0.75), (1, 0.333333333)] == [
        (row["seed"], row["accuracy"]) for row in table.rows]


def test_rows_are_selected_by_some_of_their_cells(tmp_path):
    table = Table(tmp_path, "accuracy")
    table.add([ROW, ROW | {"seed": 1}, ROW | {"seed": 2, "alpha": None}])
    assert [row["seed"] for row in table.select(alpha=0.1, run="a,b")] == [0, 1]
    assert [row["seed"] for row in table.select(alpha=None)] == [2]


def test_an_unknown_column_is_a_mistake_of_ours_and_writes_nothing(tmp_path):
    table = Table(tmp_path, "accuracy")
    with pytest.raises(ValueError, match="acuracy"):
        table.add([ROW, {"acuracy": 1}])
    assert not table.path.exists() and table.rows == []


@pytest.mark.parametrize(("text", "message"), [
    ("a,b\n1,2\n", "its columns differ"),
    ("{header}\n1,2\n", "has not 21 cells"),
    ("{header}\n" + "x," * 25 + "\n", "has not 21 cells"),
    ("{header}\n" + "x," * 20 + "x\n", "must be a number, got 'x'"),
])
def test_a_foreign_or_damaged_file_is_refused_and_unchanged(tmp_path, text, message):
    path = tmp_path / "evaluation" / "accuracy.csv"
    path.parent.mkdir()
    path.write_text(text.replace("{header}", ",".join(tables.ROW_FIELDS)))
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        tables.read(tmp_path, "accuracy")
    assert path.read_bytes() == before


def test_no_file_is_no_rows(tmp_path):
    assert tables.read(tmp_path, "transfer") == []
    assert list(tmp_path.iterdir()) == []
