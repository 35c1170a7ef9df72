"""Tests of timings: medians, ratios and shares are those of the numbers that go in."""
import csv

import pytest

from pyro_advbnn.experiments import timings
from pyro_advbnn.reporting import csv_tables


def row(contestant, wall, precision="fp32", batch_size=32, cpu=2.0, **known):
    return timings.row(contestant, precision, batch_size, [(wall, cpu * wall)], **known)


def test_a_row_holds_the_medians_and_what_follows_from_them():
    times = [(1.0, 8.0), (5.0, 2.0), (2.0, 4.0)]
    made = timings.row("adv-bnn", "bf16", 32, times, flops=6e9, peak_memory=7, parts={"attack": 1.5})
    assert set(made) == set(timings.FIELDS)
    assert (made["wall_s"], made["cpu_s"], made["images_per_second"]) == (2.0, 4.0, 16.0)
    assert (made["peak_memory_bytes"], made["attack_s"], made["update_s"]) == (7, 1.5, None)
    assert (made["flops"], made["flops_per_second"]) == (6e9, 3e9)


def test_ratios_are_to_the_floor_of_the_same_batch_size_and_precision():
    rows = [row("deterministic", 2.0), row("adv-bnn", 3.0, cpu=4.0), row("adv-bnn", 1.0, "bf16"),
            row("deterministic", 0.8, "bf16"), row("adv-bnn", 9.0, batch_size=128)]
    timings.set_ratios(rows)
    assert [made["wall_ratio"] for made in rows] == [1.0, 1.5, pytest.approx(1.25), 1.0, None]
    assert rows[1]["cpu_ratio"] == 3.0 and rows[1]["floor"] == "deterministic" and rows[4]["floor"] is None


def test_a_share_is_that_of_the_matrix_products_of_the_same_precision():
    rows = [row("adv-bnn", 2.0, flops=6e9), row("adv-bnn", 1.0, "bf16", flops=6e9), row("normals", 1.0),
            row("matmul", 1.0, flops=12e9), row("matmul", 1.0, "bf16", flops=60e9)]
    timings.set_ratios(rows)
    assert [made["matmul_share"] for made in rows] == [0.25, 0.1, None, 1, 1]
    assert rows[2]["images_per_second"] is rows[3]["images_per_second"] is rows[2]["flops_per_second"] is None


def test_comparisons_tell_speed_over_other_ways_to_write_it():
    rows = [row("adv-bnn", 2.0), row("plain-pyro", 3.0, cpu=4.0), row("authors", 5.0), row("adv-bnn", 1.0, "bf16"),
            row("plain-pyro", 2.5, "bf16")]
    compared = timings.comparisons(rows)
    assert [(c["precision"], c["other"], c["wall_ratio"]) for c in compared] == [
        ("fp32", "plain-pyro", 1.5), ("fp32", "authors", 2.5), ("bf16", "plain-pyro", 2.5), ("bf16", "authors", 5.0)]
    assert timings.sentences(compared).splitlines()[0] == (
        "batch 32, fp32: adv-bnn is 1.50 times as fast as plain-pyro (CPU time 3.00)")
    assert "bf16: adv-bnn is 5.00 times as fast as authors in fp32 (CPU" in timings.sentences(compared)


def test_a_prediction_is_compared_with_forwards_and_normals_together():
    compared, = timings.comparisons([row("prediction", 2.1), row("bare forwards", 1.5), row("normals", 0.5)])
    assert compared["wall_ratio"] == pytest.approx(2.0 / 2.1) == pytest.approx(compared["cpu_ratio"])
    assert compared["other"] == "bare forwards + normals"


def test_the_csv_has_a_line_per_row_and_empty_cells_for_what_was_not_measured(tmp_path):
    csv_tables.write(tmp_path / "b.csv", timings.FIELDS, [row("adv-bnn", 0.1, parts={"attack": 0.05}), row("normals", 0.2)])
    with (tmp_path / "b.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == timings.FIELDS
    assert (lines[0]["wall_s"], lines[0]["attack_s"]) == ("0.1", "0.05")
    assert (lines[1]["attack_s"], lines[1]["images_per_second"]) == ("", "")


def test_tables_print_milliseconds_and_ratios():
    rows = [row("deterministic", 0.2, flops=1e9, peak_memory=3 * 2**20), row("matmul", 0.1, flops=2e9),
            row("adv-bnn", 0.25, cpu=4.0, parts=dict.fromkeys(timings.PARTS, 0.05) | {"update": 0.025})]
    timings.set_ratios(rows)
    header, floor, _, ours = (line.split() for line in timings.table(rows).splitlines())
    assert floor[3:] == ["200.0", "400.0", "160.0", "1.000", "1.000", "deterministic", "5", "25.0", "3.0", "-", "-", "-"]
    assert ours[3:] == ["250.0", "1000.0", "128.0", "1.250", "2.500", "deterministic", "-", "-", "-", "20.0", "10.0", "20.0"]
