"""Tests of the figures and summaries of the verb uncertainty, from rows that are made up."""
from result_tables import ADV, ADVBNN, all_tables, doubt_tables, folder_of

from pyro_advbnn.reporting import figures, summaries
from pyro_advbnn.reporting.csv_tables import TABLES


def drawing(name, rows):
    csv_name, draw = figures.FIGURES[name]
    return draw([dict.fromkeys(TABLES[csv_name]) | one for one in rows[csv_name]])


def test_the_reliability_diagram_shows_each_bin_and_tells_the_attackers_apart():
    figure = drawing("calibration", doubt_tables((ADVBNN,)))
    diagonal, *lines = figure.axes[0].lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [100, 100]]
    assert [line.get_xydata().tolist() for line in lines] == [
        [[37.5, 20], [87.5, 60]], [[37.5, 10], [87.5, 50]], [[37.5, 0], [87.5, 40]]]
    assert [text.get_text() for text in figure.legends[0].texts] == ["clean", "ε = 0.035, pgd", "ε = 0.035, pgd-confident"]
    assert [ax.get_title(loc="left") for ax in drawing("calibration", all_tables()).axes] == [
        "adversarial training", "BNN", "Adv-BNN"]


def test_the_rejection_curves_have_a_panel_for_each_score():
    figure = drawing("rejection", doubt_tables((ADVBNN,)))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["doubt: entropy of the prediction", "doubt: mutual information"]
    clean = figure.axes[0].lines[0].get_xydata()
    assert clean.round(6).tolist() == [[0, 90], [0.5, 90], [0.9, 90]] and len(figure.axes[0].lines) == 3


def test_the_detection_figure_has_a_point_for_each_kind_of_images():
    rows = doubt_tables((ADVBNN,))
    figure = drawing("detection", rows)
    points, chance = figure.axes[0].lines[0], figure.axes[0].lines[-1]
    assert points.get_xdata().tolist() == [0.875, 0.75, 0.75, 0.625, 0.625] and set(chance.get_xdata()) == {0.5}
    assert points.get_ydata().tolist() == [0, 1, 2, 3, 4]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [
        "noise", "pgd, ε = 0.035", "pgd, ε = 0.035, where wrong", "pgd-confident, ε = 0.035",
        "pgd-confident, ε = 0.035, where wrong"]
    rows = doubt_tables((ADV,))
    assert drawing("detection", rows | {"detection": [one | {"auroc": None} for one in rows["detection"]]}) is None


def test_the_detection_figure_tells_the_checkpoints_of_a_run_apart():
    rows = doubt_tables((ADVBNN,))["detection"]
    figure = drawing("detection", {"detection": [*rows, *(one | {"checkpoint": "advbnn/checkpoint.pt"} for one in rows)]})
    assert [text.get_text() for text in figure.legends[0].texts] == ["Adv-BNN, best.pt", "Adv-BNN, checkpoint.pt"]


def test_the_detection_figure_has_all_that_was_measured_and_tells_the_attackers_draws_apart():
    rows = doubt_tables((ADVBNN,))["detection"]
    more = [one | {"attack_samples": 50, "auroc": 0.6} for one in rows if one["attack_samples"]]
    figure = drawing("detection", {"detection": rows + more})
    drawn = [len(points.lines[0].get_xdata()) for ax in figure.axes for points in ax.containers]
    assert sum(drawn) == len(rows + more)
    assert [text.get_text() for text in figure.legends[0].texts] == [            # no attacker draws for foreign images
        "Adv-BNN", "Adv-BNN, 10 draws per gradient", "Adv-BNN, 50 draws per gradient"]


def test_the_detection_figure_tells_the_weights_of_confidence_apart():
    rows = doubt_tables((ADVBNN,))["detection"]
    more = [one | {"confidence_weight": 100.0} for one in rows if one.get("confidence_weight")]
    assert [text.get_text() for text in drawing("detection", {"detection": rows + more}).legends[0].texts] == [
        "Adv-BNN", "Adv-BNN, confidence weight 10", "Adv-BNN, confidence weight 100"]


def test_a_run_has_one_name_and_colour_in_all_panels_of_the_detection_figure():
    rows = doubt_tables((ADVBNN,))["detection"]
    single = [one | {"num_samples": 1} for one in rows if one["score"] == "entropy"]     # no information in one
    figure = drawing("detection", {"detection": single + rows})
    assert [text.get_text() for text in figure.legends[0].texts] == [
        "Adv-BNN, 1 draw per prediction", "Adv-BNN, 20 draws per prediction"]
    entropy, information = ([points.lines[0].get_color() for points in ax.containers] for ax in figure.axes)
    assert len(set(entropy)) == 2 and information == entropy[1:]


def test_the_summaries_hold_the_numbers_and_both_attackers(tmp_path):
    found = {each.name: each for each in summaries.summaries(folder_of(tmp_path, doubt_tables((ADV, ADVBNN))))}
    told = [dict(zip(found["uncertainty"].columns, cells, strict=True)) for cells in found["uncertainty"].rows]
    assert [(line["images"], line["NLL"]) for line in told[3:]] == [
        ("clean", "0.900"), ("pgd, ε = 0.035", "1.900"), ("pgd-confident, ε = 0.035", "2.900")]
    assert (told[0]["entropy"], told[0]["expected entropy"], told[0]["mutual information"]) == ("1.500", "1.250", "0.2500")
    assert [line["run"] for line in told] == ["adversarial training"] * 3 + ["Adv-BNN"] * 3
    assert "1,000 images" in found["uncertainty"].note
    cells = [cells[1:] for cells in found["detection"].rows]
    assert ["pgd-confident, ε = 0.035, where wrong", "mutual information", "0.625 [0.500, 0.938]", "0.750", "1.5000",
            "1.7500", "400"] in cells
