"""Tests of summaries: each number of a table is that of the csv, the published one stands beside it, verdicts are computed."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from result_tables import ADV, ADVBNN, BNN, accuracy_rows, all_tables, folder_of, measured, row, run_fields

from pyro_advbnn.reporting import paper, summaries
from pyro_advbnn.reporting.robustness_summaries import attacks
from pyro_advbnn.reporting.summary import Summary
from pyro_advbnn.system import json_files

ROOT = Path(__file__).parents[2]


def summary_of(tmp_path, name, rows, csv_name=None):
    found = summaries.summaries(folder_of(tmp_path, {csv_name or name: rows}))
    return next(each for each in found if each.name == name)


def lines(summary):
    """The rows as mappings."""
    return [dict(zip(summary.columns, cells, strict=True)) for cells in summary.rows]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("everything"), all_tables())


def test_there_is_a_summary_of_every_csv_file_and_none_without_rows(everything, tmp_path):
    found = summaries.summaries(everything)
    assert [each.name for each in found] == ["table1", "accuracy", "transfer", "ensemble", "steps", "layers", "pruning",
                                             "alpha", "prior_std", "gradients", "uncertainty", "detection"]
    assert all(each.rows and all(len(cells) == len(each.columns) for cells in each.rows) for each in found)
    assert all(isinstance(cell, str) and cell for each in found for cells in each.rows for cell in cells)
    assert summaries.summaries(tmp_path) == [] == summaries.write(tmp_path) and not list(tmp_path.iterdir())


def test_table_1_holds_our_accuracies_with_intervals_and_the_published_ones_below(tmp_path):
    table = summary_of(tmp_path, "table1", accuracy_rows(ADV, (1,)) + accuracy_rows(ADVBNN), "accuracy")
    assert table.columns == ["defence", "numbers", "draws per gradient",
                             "ε = 0", "ε = 0.015", "ε = 0.035", "ε = 0.055", "ε = 0.07"]
    assert [cells[:3] for cells in table.rows] == [
        ["adversarial training", "ours", "1"], ["adversarial training", "paper, Table 1", "1"],
        ["Adv-BNN", "ours", "1"], ["Adv-BNN", "paper, Table 1", "1"],
        ["Adv-BNN", "ours", "10"], ["Adv-BNN", "arXiv 2212.02003, Table 2", "many"]]
    interval = measured(800)
    clean = f"80.0 [{100 * interval['accuracy_low']:.1f}, {100 * interval['accuracy_high']:.1f}]"
    assert [cells[3] for cells in table.rows[::2]] == [clean] * 3
    assert [cells[4].split()[0] for cells in table.rows[::2]] == ["59.0", "59.0", "50.0"]
    assert [cells[6] for cells in table.rows[::2]] == ["-"] * 3                            # 0.055 was not measured
    assert table.rows[1][3:] == ["80.3", "58.3", "31.1", "15.5", "10.3"]
    assert table.rows[3][3:] == ["79.7", "68.7", "45.4", "26.9", "18.6"]
    assert table.rows[5][3:] == ["79.7", "64.2", "37.7", "16.3", "8.1"]


def test_where_nothing_was_published_there_is_no_line_for_it_and_the_note_says_so_once(tmp_path):
    table = summary_of(tmp_path, "table1", accuracy_rows(ADVBNN | {"dataset": "digits"}), "accuracy")
    assert [cells[1] for cells in table.rows] == ["ours"] * 2 and table.note.endswith("Published: nothing on digits.")
    rows = accuracy_rows(BNN) + accuracy_rows(ADV, (1,))
    table = summary_of(tmp_path / "bnn", "table1", rows, "accuracy")
    assert [cells[:2] for cells in table.rows] == [["BNN", "ours"], ["BNN", "ours"], ["adversarial training", "ours"],
                                                   ["adversarial training", "paper, Table 1"]]
    assert table.note.endswith("for many; without a number at these radii: BNN.")
    rows = [one | {"dataset": "imagenet143", "epsilon": {0.015: 0.004}.get(one["epsilon"], one["epsilon"])}
            for one in accuracy_rows(ADVBNN)]
    table = summary_of(tmp_path / "many", "table1", rows, "accuracy")
    assert [cells[1:4] for cells in table.rows] == [["ours", "1", table.rows[0][3]], ["paper, Table 1", "1", "47.3"],
                                                    ["ours", "10", table.rows[2][3]]]
    assert table.note.endswith("for many; without a number at these radii: Adv-BNN with many draws.")


def test_settings_stand_in_the_note_and_rows_of_other_settings_in_lines_of_their_own(tmp_path):
    rows = accuracy_rows(ADV, (1,))
    table = summary_of(tmp_path, "table1", rows, "accuracy")
    for words in ("1,000 images", "20 PGD steps", "step 0.007", "seed 0", "network vgg16"):
        assert words in table.note
    more = [one | {"num_examples": 100} for one in rows] + [one | {"num_steps": 100} for one in rows if one["epsilon"]]
    table = summary_of(tmp_path / "more", "table1", rows + more, "accuracy")
    ours = [cells[0] for cells in table.rows[::2]]
    assert len(ours) == len(set(ours)) == 3 and "images" not in table.note.split(".")[0]
    assert any("100 images" in name for name in ours) and any("100 PGD steps" in name for name in ours)


def test_many_radii_off_the_papers_are_thinned_and_the_note_counts_those_left_out(tmp_path):
    rows = [row(ADV | {"dataset": "digits"}, 500, round(0.02 * i, 2)) for i in range(16)]
    table = summary_of(tmp_path, "table1", rows, "accuracy")
    assert len(table.columns) == 3 + 7 and table.columns[3] == "ε = 0" and table.columns[-1] == "ε = 0.3"
    assert "Not shown: 9 of the measured radii. " in table.note


def test_where_none_of_the_papers_radii_was_attacked_the_columns_are_those_that_were(tmp_path):
    rows = [row(ADV, 500, epsilon) for epsilon in (0, 8 / 255)]
    table = summary_of(tmp_path, "table1", rows, "accuracy")
    assert table.columns[3:] == ["ε = 0", "ε = 0.0313725"] and "Not shown" not in table.note


def test_two_data_sets_have_a_table_1_each(tmp_path):
    rows = accuracy_rows(ADV, (1,)) + accuracy_rows(ADV | {"dataset": "cifar10:held_out"}, (1,))
    names = [each.name for each in summaries.summaries(folder_of(tmp_path, {"accuracy": rows}))]
    assert names == ["table1", "table1-cifar10-held_out", "accuracy"]         # the first replaces that of one data set alone


def test_fig_2_has_every_row_and_the_published_number_at_the_radii_of_table_1(tmp_path):
    found = lines(summary_of(tmp_path, "accuracy", accuracy_rows(ADVBNN)))
    assert len(found) == 8
    many = [each for each in found if each["curve"] == "Adv-BNN, 10 draws per gradient"]
    assert [(each["ε"], each["published"]) for each in many] == [
        ("0", "79.7"), ("0.015", "64.2"), ("0.035", "37.7"), ("0.07", "8.1")]


@pytest.mark.parametrize(("rho", "verdict"), [
    (0.46, "yes"), (0.64, "yes"), (0.44, "no, lower"), (0.66, "no, higher"), (None, "-")])
def test_rho_stands_beside_the_papers_range_and_agrees_within_the_stated_distance(tmp_path, rho, verdict):
    white_box, clean = 0.3, 0.31 if rho is None else 0.3 + 0.1 / (1 - rho)                # transferred: 0.4
    rows = [row(ADVBNN, 400, draws=1) | {"source": "adv", "accuracy_clean": clean, "accuracy_white_box": white_box},
            row(ADV, 300) | {"source": "adv", "accuracy_clean": 0.8, "accuracy_white_box": white_box}]
    table = summary_of(tmp_path, "transfer", rows)
    first, diagonal = lines(table)
    assert first["agrees"] == verdict and first["paper"] == "≈ 0.5–0.6"
    assert (first["Acc[B]"], first["Acc[B|A]"].split()[0], first["Acc[B|B]"]) == (f"{100 * clean:.1f}", "40.0", "30.0")
    assert first["ρ"] == ("drop 1.0 ± 4.0 points" if rho is None else f"{rho:.2f}")
    assert (diagonal["ρ"], diagonal["paper"], diagonal["agrees"]) == ("1.00", "-", "-")
    assert rho is None or table.note.endswith(f": {int(verdict == 'yes')} of 1 agree.")


@pytest.mark.parametrize(("last", "verdict"), [(401, "yes"), (300, "no, lower"), (500, "no, higher")])
def test_steps_agree_where_the_change_from_20_steps_to_the_most_may_be_none(tmp_path, last, verdict):
    rows = [row(ADV, correct, num_steps=n) for n, correct in ((3, 700), (18, 600), (26, 400), (1000, last))]
    table = summary_of(tmp_path, "steps", rows)
    line, = lines(table)
    assert [line[n] for n in ("3", "18", "26", "1000")] == ["70.0", "60.0", "40.0", f"{last / 10:.1f}"]
    assert line["agrees"] == verdict and line["change"].endswith("26 to 1000")
    assert line["change"].startswith(f"{last / 10 - 40:+.1f}")
    low, high = map(float, line["change"].partition("[")[2].partition("]")[0].split(", "))
    assert low < last / 10 - 40 < high
    assert paper.CLAIMS["steps"][0] in table.note and f"{int(verdict == 'yes')} of 1 agree" in table.note


def test_what_was_not_measured_has_no_verdict(tmp_path):
    steps = summary_of(tmp_path / "a", "steps", [row(ADV, 500, num_steps=n) for n in (3, 20)])
    draws = summary_of(tmp_path / "b", "ensemble", [row(ADVBNN, 500, num_samples=n) for n in (1, 5, 50, 100)])
    alpha = summary_of(tmp_path / "c", "alpha", [row(ADVBNN, 500, 0.0)])
    for table in (steps, draws, alpha):
        assert [line["agrees"] for line in lines(table)] == ["-"] and "nothing to compare here" in table.note


def test_draws_agree_where_10_to_20_are_as_good_as_the_most(tmp_path):
    rows = [row(ADVBNN, correct, epsilon, num_samples=n) for epsilon in (0.0, 0.035)
            for n, correct in ((1, 300), (10, 400 if epsilon else 500), (100, 500))]
    first, second = lines(summary_of(tmp_path, "ensemble", rows))
    assert (first["curve"], first["agrees"]) == ("Adv-BNN, clean", "yes")
    assert (second["curve"], second["agrees"]) == ("Adv-BNN, ε = 0.035", "no, higher")


@pytest.mark.parametrize(("clean", "verdict"), [((700, 800), "no"), ((800, 700), "yes"), ((800, 805), "undecided")])
def test_a_smaller_alpha_agrees_where_its_clean_accuracy_is_higher(tmp_path, clean, verdict):
    runs = [run_fields(f"alpha{alpha}", "advbnn", alpha=alpha) for alpha in (0.0, 0.02, 1.0)]
    rows = [row(run, correct, epsilon, 10) for epsilon in (0.0, 0.035) for run, correct in zip(runs, (100, *clean))]
    rows = [row(runs[2] | {"weights": "before it went on"}, 10, epsilon, 10) for epsilon in (0.0, 0.035)] + rows
    first, second = lines(summary_of(tmp_path, "alpha", rows))
    assert (first["curve"], first["agrees"], second["agrees"]) == ("clean", verdict, "-")
    assert [first[alpha] for alpha in ("0", "1/50", "1")] == ["10.0", *(f"{correct / 10:.1f}" for correct in clean)]
    assert first["change"].endswith("1 to 1/50")


@pytest.mark.parametrize(("correct", "verdict"), [((500, 510, 505), "yes"), ((500, 600, 505), "no"),
                                                  ((500, 548, 505), "yes")])        # of two alone it would be "no"
def test_the_prior_agrees_where_the_highest_and_lowest_accuracy_are_alike(tmp_path, correct, verdict):
    rows = [row(run_fields(f"p{std}", "advbnn", prior_std=std), number)
            for std, number in zip(("0.05", "0.1", "fan_in", "auto"), (*correct, 640))]
    line, = lines(summary_of(tmp_path, "prior_std", rows))
    assert line["agrees"] == verdict and line["change"].endswith("0.05 to 0.1")
    assert (line["fan_in"], line["auto"]) == ("50.5", "64.0")        # the last is shown, but not of what the paper speaks of


@pytest.mark.parametrize("name", ["alpha", "prior_std"])
def test_nothing_is_judged_where_runs_share_a_value_as_two_seeds_do(tmp_path, name):
    rows = [row(run_fields(f"{value}, seed {seed}", "advbnn", **{name: value}), correct)
            for value in ((0.02, 1.0) if name == "alpha" else ("0.05", "0.1")) for seed, correct in ((0, 600), (1, 520))]
    line, = lines(summary_of(tmp_path / "two", name, rows))
    assert (line["change"], line["agrees"]) == ("-", "-")
    line, = lines(summary_of(tmp_path / "one", name, rows[::2]))
    assert line["change"].startswith("0.0")


def test_a_run_without_a_prior_has_a_column_of_its_own(tmp_path):
    rows = [row(ADV, 480), *(row(run_fields(f"p{std}", "advbnn", prior_std=std), 500) for std in ("0.05", "fan_in"))]
    assert summary_of(tmp_path, "prior_std", rows).columns[1:-2] == ["0.05", "fan_in", "-"]


@pytest.mark.parametrize(("by", "verdict"), [("std", "yes"), ("signal_to_noise", "-")])     # the paper speaks of the std
def test_pruning_says_up_to_where_no_loss_is_seen(tmp_path, by, verdict):
    rows = [row(BNN, correct, epsilon, fraction=f, prune_by=by, prediction="posterior") for epsilon in (0.0, 0.035)
            for f, correct in ((0.0, 800), (0.25, 795), (0.5, 700), (0.75, 800))]
    first, second = lines(summary_of(tmp_path, "pruning", rows))
    assert first["change"] == second["change"] == "up to 0.25 no loss beyond the interval"
    assert (first["agrees"], second["agrees"]) == (verdict, "-")


def test_gradients_agree_where_test_lies_above_train_for_adversarial_training(everything):
    table = next(each for each in summaries.summaries(everything) if each.name == "gradients")
    by_run = {line["run"]: line for line in lines(table)}
    assert by_run["adversarial training"] == {"run": "adversarial training", "train": "20 [19, 21]", "test": "33 [32, 34]",
                                              "test / train": "1.65", "agrees": "yes"}
    assert by_run["Adv-BNN"]["agrees"] == "-" and "1 draw per gradient" in table.note


def test_gradients_of_held_out_images_have_a_column(tmp_path):
    rows = [one | {"split": one["split"].replace("test", "held_out")} for one in all_tables()["gradients"]]
    table = summary_of(tmp_path, "gradients", rows)
    assert table.columns == ["run", "train", "held out", "held out / train", "agrees"]
    assert table.rows[0][1:] == ["20 [19, 21]", "33 [32, 34]", "1.65", "yes"]


def test_runs_are_told_apart_by_the_settings_that_most_have_otherwise(tmp_path):
    settings = {"alpha": 0.1, "kl_warmup": 0.25, "optimizer": "adam", "learning_rate": 0.005, "weight_decay": 5e-4}
    changes = {"a": {}, "b": {}, "c": {"kl_warmup": 0.0, "alpha": 1.0}, "adv": {"weight_decay": 0.0}}
    for name, change in changes.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        kind = "deterministic" if name == "adv" else "bayesian"
        json_files.write_json(tmp_path / "runs" / name / "config.json", {
            "dataset": "digits", "environment": {}, "defense": "adv" if name == "adv" else "advbnn",
            "classifier": {"kind": kind}, "settings": settings | change,
            "init_from": "../runs/adv" if name == "b" else None})
    rows = [row(run_fields(name, "adv" if name == "adv" else "advbnn"), 700, draws=1) for name in changes]
    table = summary_of(tmp_path, "runs", rows)
    assert [(line["run"], line["unlike most"]) for line in lines(table)] == [
        ("a", "-"), ("b", "starts from adv"), ("c", "alpha 1; KL warm-up 0"), ("adv", "weight decay none")]
    assert table.note.endswith("Unlike most: settings that most of these runs have otherwise.")
    shutil.rmtree(tmp_path / "runs" / "a")
    table, = summaries.summaries(tmp_path)
    assert [line["unlike most"] for line in lines(table)] == ["-", "starts from adv", "-", "weight decay none"]   # b: 1 of 2
    shutil.rmtree(tmp_path / "runs" / "c")
    assert summaries.summaries(tmp_path)[0].note.endswith("What a run is: its config.json, which does not lie here for all.")


def test_a_run_that_was_measured_in_several_ways_says_how_in_each_line(tmp_path):
    run = run_fields("adv", "adv")
    rows = [row(run | change, 70, draws=1, num_examples=count) for change, count in
            (({}, 100), ({}, 200), ({"checkpoint": "adv/checkpoint.pt", "weights": "other"}, 200))]
    assert [line["run"] for line in lines(summary_of(tmp_path, "runs", rows))] == [
        "adv, 100 images, best.pt", "adv, 200 images, best.pt", "adv, 200 images, checkpoint.pt"]
    rows = [row(run | {"weights": weights}, 70) for weights in ("0a1b", "2c3d")]             # it went on in between
    assert [line["run"] for line in lines(summary_of(tmp_path / "other", "runs", rows))] == ["adv, 0a1b", "adv, 2c3d"]
    rows.append(row(run | {"checkpoint": "adv/checkpoint.pt", "weights": "4e5f"}, 70))
    assert [line["run"] for line in lines(summary_of(tmp_path / "more", "runs", rows))] == [
        "adv, best.pt, 0a1b", "adv, best.pt, 2c3d", "adv, checkpoint.pt, 4e5f"]


def test_the_worst_case_names_a_run_as_its_folder_is_named_and_its_defence(tmp_path):
    attacked = {"attacks": "noise pgd", "tried": "noise", "norm": "linf", "epsilon": 0.2, "num_steps": 40, "seed": 0,
                "attack_samples": 1, "num_samples": 1, "num_examples": 100, "images": "abc", "batch_size": 500,
                "accuracy": 0.55, "accuracy_low": 0.45, "accuracy_high": 0.64, "unbroken": 0.52,
                "single_draw_accuracy": 0.5, "undecided": 0.1}
    found = summary_of(tmp_path, "robust", [run_fields("adv-tuned", "adv") | attacked])
    assert found.columns[:2] == ["run", "defence"] and found.rows[0][:2] == ["adv-tuned", "adversarial training"]
    assert found.rows[0][4:8] == ["55.0 [45.0, 64.0]", "52.0", "50.0", "10.0"]
    assert found.rows[0][-1] == "noise (unfinished: pgd)"
    run = run_fields("adv-tuned", "adv")
    several = [run | attacked | more for more in ({}, {"network": "vgg16:bf16"}, {"dataset": "cifar10:held_out"}, {
        "checkpoint": "adv-tuned/checkpoint.pt", "weights": "others"})]
    assert [cells[0] for cells in summary_of(tmp_path / "several", "robust", several).rows] == [
        "adv-tuned, CIFAR-10, vgg16, best.pt", "adv-tuned, CIFAR-10, vgg16:bf16, best.pt",
        "adv-tuned, cifar10:held_out, vgg16, best.pt", "adv-tuned, CIFAR-10, vgg16, checkpoint.pt"]
    random = run_fields("advbnn", "advbnn") | attacked | {"attack_samples": 20, "average": "gradient", "num_queries": 1000}
    others = [random, random | {"average": "probability"}, random | {"num_queries": 5000}]
    assert [cells[0] for cells in summary_of(tmp_path / "others", "robust", others).rows] == [
        "advbnn, mean gradient of the draws, 1,000 queries of Square",
        "advbnn, mean probability of the draws, 1,000 queries of Square",
        "advbnn, mean gradient of the draws, 5,000 queries of Square"]


@pytest.mark.parametrize(("tried", "told"), [
    ("pgd apgd-t1 apgd-t2 apgd-t3 square", "pgd apgd-t1..3 square"), ("apgd-t1@mean apgd-t2@mean", "apgd-t1..2@mean"),
    ("apgd-t1 apgd-t2@mean", "apgd-t1 apgd-t2@mean"), ("apgd-ce apgd-t4", "apgd-ce apgd-t4"),
    ("apgd-t1 apgd-t5", "apgd-t1 apgd-t5"), ("apgd-t9 apgd-t2", "apgd-t9 apgd-t2")])
def test_targeted_attacks_are_told_as_one(tried, told):
    assert attacks({"attacks": tried, "tried": tried}) == told
    assert attacks({"attacks": f"cw {tried}", "tried": "cw"}) == f"cw (unfinished: {told})"


def test_the_layers_are_in_the_order_of_the_csv_and_the_modes_stand_in_the_note(everything):
    table = next(each for each in summaries.summaries(everything) if each.name == "layers")
    assert [cells[:3] for cells in table.rows[:3]] == [
        ["BNN", "all", "30"], ["BNN", "features.0.weight", "30"], ["BNN", "features.0.bias", "30"]]
    assert table.rows[0][3:] == ["-3.00", "-4.00", "-3.60", "-3.10", "0.20"]
    assert "BNN: 1, no; Adv-BNN: 1, no" in table.note


def test_two_modes_of_the_log_stds_agree_and_no_other_number(tmp_path):
    peaks = ((BNN, "log_std", (5, 15)), (BNN, "log10_signal_to_noise", (5,)), (ADVBNN, "log_std", (5, 15, 25)))
    density = [{**run, "quantity": quantity, "layer": "all", "left": left, "right": left + 1, "share": float(left in modes)}
               for run, quantity, modes in peaks for left in range(30)]
    folder_of(tmp_path, {"density": density})
    assert "BNN: 2, yes; Adv-BNN: 3, no" in summary_of(tmp_path, "layers", all_tables()["layers"]).note


def test_text_is_aligned_and_markdown_is_a_table_whose_cells_hold_no_bars(tmp_path):
    table = Summary("t", "A *title*", ["a", "b|c"], [["1", "x"], ["22", "a|b"]], "note")
    assert table.as_text() == "A *title*\n a  b|c\n 1    x\n22  a|b\nnote\n"
    assert Summary("t", "T", ["a", "a"], [["1", "2"]], "").as_text() == "T\na  a\n1  2\n"
    assert table.as_markdown() == (
        "### A \\*title\\*\n\n| a | b\\|c |\n| --- | --- |\n| 1 | x |\n| 22 | a\\|b |\n\nnote\n")


def test_writing_twice_gives_the_same_files_in_another_process_too_without_torch_or_matplotlib(everything):
    paths = summaries.write(everything)
    assert [path.name for path in paths] == [f"{each.name}.md" for each in summaries.summaries(everything)]
    assert sorted(path.name for path in (everything / "tables").iterdir()) == sorted(path.name for path in paths)
    before = [path.read_bytes() for path in paths]
    code = f"import sys; from pyro_advbnn.reporting import summaries; summaries.write({str(everything)!r}); " \
           "print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True,
                            env=os.environ | {"PYTHONHASHSEED": "17"})
    assert result.stdout.split() == ["False", "False"]
    assert [path.read_bytes() for path in paths] == before
