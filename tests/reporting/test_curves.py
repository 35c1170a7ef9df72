"""Tests of curves: rows of different settings never share one, and each says in which setting it differs."""
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_advbnn.evaluation.intervals import wilson_interval
from pyro_advbnn.reporting import curves, scrutiny_summaries
from pyro_advbnn.reporting.csv_tables import TABLES, Table

ROOT = Path(__file__).parents[2]


def run_fields(name, defense, **fields):
    bayesian = {"alpha": 0.1, "prior_std": "0.05"} if defense in ("bnn", "advbnn") else {}
    return {"run": name, "dataset": "cifar10", "network": "vgg16", "defense": defense, "checkpoint": f"{name}/best.pt",
            "weights": f"w-{name}", **bayesian, **fields}


def measured(correct, total=1000):
    low, high = wilson_interval(correct, total)
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
        "many_draws": [row(run, 400 - n, attack_samples=n) for run in runs for n in (1, 10, 50)],
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
        **doubt_tables(runs),
    }


def doubt_tables(runs):
    """Rows of the verb uncertainty: clean images and two attackers; noise as foreign images."""
    told, calibration, rejection, detection = [], [], [], []
    for run in runs:
        scores = ("entropy",) if run is ADV else ("entropy", "mutual_information")
        for number, (name, weight) in enumerate((("none", None), ("pgd", None), ("pgd-confident", 10.0))):
            own = row(run, 800 - 200 * number, 0.035 if number else 0.0, 10, confidence_weight=weight, attack=name)
            told.append({**own, "nll": 0.9 + number, "brier": 0.4, "calibration_error": 0.125, "entropy": 1.5,
                         "expected_entropy": 1.25, "mutual_information": 0.25, "variation_ratio": 0.0625})
            for place, correct in ((0, 100), (1, 300)):
                calibration.append({**own, **measured(correct - 50 * number, 500), "num_examples": 1000, "left": place / 2,
                                    "right": place / 2 + 0.5, "num_in_bin": 500, "confidence": place / 2 + 0.375})
            for score in scores:
                rejection += [{**own, **measured(int(kept * (0.9 - 0.2 * number)), kept), "num_examples": 1000, "score": score,
                               "rejected": 1 - kept / 1000, "num_kept": kept} for kept in (1000, 500, 100)]
                shared = {column: own.get(column) for column in TABLES["detection"]} | {"score": score, "num_positives": 400,
                          "aupr": 0.75, "mean_clean": 1.5, "mean_other": 1.75}
                auroc = {"auroc": 0.875 - 0.125 * number, "auroc_low": 0.5, "auroc_high": 0.9375}
                if number:
                    detection += [{**shared, **auroc, "positives": which} for which in ("all", "wrong")]
                else:
                    detection.append({**shared, **auroc, "positives": "all", "ood": "noise", "ood_images": "n"})
    return {"uncertainty": told, "calibration": calibration, "rejection": rejection, "detection": detection}


def folder_of(path, tables):
    for name, rows in tables.items():
        Table(path, name).add(rows)
    return path


@pytest.mark.parametrize("module", ["reporting.curves", "reporting.summaries"])
def test_grouping_rows_needs_neither_torch_nor_matplotlib(module):
    code = f"import sys; import pyro_advbnn.{module}; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert result.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_examples": 500}, {"num_steps": 40}, {"step_size": 0.01},
                                    {"num_samples": 5}, {"weights": "other"}, {"checkpoint": "advbnn/checkpoint.pt"}])
def test_rows_of_other_settings_are_a_curve_of_their_own_with_a_label_that_says_so(change):
    rows = accuracy_rows(ADVBNN, (10,))
    both = curves.curves(rows + [one | change for one in rows if one["epsilon"]], "epsilon")
    assert len(both) == 2 and {len(curve.rows) for curve in both} <= {3, 4}
    assert len({curve.text for curve in both}) == 2
    assert all(set(curve.words) == set(change) for curve in both)
    assert all(xs == sorted(set(xs)) for xs in ([one["epsilon"] for one in curve.rows] for curve in both))


