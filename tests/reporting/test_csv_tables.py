"""Tests of tables: rows come back as they were, are found by their settings; files of other columns are refused."""
import csv

import pytest

from pyro_advbnn.reporting import csv_tables
from pyro_advbnn.reporting.csv_tables import Table
from pyro_advbnn.system.errors import InputError

ROW = {"run": "a,b", "dataset": "digits", "network": "convnet", "defense": "adv", "alpha": 0.1, "prior_std": "fan_in",
       "checkpoint": "a,b/best.pt", "weights": "0123456789ab", "source": "target", "attack": "pgd", "epsilon": 0.2,
       "num_steps": 20, "step_size": 0.025, "attack_samples": 1, "num_samples": 20, "seed": 0,
       "num_examples": 360, "images": "abcdef012345", "batch_size": 500,
       "accuracy": 1 / 3, "accuracy_low": 0.25, "accuracy_high": 0.5, "reaches_ball": True}


def test_a_row_comes_back_with_its_types_and_the_columns_are_the_row_fields(tmp_path):
    Table(tmp_path, "accuracy").add([ROW])
    row, = csv_tables.read(tmp_path, "accuracy")
    assert tuple(row) == csv_tables.ROW_FIELDS == tuple(ROW)
    assert row == ROW | {"accuracy": 0.333333333} and isinstance(row["num_steps"], int)
    with (tmp_path / "evaluation" / "accuracy.csv").open(newline="") as file:
        line, = csv.DictReader(file)
    assert line == {name: str(value) for name, value in ROW.items()} | {"accuracy": "0.333333333", "reaches_ball": "true"}


def test_missing_cells_are_none_and_names_that_look_like_numbers_stay_text(tmp_path):
    Table(tmp_path, "accuracy").add([ROW | {"run": "1", "weights": "000000000000", "accuracy": 1e-12, "alpha": None}])
    row, = csv_tables.read(tmp_path, "accuracy")
    assert (row["run"], row["weights"], row["accuracy"], row["alpha"]) == ("1", "000000000000", 1e-12, None)


def test_rows_are_added_and_those_before_stay_byte_for_byte(tmp_path):
    table = Table(tmp_path, "accuracy")
    table.add([ROW])
    before = table.path.read_text()
    Table(tmp_path, "accuracy").add([ROW | {"seed": 1}, ROW | {"seed": 2}])
    assert table.path.read_text().startswith(before)
    assert [row["seed"] for row in csv_tables.read(tmp_path, "accuracy")] == [0, 1, 2]


def test_a_row_is_found_by_its_settings_whatever_its_results(tmp_path):
    table = Table(tmp_path, "accuracy")
    table.add([ROW])
    settings = {name: value for name, value in ROW.items() if not name.startswith(("accuracy", "reaches"))}
    assert table.find(settings)["accuracy"] == 0.333333333
    for name, other in {"seed": 1, "weights": "ba9876543210", "epsilon": 0.2001, "num_examples": 359, "run": "b"}.items():
        assert table.find(settings | {name: other}) is None
    assert Table(tmp_path, "accuracy").find(settings | {"accuracy": 0.9}) == csv_tables.read(tmp_path, "accuracy")[0]


def test_a_row_of_the_same_settings_takes_the_place_of_the_older_one(tmp_path):
    table = Table(tmp_path, "accuracy")
    table.add([ROW, ROW | {"seed": 1}])
    table.add([ROW | {"accuracy": 0.4}])
    rows = csv_tables.read(tmp_path, "accuracy")
    assert [(row["seed"], row["accuracy"]) for row in rows] == [(0, 0.4), (1, 0.333333333)] == [
        (row["seed"], row["accuracy"]) for row in table.rows]


@pytest.mark.parametrize("name", csv_tables.TABLES)
def test_a_full_row_of_every_table_comes_back(tmp_path, name):
    texts = {column for column in csv_tables.TABLES[name] if column in csv_tables._TEXTS}
    row = {column: "true" if column in texts else -1 - i for i, column in enumerate(csv_tables.TABLES[name])}
    row |= {"reaches_ball": False} if "reaches_ball" in row else {}
    Table(tmp_path, name).add([row])
    assert csv_tables.read(tmp_path, name) == [row]


def test_measured_norms_and_examples_are_results(tmp_path):
    for name in ("gradients", "examples"):
        table = Table(tmp_path, name)
        row = {column: 1.0 if column not in csv_tables._TEXTS else "x" for column in csv_tables.TABLES[name]}
        table.add([row])
        wanted = {"gradients": {"l1_norm": 2.0}, "examples": {"clean_prediction": "y", "adversarial_image": "z"}}[name]
        assert table.find(row | wanted) and not table.find(row | {"seed": 2})


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


HEADER = ",".join(csv_tables.ROW_FIELDS).encode() + b"\n"
WAY_ON = "; move the file away, and what wrote it computes its rows again"


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\n", HEADER[:-9]])
def test_a_foreign_file_is_refused_with_the_way_on_and_unchanged(tmp_path, content):
    path = tmp_path / "evaluation" / "accuracy.csv"
    path.parent.mkdir()
    path.write_bytes(content)
    assert refusal(tmp_path) == f"{path}: its columns are not those of a table of this version{WAY_ON}"
    assert path.read_bytes() == content


@pytest.mark.parametrize(("content", "told"), [
    (HEADER + b"adv,cifar10,vg", f": row 1 has 3 cells, not {len(csv_tables.ROW_FIELDS)}"),
    (HEADER.decode().encode("utf-16"), " cannot be read: "), (HEADER + b"a" * 140_000, " cannot be read: ")])
def test_a_damaged_file_is_refused_by_what_is_wrong(tmp_path, content, told):
    path = tmp_path / "evaluation" / "accuracy.csv"
    path.parent.mkdir()
    path.write_bytes(content)
    message = refusal(tmp_path)
    assert message.startswith(f"{path}{told}") and message.endswith(WAY_ON)


def refusal(folder):
    """How the table of accuracies in folder is refused."""
    with pytest.raises(InputError) as error:
        csv_tables.read(folder, "accuracy")
    return str(error.value)


def test_no_file_is_no_rows(tmp_path):
    assert csv_tables.read(tmp_path, "transfer") == []
    assert list(tmp_path.iterdir()) == []
