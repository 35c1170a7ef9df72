"""Tests of plots: what is drawn is what the csv says, the same bytes each time, and nothing needs torch."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_advbnn import plots, records
from pyro_advbnn.errors import InputError
from pyro_advbnn.tables import TABLES, Table

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[1]


def run_fields(name, defense, **fields):
    bayesian = {"alpha": 0.1, "prior_std": "0.05"} if defense in ("bnn", "advbnn") else {}
    return {"run": name, "dataset": "cifar10", "network": "vgg16", "defense": defense, "checkpoint": f"{name}/best.pt",
            "weights": f"w-{name}", **bayesian, **fields}


def measured(correct, total=1000):
    low, high = records.wilson_interval(correct, total)
    return {"num_examples": total, "accuracy": correct / total, "accuracy_low": low, "accuracy_high": high}


def row(run, correct, epsilon=0.035, draws=1, **fields):
    """A row of accuracy; clean ones know no attack."""
    attack = {"attack": "pgd", "num_steps": 20, "step_size": 0.007, "attack_samples": draws} if epsilon else {"attack": "none"}
    return {**run, "source": "target", "num_samples": 1 if run["defense"] in ("none", "adv") else 20, "seed": 0,
            "epsilon": epsilon, **attack, **measured(correct), **fields}


ADV, ADVBNN, BNN = run_fields("adv", "adv"), run_fields("advbnn", "advbnn"), run_fields("bnn", "bnn")


def accuracy_rows(run, draws=(1, 10)):
    return [row(run, 800, 0.0), *(row(run, correct - 10 * m, epsilon, m) for m in draws
                                  for epsilon, correct in ((0.015, 600), (0.035, 400), (0.07, 150)))]


def all_tables():
    """Rows of every kind for Adv-BNN, BNN and adversarial training."""
    runs, density = (ADV, BNN, ADVBNN), []
    for run in (BNN, ADVBNN):
        for quantity in ("log_std", "log10_signal_to_noise"):
            density += [{**run, "quantity": quantity, "layer": "all", "left": left, "right": left + 0.5, "share": share}
                        for left, share in ((-4.0, 0.25), (-3.5, 0.5), (-3.0, 0.25))]
        density.append({**run, "quantity": "prior_log_std", "layer": "all", "left": -3.0, "right": -3.0, "share": 1.0})
    layers = [{**run, "layer": layer, "num_weights": 30, "prior_log_std": -3.0, "log_std_mean": -3.5, "log_std_q05": -4.0,
               "log_std_median": -3.6, "log_std_q95": -3.1, "log10_signal_to_noise_median": 0.2}
              for run in (BNN, ADVBNN) for layer in ("all", "features.0.weight", "features.0.bias")]
    return {
        "accuracy": [one for run in runs for one in accuracy_rows(run, (1,) if run is ADV else (1, 10))],
        "transfer": [{**row(run, 400, draws=1 if source is ADV else 10), "source": source["run"], "accuracy_clean": 0.8,
                      "accuracy_white_box": 0.3, "rho": None if run is BNN else 0.62, "note": "drop 1.2 ± 1.9 points"}
                     for source in runs for run in runs],
        "ensemble": [row(run, 300 + n, epsilon, 10, num_samples=n) for run in (BNN, ADVBNN) for epsilon in (0.0, 0.035)
                     for n in (1, 10, 100)],
        "steps": [row(run, 500 - n // 10, num_steps=n) for run in runs for n in (3, 20, 1000)],
        "pruning": [row(run, 500 - int(100 * f), fraction=f, prune_by=by, prediction=prediction) for run in (BNN, ADVBNN)
                    for by in ("std", "signal_to_noise") for prediction in ("posterior", "mean") for f in (0.0, 0.5)],
        "density": density, "layers": layers,
        "alpha": [row(run_fields(f"a{alpha}", "advbnn", alpha=alpha), 700 + int(10 * alpha), epsilon, 10)
                  for alpha in (0.0, 0.02, 1.0) for epsilon in (0.0, 0.035)],
        "prior_std": [row(run_fields(f"p{std}", "advbnn", prior_std=std), 700, 0.035, 10)
                      for std in ("0.05", "0.15", "fan_in")],
        "gradients": [{**run, "split": split, "num_samples": 1, "seed": 0, "num_examples": 100, "l1_norm": norm,
                       "l1_norm_low": norm - 1, "l1_norm_high": norm + 1}
                      for run in runs for split, norm in (("train", 20.0), ("test", 33.0))],
    }


def folder_of(path, tables):
    for name, rows in tables.items():
        Table(path, name).add(rows)
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = folder_of(tmp_path_factory.mktemp("drawn"), all_tables())
    return folder, plots.draw(folder)


def drawing(name, rows):
    """The figure as an object, from rows as `tables.read` gives them."""
    return plots.FIGURES[name][1]([dict.fromkeys(TABLES[plots.FIGURES[name][0]]) | one for one in rows])


def line(axes, marker, style=None):
    """The data of the one line of that marker and, where given, that style."""
    found, = (each for each in axes.lines if each.get_marker() == marker and style in (None, each.get_linestyle()))
    return [(round(x, 6), round(y, 6)) for x, y in found.get_xydata().tolist()]


def test_every_figure_is_drawn_as_svg_and_png_and_all_are_listed(drawn):
    folder, paths = drawn
    assert paths == [folder / "figures" / f"{name}.{kind}" for name in plots.FIGURES for kind in ("svg", "png")]
    assert all(path.stat().st_size > 2000 for path in paths)
    assert sorted(path.name for path in (folder / "figures").iterdir()) == sorted(path.name for path in paths)


def test_drawing_again_gives_the_same_bytes_in_another_process_too_whatever_its_hash_seed_and_matplotlibrc(drawn, tmp_path):
    folder, paths = drawn
    before = [path.read_bytes() for path in paths]
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nfont.size: 20\nsvg.fonttype: path\nlines.markeredgewidth: 4\n")
    code = f"from pyro_advbnn import plots; plots.draw({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True,
                   env=os.environ | {"PYTHONHASHSEED": "17", "MATPLOTLIBRC": str(tmp_path)})
    assert [path.read_bytes() for path in paths] == before
    plots.draw(folder)
    assert [path.read_bytes() for path in paths] == before


def test_importing_and_drawing_need_no_torch(tmp_path):
    folder = folder_of(tmp_path, {"accuracy": accuracy_rows(ADV, (1,))})
    code = f"import sys; from pyro_advbnn import plots; print('matplotlib' in sys.modules); plots.draw({str(folder)!r}); " \
           "print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert result.stdout.split() == ["False"] * 3


def test_the_accuracy_figure_holds_the_rows_in_percent_and_clean_accuracy_begins_each_curve():
    axes, = drawing("accuracy", all_tables()["accuracy"]).axes
    assert line(axes, "s") == [(0, 80), (0.015, 59), (0.035, 39), (0.07, 14)]
    assert line(axes, "o", "--") == [(0, 80), (0.015, 59), (0.035, 39), (0.07, 14)]
    assert line(axes, "o", "-") == [(0, 80), (0.015, 50), (0.035, 30), (0.07, 5)]


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


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_examples": 500}, {"num_steps": 40}, {"step_size": 0.01},
                                    {"num_samples": 5}, {"weights": "other"}, {"checkpoint": "advbnn/checkpoint.pt"}])
def test_rows_of_other_settings_are_a_curve_of_their_own_with_a_label_that_says_so(change):
    rows = accuracy_rows(ADVBNN, (10,))
    both = plots.curves(rows + [one | change for one in rows if one["epsilon"]], "epsilon")
    assert len(both) == 2 and {len(curve.rows) for curve in both} <= {3, 4}
    assert len({curve.text for curve in both}) == 2
    assert all(set(curve.words) == set(change) for curve in both)
    assert all(xs == sorted(set(xs)) for xs in ([one["epsilon"] for one in curve.rows] for curve in both))


def test_a_step_that_follows_the_radius_keeps_a_curve_in_one_piece():
    rows = [row(ADV, 500, epsilon, step_size=2.5 * epsilon / 20) for epsilon in (0.01, 0.02, 0.04)]
    curve, = plots.curves(rows, "epsilon")
    assert len(curve.rows) == 3 and plots.common(rows, "epsilon")["step_size"] == "step 2.5 ε / steps"


def test_a_run_is_called_by_its_defence_only_where_no_other_has_the_same():
    two = run_fields("advbnn-2", "advbnn")
    assert plots.labels([ADV, ADVBNN, two]) == {"adv": "adversarial training", "advbnn": "advbnn", "advbnn-2": "advbnn-2"}
    assert plots.labels([ADVBNN]) == {"advbnn": "Adv-BNN"}


def test_many_runs_differ_in_marker_and_line_and_defences_keep_their_colour():
    runs = [run_fields(f"run-{i}", "advbnn") for i in range(11)]
    found = plots.curves([row(run, 500) for run in (*runs, ADV)], "epsilon")
    look = plots._Look(found)
    styles = [look.of(curve) for curve in found]
    assert len({style["marker"] for style in styles}) == 12
    assert plots._Look(plots.curves([row(ADV, 5), row(ADVBNN, 5)], "epsilon")).of(found[-1])["color"] == "#0072b2"


def test_the_heat_map_shows_rho_the_note_where_there_is_none_and_the_papers_values():
    axes, = drawing("transfer", all_tables()["transfer"]).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("0.62") == 6 and texts.count("drop 1.2 ±\n1.9 points") == 3
    assert texts.count("paper ≈ 0.5–0.6") == 2
    assert [tick.get_text().replace("\n", " ") for tick in axes.get_yticklabels()] == ["adversarial training", "BNN", "Adv-BNN"]


def test_rho_of_exactly_one_is_the_darkest_cell_and_texts_are_readable_on_every_cell():
    diagonal = row(ADV, 300) | {"source": "adv", "accuracy_clean": 0.8, "accuracy_white_box": 0.3, "rho": 1}
    axes, = drawing("transfer", [diagonal]).axes
    assert [round(255 * value) for value in axes.patches[0].get_facecolor()[:3]] == [0x0b, 0x3c, 0x68]
    from matplotlib.colors import to_rgb

    def luminance(color):
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(color)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for grey in range(0, 256, 5):
        cell = f"#{grey:02x}{grey:02x}{grey:02x}"
        text = plots.readable_on(cell)
        low, high = sorted((luminance(cell), luminance(text)))
        assert (high + 0.05) / (low + 0.05) > 4.35 and text not in (plots.INK, plots.PAPER)


def test_transfer_of_other_settings_or_of_a_run_trained_anew_is_a_map_of_its_own():
    rows = [dict.fromkeys(TABLES["transfer"]) | one for one in all_tables()["transfer"]]
    (words, part), = plots.transfer_groups(rows)
    assert (words, part) == ({}, rows)
    more = [one | {"attack_samples": 1} for one in rows if one["source"] != "adv"]
    groups = plots.transfer_groups(rows + more)
    assert [words["attack_samples"] for words, _ in groups] == ["1 draw per gradient", "10 draws per gradient"]
    assert [len(part) for _, part in groups] == [9, 9]                   # deterministic sources belong to both
    assert [len(part) for _, part in plots.transfer_groups([*rows, rows[0] | {"weights": "new"}])] == [9, 1]


def test_the_density_integrates_to_one_and_the_prior_is_a_line():
    axes, = drawing("log_std", all_tables()["density"]).axes
    curves = [each.get_xydata().tolist() for each in axes.lines]
    assert curves == [[[-3.75, 0.5], [-3.25, 1.0], [-2.75, 0.5]]] * 2
    prior, = axes.collections
    assert prior.get_segments()[0][:, 0].tolist() == [-3.0, -3.0]


def test_a_prior_of_several_stds_has_lines_as_high_as_their_shares():
    rows = [one for one in all_tables()["density"] if one["run"] == "bnn" and one["quantity"] == "log_std"]
    rows += [{**BNN, "quantity": "prior_log_std", "layer": "all", "left": left, "right": left, "share": share}
             for left, share in ((-3.0, 0.8), (-2.0, 0.2))]
    axes, = drawing("log_std", rows).axes
    heights = [segment[1, 1] for segment in axes.collections[0].get_segments()]
    assert heights[1] / heights[0] == pytest.approx(0.25)


def test_alpha_begins_at_zero_and_its_runs_are_one_curve_per_radius():
    axes, = drawing("alpha", all_tables()["alpha"]).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1/50", "1"]
    assert [each.get_ydata().tolist() for each in axes.lines] == [[70, 70, 71], [70, 70, 71]]
    axes, = drawing("prior_std", all_tables()["prior_std"]).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.05", "0.15", "fan_in"]


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


def test_texts_stay_texts_and_only_text_and_axes_have_the_colour_of_ink(drawn):
    folder, _ = drawn
    for path in (folder / "figures").glob("*.svg"):
        svg = path.read_text()
        assert "CIFAR-10" in svg and plots.INK in svg and "<dc:date>" not in svg
    svg = (folder / "figures" / "transfer.svg").read_text()
    cells = re.findall(r'<text style="([^"]*)"[^>]*>(?:0\.62|paper|drop)', svg)
    assert len(cells) >= 9 and not [style for style in cells if plots.INK in style or plots.PAPER in style]


def test_only_the_figures_asked_for_are_drawn_and_none_without_rows(tmp_path):
    assert plots.draw(tmp_path) == [] and not list(tmp_path.iterdir())
    folder_of(tmp_path, {"accuracy": accuracy_rows(ADV, (1,)), "steps": []})
    assert [path.name for path in plots.draw(tmp_path)] == ["accuracy.svg", "accuracy.png"]
    assert plots.draw(tmp_path, ["steps", "alpha"]) == []
    with pytest.raises(InputError, match="must be of accuracy, .*, got acuracy"):
        plots.draw(tmp_path, ["acuracy"])


@pytest.mark.parametrize(("name", "column", "cell"), [
    ("accuracy", "accuracy", ""), ("accuracy", "accuracy_low", "many"), ("accuracy", "epsilon", ""), ("steps", "num_steps", ""),
    ("transfer", "accuracy_clean", ""), ("density", "share", ""), ("density", "right", "-9"), ("layers", "log_std_q05", ""),
    ("gradients", "l1_norm", "nan"),
])
def test_a_damaged_csv_file_is_refused_and_draws_nothing(tmp_path, name, column, cell):
    folder = folder_of(tmp_path, {name: all_tables()[name]})
    path = folder / "evaluation" / f"{name}.csv"
    header, first, *rest = path.read_text().splitlines()
    cells = first.split(",")
    cells[TABLES[name].index(column)] = cell
    path.write_text("\n".join([header, ",".join(cells), *rest]) + "\n")
    with pytest.raises(InputError):
        plots.draw(folder)
    assert not list(folder.glob("figures/*"))


def test_without_matplotlib_the_error_is_one_line_that_says_what_to_install(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, {"accuracy": accuracy_rows(ADV, (1,))})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"^figures need matplotlib: pip install pyro_advbnn\[evaluation\]$"):
        plots.draw(folder)


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.02, "1/50"), (1.0, "1"), (0.1, "1/10"), (0.3, "0.3"), (None, "–")])
def test_an_alpha_is_written_as_the_paper_writes_it(value, text):
    assert plots.fraction(value) == text


def test_a_figure_changes_in_one_step_so_that_a_crash_leaves_the_old_one(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, {"accuracy": accuracy_rows(ADV, (1,))})
    before = {path: path.read_bytes() for path in plots.draw(folder)}
    folder_of(folder, {"accuracy": accuracy_rows(BNN)})

    def crash(*_):
        raise OSError("no power")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(OSError, match="no power"):
            plots.draw(folder)
    assert before and {path: path.read_bytes() for path in before} == before
    assert {path: path.read_bytes() for path in plots.draw(folder)} != before