def test_a_step_that_follows_the_radius_keeps_a_curve_in_one_piece():
    rows = [row(ADV, 500, epsilon, step_size=2.5 * epsilon / 20) for epsilon in (0.01, 0.02, 0.04)]
    curve, = curves.curves(rows, "epsilon")
    assert len(curve.rows) == 3 and curves.common(rows, "epsilon")["step_size"] == "step 2.5 ε / steps"


def test_a_setting_that_means_nothing_for_some_rows_says_for_which_it_does():
    rows = [row(ADV, 400), row(ADVBNN, 500, draws=10), row(ADVBNN, 600, 0.0)]
    shared = curves.common(rows)
    assert shared["attack_samples"] == "10 draws per gradient where random"
    assert shared["num_samples"] == "20 draws per prediction where random"
    assert (shared["alpha"], shared["prior_std"]) == ("α = 1/10 where Bayesian", "prior std 0.05 where Bayesian")
    assert curves.common(rows[1:]) == {name: text.partition(" where")[0] for name, text in shared.items()} | {
        "num_steps": "20 PGD steps", "step_size": "step 0.007"}


def test_the_caption_of_a_table_gives_the_range_of_a_setting_that_no_column_shows():
    more = {"check": "noise", "verdict": "held", "measured": "", "expected": "", "num_queries": 100}
    random, certain = ({**row(run, 400), **more} for run in (ADVBNN, ADV))
    note = scrutiny_summaries.checks([random, {**random, "num_steps": 40, "num_queries": 500, "num_samples": 50}, certain])[-1]
    for told in ("20 to 40 PGD steps", "100 to 500 queries of Square", "20 to 50 draws per prediction", "where Bayesian"):
        assert told in note
    assert " to " not in scrutiny_summaries.checks([random, certain])[-1].partition(". Judged")[0]


def test_a_run_is_called_by_its_defence_only_where_no_other_has_the_same():
    two = run_fields("advbnn-2", "advbnn")
    assert curves.labels([ADV, ADVBNN, two]) == {"adv": "adversarial training", "advbnn": "advbnn", "advbnn-2": "advbnn-2"}
    assert curves.labels([ADVBNN]) == {"advbnn": "Adv-BNN"}


def test_transfer_of_other_settings_or_of_a_run_trained_anew_is_a_map_of_its_own():
    rows = [dict.fromkeys(TABLES["transfer"]) | one for one in all_tables()["transfer"]]
    (words, part), = curves.transfer_groups(rows)
    assert (words, part) == ({}, rows)
    more = [one | {"attack_samples": 1} for one in rows if one["source"] != "adv"]
    groups = curves.transfer_groups(rows + more)
    assert [words["attack_samples"] for words, _ in groups] == ["1 draw per gradient", "10 draws per gradient"]
    assert [len(part) for _, part in groups] == [9, 9]                   # deterministic sources belong to both
    assert [len(part) for _, part in curves.transfer_groups([*rows, rows[0] | {"weights": "new"}])] == [9, 1]


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.02, "1/50"), (1.0, "1"), (0.1, "1/10"), (0.3, "0.3"), (None, "–")])
def test_an_alpha_is_written_as_the_paper_writes_it(value, text):
    assert curves.fraction(value) == text


def test_a_name_that_has_had_two_defences_is_no_ones_alone():
    """A run that was deleted and trained anew under its old name: its old rows are not the new defence's."""
    old, new = run_fields("a", "adv") | {"weights": "old"}, run_fields("a", "none") | {"weights": "new"}
    rows = [row(old, 540, 0.1), row(new, 0, 0.1)]
    found = {curve.label: curve.rows[0]["accuracy"] for curve in curves.curves(rows, "epsilon")}
    assert found == {"a (adversarial training)": 0.54, "a (no defence)": 0.0}
    assert curves.labels(rows) == {"a": "a"}
    assert [curve.label for curve in curves.curves(rows[:1], "epsilon")] == ["adversarial training"]
