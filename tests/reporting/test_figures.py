"""Tests of plots: what is drawn is what the csv says, the same bytes each time, and nothing needs torch."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from result_tables import ADV, ADVBNN, BNN, accuracy_rows, all_tables, folder_of, measured, row, run_fields

from pyro_advbnn.reporting import curves, figure_style, figures
from pyro_advbnn.reporting.csv_tables import TABLES
from pyro_advbnn.system import json_files

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[2]
CONFIG = {"dataset": "cifar10", "defense": "advbnn", "network": "vgg16", "recipe": "ours", "settings": {"width": 16},
          "classifier": {}, "environment": {}}
EPOCHS = [{"epoch": epoch, "nll": 2 / epoch, "kl_per_image": 0.25, "snr": 10.0**epoch, "held_out_accuracy": epoch / 4,
           "held_out_robust_accuracy": epoch / 8, "train_accuracy": 1.0, "train_robust_accuracy": 0.5} for epoch in (1, 2, 3)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = folder_of(tmp_path_factory.mktemp("drawn"), all_tables())
    json_files.write_json(folder / "config.json", CONFIG)
    json_files.write_jsonl(folder / "metrics.jsonl", EPOCHS)
    return folder, figures.draw(folder)


def drawing(name, rows):
    """The figure as an object, from rows as `tables.read` gives them."""
    return figures.FIGURES[name][1]([dict.fromkeys(TABLES[figures.FIGURES[name][0]]) | one for one in rows])


def line(axes, marker, style=None):
    """The data of the one line of that marker and, where given, that style."""
    found, = (each for each in axes.lines if each.get_marker() == marker and style in (None, each.get_linestyle()))
    return [(round(x, 6), round(y, 6)) for x, y in found.get_xydata().tolist()]


def test_every_figure_is_drawn_as_svg_and_png_and_all_are_listed(drawn):
    folder, paths = drawn
    assert paths == [folder / "figures" / f"{name}.{kind}" for name in figures.FIGURES for kind in ("svg", "png")]
    assert all(path.stat().st_size > 2000 for path in paths)
    assert sorted(path.name for path in (folder / "figures").iterdir()) == sorted(path.name for path in paths)


def test_drawing_again_gives_the_same_bytes_in_another_process_too_whatever_its_hash_seed_and_matplotlibrc(drawn, tmp_path):
    """Importing and drawing needs no torch."""
    folder, paths = drawn
    before = {path: path.read_bytes() for path in paths}
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nfont.size: 20\nsvg.fonttype: path\nlines.markeredgewidth: 4\n")
    code = f"import sys; from pyro_advbnn.reporting import figures; print('matplotlib' in sys.modules); " \
           f"figures.draw({str(folder)!r}); " \
           "print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True,
                            env=os.environ | {"PYTHONHASHSEED": "17", "MATPLOTLIBRC": str(tmp_path)})
    assert result.stdout.split() == ["False"] * 3
    assert {path: path.read_bytes() for path in paths} == before
    last = figures.draw(folder, list(figures.FIGURES)[-3:])          # without those that were drawn before them
    assert len(last) == 6 and all(path.read_bytes() == before[path] for path in last)


def test_the_accuracy_figure_holds_the_rows_in_percent_and_clean_accuracy_begins_each_curve():
    axes, = drawing("accuracy", all_tables()["accuracy"]).axes
    assert line(axes, "s") == [(0, 80), (0.015, 59), (0.035, 39), (0.07, 14)]
    assert line(axes, "o", "--") == [(0, 80), (0.015, 59), (0.035, 39), (0.07, 14)]
    assert line(axes, "o", "-") == [(0, 80), (0.015, 50), (0.035, 30), (0.07, 5)]
    lowest = min(band.get_paths()[0].vertices[:, 1].min() for band in axes.collections)
    assert lowest == pytest.approx(100 * measured(50)["accuracy_low"])


def test_published_numbers_are_hollow_markers_in_the_colour_of_their_defence():
    axes, = drawing("accuracy", all_tables()["accuracy"]).axes
    hollow = {(each.get_marker(), each.get_color()): each.get_ydata() for each in axes.lines
              if each.get_markerfacecolor() == "none"}
    assert {key: [round(float(y), 1) for y in ys] for key, ys in hollow.items()} == {
        ("o", "#0072b2"): [80.3, 58.3, 31.1, 15.5, 10.3], ("o", "#d55e00"): [79.7, 68.7, 45.4, 26.9, 18.6],
        ("D", "#d55e00"): [79.7, 64.2, 37.7, 16.3, 8.1]}
    axes, = drawing("accuracy", accuracy_rows(ADVBNN)).axes                 # one run: a colour for each number of draws
    colors = {(each.get_marker(), each.get_markerfacecolor() == "none"): each.get_color() for each in axes.lines}
    assert colors["o", True] == colors["o", False] != colors["D", True] == colors["s", False]
    own = drawing("accuracy", [one | {"dataset": "digits"} for one in all_tables()["accuracy"]]).axes[0]
    assert not [each for each in own.lines if each.get_markerfacecolor() == "none"]


def test_the_density_integrates_to_one_and_the_prior_is_a_line():
    axes, = drawing("log_std", all_tables()["density"]).axes
    assert [each.get_xydata().tolist() for each in axes.lines] == [[[-3.75, 0.5], [-3.25, 1.0], [-2.75, 0.5]]] * 2
    prior, = axes.collections
    assert prior.get_segments()[0][:, 0].tolist() == [-3.0, -3.0]


def test_a_prior_of_several_stds_has_lines_as_high_as_their_shares():
    rows = [one for one in all_tables()["density"] if one["run"] == "bnn" and one["quantity"] == "log_std"]
    rows += [{**run, "quantity": "prior_log_std", "layer": "all", "left": left, "right": left, "share": share}
             for run, left, share in ((BNN, -3.0, 0.8), (BNN, -2.0, 0.2), (run_fields("other", "bnn"), -1.0, 1.0))]
    axes, = drawing("log_std", rows).axes
    heights = [segment[1, 1] for segment in axes.collections[0].get_segments()]
    assert [height / heights[2] for height in heights] == pytest.approx([0.8, 0.2, 1])       # of two runs, on one scale


def test_alpha_begins_at_zero_and_its_runs_are_one_curve_per_radius():
    axes, = drawing("alpha", all_tables()["alpha"]).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1/50", "1"]
    assert [each.get_ydata().tolist() for each in axes.lines] == [[70, 70, 71], [70, 70, 71]]
    axes, = drawing("prior_std", all_tables()["prior_std"]).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.05", "0.15", "fan_in"]


def test_a_curve_of_one_point_has_its_interval():
    rows = [row(run_fields(name, "adv"), number, 0.035, 1) for name, number in (("one", 400), ("other", 500))]
    axes, = drawing("accuracy", rows).axes
    bars = [collection.get_segments()[0][:, 1] for collection in axes.collections]
    known = [[100 * measured(number)[f"accuracy_{end}"] for end in ("low", "high")] for number in (400, 500)]
    assert [bar.tolist() for bar in bars] == [pytest.approx(ends) for ends in known]


def test_runs_that_share_an_alpha_are_points_and_no_zigzag():
    rows = all_tables()["alpha"] + [row(run_fields("again", "advbnn", alpha=1.0), 650, 0.035, 10)]
    axes, = drawing("alpha", rows).axes
    assert sorted(each.get_linestyle() for each in axes.lines if len(each.get_xdata()) == 4) == ["None"]


def test_steps_and_draws_are_drawn_against_their_column_on_a_logarithmic_axis():
    axes, = drawing("steps", [one for one in all_tables()["steps"] if one["run"] == "adv"]).axes
    assert axes.get_xscale() == "log" and line(axes, "o") == [(3, 50), (20, 49.8), (1000, 40)]
    panels = drawing("ensemble", all_tables()["ensemble"]).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["clean", "ε = 0.035"]
    assert line(panels[1], "o") == [(1, 30.1), (10, 31), (100, 40)]


def test_pruning_has_a_panel_for_each_prediction_and_radius():
    titles = [axes.get_title(loc="left") for axes in drawing("pruning", all_tables()["pruning"]).axes]
    assert titles == ["prediction averaged over draws", "prediction of the mean network"]


def test_the_bars_of_gradients_are_as_long_as_the_norms():
    axes, = drawing("gradients", all_tables()["gradients"]).axes
    assert [bar.get_width() for bar in axes.patches] == [20.0] * 3 + [33.0] * 3


def test_layers_have_one_row_each_and_panels_for_weight_and_bias():
    panels = drawing("log_std_by_layer", all_tables()["layers"]).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["weight", "bias"]
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == ["features.0"]
    assert set(panels[0].lines[0].get_xdata()) == {-3.6}


@pytest.mark.parametrize(("left_out", "expected"), [
    ((), {"nll in training (nats per image)": [[2, 1, 2 / 3]], "KL (nats per image)": [[0.25] * 3],
          "signal-to-noise of the weights": [[10, 100, 1000]],
          "accuracy on held-out images (%)": [[25, 50, 75], [12.5, 25, 37.5]]}),
    (("kl_per_image", "snr", "held_out_accuracy", "held_out_robust_accuracy"), {
        "nll in training (nats per image)": [[2, 1, 2 / 3]], "accuracy on training images (%)": [[100] * 3, [50] * 3]})])
def test_the_course_of_a_training_has_a_panel_for_each_number_that_its_epochs_hold(left_out, expected):
    rows = [CONFIG | row | {name: None for name in left_out} for row in EPOCHS]
    figure = figures.FIGURES["training"][1]([*rows, CONFIG | {"epoch": 4, "nll": None, "snr": None}])
    assert {ax.get_title(loc="left"): [line.get_ydata().tolist() for line in ax.lines] for ax in figure.axes} == expected
    assert [text.get_text() for text in figure.legends[0].texts] == ["clean", "under PGD"]
    assert {ax.get_title(loc="left") for ax in figure.axes if ax.get_yscale() == "log"} == {
        title for title in expected if title.startswith("signal")}
    assert figures.FIGURES["training"][1]([{"epoch": 1}]) is None


def test_texts_stay_texts_and_no_date_is_written(drawn):
    folder, _ = drawn
    for path in (folder / "figures").glob("*.svg"):
        svg = path.read_text()
        assert "CIFAR-10" in svg and figure_style.INK in svg and "<dc:date>" not in svg


def test_only_the_figures_asked_for_are_drawn_and_none_without_rows(tmp_path):
    assert figures.draw(tmp_path) == [] and not list(tmp_path.iterdir())
    folder_of(tmp_path, {"accuracy": accuracy_rows(ADV, (1,)), "steps": []})
    assert [path.name for path in figures.draw(tmp_path)] == ["accuracy.svg", "accuracy.png"]
    assert figures.draw(tmp_path, ["steps", "alpha"]) == []


def test_points_that_others_have_in_between_are_not_joined_by_a_line():
    every, few = [0.0, 0.01, 0.02, 0.03, 0.04, 0.05], [0.0, 0.04]
    rows = [row(run, 500, epsilon, draws) for run, draws, radii in ((ADV, 1, every), (ADVBNN, 1, every), (ADVBNN, 10, few))
            for epsilon in radii]
    figure = drawing("accuracy", rows)
    joined = {len(each.get_xdata()): each.get_linestyle() for each in figure.axes[0].lines if len(each.get_xdata()) in (2, 6)}
    assert joined[6] != "None" == joined[2]
    legend = figure.legends[0]
    labels = {text.get_text(): handle.get_linestyle() for text, handle in zip(legend.texts, legend.legend_handles)}
    assert labels["10 draws per gradient"] == "None" != labels["1 draw per gradient"]
    other = run_fields("rse", "rse")
    legend = drawing("accuracy", rows + [row(other, 500, epsilon, 10) for epsilon in every]).legends[0]
    labels = {text.get_text(): handle.get_linestyle() for text, handle in zip(legend.texts, legend.legend_handles)}
    assert (labels["10 draws per gradient"], labels["1 draw per gradient"]) == ("-", "--")


def test_names_of_two_lines_in_the_legend_leave_the_axes_as_high_as_short_ones():
    from matplotlib import rc_context

    def height(name):
        with rc_context(figure_style.STYLE):
            figure = drawing("accuracy", [row(run_fields(f"{name}-{i}", "advbnn"), 500) for i in range(12)])
            figure.draw_without_rendering()
        return figure.axes[0].get_window_extent().height

    assert height("a name of many words " * 4) == pytest.approx(height("a name of one line"), rel=0.1)


def test_many_runs_differ_in_marker_and_a_defence_has_one_colour_in_all_figures():
    runs = [run_fields(f"run-{i}", "advbnn") for i in range(11)]
    found = curves.curves([row(run, 500) for run in (*runs, ADV)], "epsilon")
    look = figure_style.Look(found)
    assert len({look.of(curve)["marker"] for curve in found}) == 12
    assert figure_style.Look(curves.curves([row(ADV, 5), row(ADVBNN, 5)], "epsilon")).of(found[-1])["color"] == "#0072b2"
