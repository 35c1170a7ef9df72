"""Tests of heat maps: a cell says rho, what the paper says, or why there is none, in a colour that can be read."""
import pytest
from result_tables import ADV, all_tables, row
from test_figures import drawing

from pyro_advbnn.reporting import transfer_figure
from pyro_advbnn.reporting.csv_tables import TABLES

pytest.importorskip("matplotlib")


def test_the_heat_map_shows_rho_the_note_where_there_is_none_and_the_papers_values():
    axes, = drawing("transfer", all_tables()["transfer"]).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("0.62") == 6 and texts.count("drop 1.2 ±\n1.9 points") == 3
    assert texts.count("paper ≈ 0.5–0.6") == 2
    assert [tick.get_text().replace("\n", " ") for tick in axes.get_yticklabels()] == ["adversarial training", "BNN", "Adv-BNN"]


def luminance(color):
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_rho_of_exactly_one_is_the_darkest_cell_and_texts_are_readable_on_every_cell():
    from matplotlib.colors import to_rgb
    for rho in (None, *(percent / 100 for percent in range(101))):
        cell = row(ADV, 300) | {"source": "adv", "accuracy_clean": 0.8, "accuracy_white_box": 0.3, "rho": rho}
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
    (_, part), = transfer_figure.transfer_maps([*rows, rows[0] | {"weights": "new"}])
    assert len(part) == 9 and part[0]["weights"] == "new"
