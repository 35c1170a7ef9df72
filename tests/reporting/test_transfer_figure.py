"""Tests of heat maps: a cell says rho, what the paper says, or why there is none, in a colour that can be read."""
import pytest
from result_tables import ADV, ADVBNN, all_tables, row, transfer_row
from test_figures import drawing

from pyro_advbnn.reporting import transfer_figure
from pyro_advbnn.reporting.csv_tables import TABLES

pytest.importorskip("matplotlib")


def test_the_heat_map_shows_rho_the_note_where_there_is_none_and_the_papers_values():
    axes, = drawing("transfer", all_tables()["transfer"]).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("0.62") == 4 and texts.count("1.00") == 2 and texts.count("drop 1.2 ±\n3.5 points") == 3
    assert texts.count("paper ≈ 0.5–0.6") == 2
    assert {text.get_position()[0] for text in axes.texts if text.get_text().startswith("drop")} == {1.5}    # target BNN
    assert [tick.get_text().replace("\n", " ") for tick in axes.get_yticklabels()] == ["adversarial training", "BNN", "Adv-BNN"]


def luminance(color):
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_rho_of_exactly_one_is_the_darkest_cell_and_texts_are_readable_on_every_cell():
    from matplotlib.colors import to_rgb
    for rho in (None, *(percent / 100 for percent in range(101))):
        transferred, white_box = (400, None) if rho is None else (800 - 500 * rho, 0.3)
        cell = row(ADV, transferred) | {"source": "other", "accuracy_clean": 0.8, "accuracy_white_box": white_box}
        axes, = drawing("transfer", [cell]).axes
        shade, text = axes.patches[0].get_facecolor()[:3], to_rgb(axes.texts[0].get_color())
        low, high = sorted(map(luminance, (shade, text)))
        assert (high + 0.05) / (low + 0.05) > 4.35
    assert [round(255 * value) for value in shade] == [0x0b, 0x3c, 0x68]


def test_transfer_of_other_settings_is_a_map_of_its_own_and_of_a_run_trained_anew_the_newest_row_stands():
    rows = [dict.fromkeys(TABLES["transfer"]) | one for one in all_tables()["transfer"]]
    (words, part), = transfer_figure.transfer_maps(rows)
    assert (words, part) == ({}, rows)
    more = [one | {"attack_samples": 1} for one in rows if one["source"] != "adv"]
    groups = transfer_figure.transfer_maps(rows + more)
    assert [words["attack_samples"] for words, _ in groups] == ["1 draw per gradient", "10 draws per gradient"]
    assert [len(part) for _, part in groups] == [9, 9]                   # deterministic sources belong to both
    noisy = [one | {"images": "noisy"} for one in rows]
    groups = transfer_figure.transfer_maps([one | {"images": "clean"} for one in rows] + noisy)
    assert [words for words, _ in groups] == [{"images": "images clean"}, {"images": "images noisy"}]
    (_, part), = transfer_figure.transfer_maps([*rows, rows[0] | {"weights": "new"}])
    assert len(part) == 9 and part[0]["weights"] == "new"


def test_rho_is_by_the_white_box_attack_of_its_own_map_whatever_attacked_since():
    """The row of a deterministic source stands in both maps, and says what the last call wrote into it."""
    few, many = [[{**transfer_row(source, run), "attack_samples": draws if source is ADVBNN else 1} for source in (ADV, ADVBNN)
                  for run in (ADV, ADVBNN)] for draws in (1, 10)]
    many[3] |= {"accuracy": 0.2, "accuracy_white_box": 0.2}
    many[1] |= {"accuracy_white_box": 0.2, "rho": 0.31 / 0.6}
    found = transfer_figure.transfer_maps([*few, *many])
    rates = [{(one["source"], one["run"]): round(one["rho"], 2) for one in part} for _, part in found]
    assert [each["adv", "advbnn"] for each in rates] == [0.62, 0.52] and {each["advbnn", "advbnn"] for each in rates} == {1.0}


def test_checkpoints_of_a_run_are_in_maps_of_their_own_and_a_run_with_one_is_in_both():
    last = {"advbnn/best.pt": "advbnn/checkpoint.pt"}
    rows = [{**transfer_row(source, run), "attack_samples": 1} for source in (ADV, ADVBNN) for run in (ADV, ADVBNN)]
    later = [one | {name: last.get(one[name], one[name]) for name in ("source_checkpoint", "checkpoint")} for one in rows[1:]]
    found = transfer_figure.transfer_maps([*rows, *later])
    assert [words for words, _ in found] == [{"checkpoint": "best.pt"}, {"checkpoint": "checkpoint.pt"}]
    assert [len(part) for _, part in found] == [4, 4]
    assert {one["checkpoint"] for one in found[0][1]} == {"adv/best.pt", "advbnn/best.pt"}
