"""Tests of curves: rows of different settings never share one, and each says in which setting it differs."""
import pytest
from result_tables import ADV, ADVBNN, accuracy_rows, row, run_fields

from pyro_advbnn.reporting import curves, robustness_summaries


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_examples": 500}, {"num_steps": 40}, {"step_size": 0.01},
                                    {"num_samples": 5}, {"images": "noisy"}, {"weights": "other"},
                                    {"checkpoint": "advbnn/checkpoint.pt"}])
def test_rows_of_other_settings_are_a_curve_of_their_own_with_a_label_that_says_so(change):
    rows = [one | {"images": "clean"} for one in accuracy_rows(ADVBNN, (10,))]
    both = curves.curves(rows + [one | change for one in rows if one["epsilon"]], "epsilon")
    assert len(both) == 2 and {len(curve.rows) for curve in both} <= {3, 4}
    assert len({curve.text for curve in both}) == 2
    assert all(set(curve.words) == set(change) for curve in both)
    assert all(xs == sorted(set(xs)) for xs in ([one["epsilon"] for one in curve.rows] for curve in both))


def test_a_curve_over_runs_has_one_of_the_checkpoints_that_they_have():
    best = [row(run_fields(f"a{alpha}", "advbnn", alpha=alpha), 500, 0.0) for alpha in (0.1, 1.0)]
    last = [one | {"checkpoint": f"{one['run']}/checkpoint.pt", "weights": "later"} for one in best]
    only, = curves.curves([*best, row(run_fields("a0", "advbnn", alpha=0.0, checkpoint="a0/checkpoint.pt"), 500, 0.0)], "alpha",
                          over_runs=True)
    assert len(only.rows) == 3 and only.text == ""
    both = curves.curves(best + last, "alpha", over_runs=True)
    assert [(curve.text, curve.rows) for curve in both] == [("best.pt", best), ("checkpoint.pt", last)]
    both = curves.curves(best + last[:1], "alpha", over_runs=True)           # the second run has one checkpoint, in both
    assert [(curve.text, curve.rows) for curve in both] == [("best.pt", best), ("checkpoint.pt", [last[0], best[1]])]
    both = curves.curves([*best, last[1]], "alpha", over_runs=True)          # the first has one
    assert [(curve.text, curve.rows) for curve in both] == [("best.pt", best), ("checkpoint.pt", [best[0], last[1]])]


def test_checkpoints_tell_runs_of_several_apart_without_their_weights():
    rows = [row(run_fields(name, "advbnn", checkpoint=f"{name}/{file}.pt", weights=f"{name}-{file}"), 500, epsilon, draws)
            for name, file, draws in (("a", "best", 10), ("a", "checkpoint", 1), ("b", "best", 10)) for epsilon in (0.02, 0.04)]
    assert [curve.text for curve in curves.curves(rows, "epsilon")] == [
        "a, 1 draw per gradient, checkpoint.pt", "a, 10 draws per gradient, best.pt", "b, 10 draws per gradient, best.pt"]


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
    assert "num_samples" not in curves.settings(row(ADVBNN, 500, prediction="mean"))
    assert curves.common(rows[1:]) == {name: text.partition(" where")[0] for name, text in shared.items()} | {
        "num_steps": "20 PGD steps", "step_size": "step 0.007"}


def checks_note(rows):
    summary, = robustness_summaries.checks(rows, None)
    assert {tuple(cells[1:]) for cells in summary.rows} == {("noise", "held", "this", "that")}
    return summary.note


def test_the_caption_of_a_table_gives_the_range_of_a_setting_that_no_column_shows():
    more = {"check": "noise", "verdict": "held", "measured": "this", "expected": "that", "num_queries": 100}
    random, certain = ({**row(run, 400), **more} for run in (ADVBNN, ADV))
    note = checks_note([random, {**random, "num_steps": 40, "num_queries": 500, "num_samples": 50}, certain])
    for told in ("20 to 40 PGD steps", "100 to 500 queries of Square", "20 to 50 draws per prediction", "where Bayesian"):
        assert told in note
    assert " to " not in checks_note([random, certain]).partition(". Judged")[0]


def test_of_two_rows_for_one_point_the_newest_is_drawn():
    curve, = curves.curves([row(ADV, 400, batch_size=50), row(ADV, 500, batch_size=100)], "epsilon")
    assert [point["accuracy"] for point in curve.rows] == [0.5]


def test_images_are_told_only_where_their_number_does_not_tell_them():
    few = row(ADV, 400, images="few", num_examples=500)
    texts = {curve.text for curve in curves.curves([few, row(ADV, 500, images="all", num_examples=1000)], "epsilon")}
    assert texts == {"adversarial training, 500 images", "adversarial training, 1,000 images"}
    texts = {curve.text for curve in curves.curves([few, few | {"images": "others", "seed": 1}], "epsilon")}
    assert texts == {"adversarial training, seed 0", "adversarial training, seed 1"}     # the seed chooses them
    names = [name for name, _ in curves.named([few, few | {"images": "noisy"}])]
    assert names == ["adversarial training, images few", "adversarial training, images noisy"]


def test_held_out_images_of_several_runs_are_those_of_one_curve():
    """Each run holds out its own, by its seed."""
    runs = [run_fields(f"a{alpha}", "advbnn", alpha=alpha, dataset="cifar10:held_out") for alpha in (0.1, 1.0)]
    held_out = [row(run, 500, 0.0, images=f"of {run['run']}") for run in runs]
    only, = curves.curves(held_out, "alpha", over_runs=True)
    assert only.rows == held_out


def test_a_run_is_called_by_its_defence_only_where_no_other_has_the_same():
    two = run_fields("advbnn-2", "advbnn")
    assert curves.labels([ADV, ADVBNN, two]) == {"adv": "adversarial training", "advbnn": "advbnn", "advbnn-2": "advbnn-2"}
    assert curves.labels([ADVBNN]) == {"advbnn": "Adv-BNN"}


def test_a_name_that_has_had_two_defences_is_no_ones_alone():
    """A run that was deleted and trained anew under its old name: its old rows are not the new defence's."""
    old, new = run_fields("a", "adv") | {"weights": "old"}, run_fields("a", "none") | {"weights": "new"}
    rows = [row(old, 540, 0.1), row(new, 0, 0.1)]
    found = {curve.text: curve.rows[0]["accuracy"] for curve in curves.curves(rows, "epsilon")}
    assert found == {"a, old": 0.54, "a, new": 0.0}
    assert curves.labels(rows) == {"a": "a"}
    assert [curve.label for curve in curves.curves(rows[:1], "epsilon")] == ["adversarial training"]
