"""Tests of the verdict by rule: paired on images, above 0 in every seed, at a level that the contenders share."""
import pytest

from pyro_advbnn.attacks import catalogue
from pyro_advbnn.evaluation import intervals
from pyro_advbnn.experiments import reproduction
from pyro_advbnn.reporting import csv_tables, summaries
from pyro_advbnn.system.errors import InputError

RUN = {"dataset": "digits", "network": "convnet", "defense": "adv", "epsilon": 0.2, "num_samples": 20, "num_examples": 100}


RESULT = {"attacks": "pgd", "tried": "pgd", "accuracy": 0, "accuracy_low": 0, "accuracy_high": 1}


def attacked(folder, run, broken, *, weights="w", result=RESULT, **more):
    """The rows that `evaluate robust` leaves of a run of which these of 100 images are broken."""
    own = RUN | {"run": run, "checkpoint": f"{run}/best.pt", "weights": weights} | more
    csv_tables.Table(folder, "robust").add([own | result])
    csv_tables.Table(folder, "robust_examples").add([
        own | {"attack": attack, "index": index, "judged_margin": margin, "broken": int(attack == "pgd" and index in broken)}
        for attack, margin in (("none", 0.9), ("pgd", -0.1)) for index in range(100)])


def pair(name, seed):
    return {"pair": name, "seed": seed, "contender": f"advbnn-{name}-{seed}", "control": f"adv-{name}-{seed}", "epsilon": 0.2}


def judged(folder, won, others=()):
    """The rows and the note, where of each seed a contender stands on that many images on which its control is broken."""
    pairs = [pair("tuned", seed) for seed in range(len(won))]
    for each, number in zip(pairs, won, strict=True):
        attacked(folder, each["control"], set(range(50)))
        attacked(folder, each["contender"], set(range(number, 50)))
    for name in others:
        pairs.append(pair(name, 0))
        for role in ("contender", "control"):
            attacked(folder, pairs[-1][role], set(range(50)))
    reproduction.write_gains(folder, pairs)
    summary, = (each for each in summaries.summaries(folder) if each.name == "gains")
    return csv_tables.read(folder, "gains"), summary.note


@pytest.mark.parametrize(("won", "verdict"), [
    ((20, 15, 10), "tuned: a gain, above 0 in 3 of 3 seeds."),
    ((20, 15, 2), "tuned: no gain, above 0 in 2 of 3 seeds."),
    ((0, 0), "tuned: no gain, above 0 in 0 of 2 seeds."),
    ((20,), "tuned: no verdict from one seed."),
])
def test_a_gain_counts_where_the_interval_is_above_0_in_every_one_of_several_seeds(won, verdict, tmp_path):
    rows, note = judged(tmp_path, won)
    assert note.endswith(f" {verdict}") and "interval of 95 %" in note
    assert [row["gain"] for row in rows] == pytest.approx([number / 100 for number in won])


def test_the_difference_is_that_of_the_same_images(tmp_path):
    attacked(tmp_path, "adv-tuned-0", set(range(50)))
    attacked(tmp_path, "advbnn-tuned-0", set(range(20, 60)))                # 20 that the control loses, 10 that it keeps
    reproduction.write_gains(tmp_path, [pair("tuned", 0)])
    row, = csv_tables.read(tmp_path, "gains")
    assert (row["control_accuracy"], row["accuracy"], row["num_examples"]) == (0.5, 0.6, 100)
    table = next(each for each in summaries.summaries(tmp_path) if each.name == "gains")
    assert table.rows[0][2:4] == ["60.0", "50.0"]
    assert [row["gain_low"], row["gain_high"]] == pytest.approx(intervals.paired_difference_interval(20, 10, 100), rel=1e-4)


def test_contenders_share_the_error_so_that_one_among_four_needs_a_larger_gain(tmp_path):
    (alone, _), note = judged(tmp_path / "alone", (6, 6))
    (among_four, *_), shared = judged(tmp_path / "four", (6, 6), others=["perturbed", "longer", "mixture"])
    assert "interval of 95 %" in note and "interval of 98.75 %" in shared and "by 4 contenders" in shared
    assert alone["gain_low"] > 0 > among_four["gain_low"] and alone["gain"] == among_four["gain"]
    assert "tuned: a gain" in note and "tuned: no gain, above 0 in 0 of 2 seeds." in shared


@pytest.mark.parametrize("more", [{"epsilon": 0.3}, {"weights": "older"}], ids=["another radius", "older weights"])
def test_rows_of_another_attack_or_of_other_weights_are_not_counted(more, tmp_path):
    for name in ("adv-tuned-0", "advbnn-tuned-0"):
        attacked(tmp_path, name, set(range(100)), **more)
        attacked(tmp_path, name, set(range(50)))
    attacked(tmp_path, "adv-tuned-0", set(range(100)), epsilon=0.3)
    reproduction.write_gains(tmp_path, [pair("tuned", 0)])
    row, = csv_tables.read(tmp_path, "gains")
    assert (row["control_accuracy"], row["accuracy"]) == (0.5, 0.5)


def test_the_newest_results_that_are_whole_and_made_alike_are_compared(tmp_path):
    for name in ("adv-tuned-0", "advbnn-tuned-0"):
        attacked(tmp_path, name, set(range(50)))
    attacked(tmp_path, "adv-tuned-0", set(range(100)), network="convnet:bf16")               # the other only in float32
    own = RUN | {"run": "adv-tuned-0", "checkpoint": "adv-tuned-0/best.pt", "weights": "w"}
    csv_tables.Table(tmp_path, "robust").add([own | RESULT | {"attack_samples": 20, "tried": None}])     # was stopped
    csv_tables.Table(tmp_path, "robust_examples").add([                                  # an attack of another ensemble
        own | {"attack": "square", "index": index, "judged_margin": -0.2, "broken": 1} for index in range(100)])
    reproduction.write_gains(tmp_path, [pair("tuned", 0)])
    row, = csv_tables.read(tmp_path, "gains")
    assert (row["control_accuracy"], row["accuracy"]) == (0.5, 0.5)


def test_a_weaker_attack_that_came_later_is_not_what_counts(tmp_path):
    for name, draws in (("adv-tuned-0", 1), ("advbnn-tuned-0", 20)):
        attacked(tmp_path, name, set(range(50)), attack_samples=draws)
    attacked(tmp_path, "advbnn-tuned-0", set(), attack_samples=1)
    reproduction.write_gains(tmp_path, [pair("tuned", 0)])
    assert csv_tables.read(tmp_path, "gains")[0]["gain"] == 0


@pytest.mark.parametrize("name", ["adv-tuned-0", "advbnn-tuned-0"])
def test_a_smaller_ensemble_that_came_later_is_not_set_against_the_whole_one(name, tmp_path):
    whole, smaller = (RESULT | {"attacks": attacks, "tried": attacks} for attacks in ("noise pgd square", "noise square"))
    attacked(tmp_path, "adv-tuned-0", set(range(50)), result=whole)
    attacked(tmp_path, "advbnn-tuned-0", set(range(50)), result=whole | {"attacks": "pgd@mean noise pgd square",
                                                                        "tried": "pgd@mean noise pgd square"})
    attacked(tmp_path, name, set(range(50)), result=smaller, seed=1)        # whose images stand but for pgd
    reproduction.write_gains(tmp_path, [pair("tuned", 0)])
    row, = csv_tables.read(tmp_path, "gains")
    assert (row["control_accuracy"], row["accuracy"]) == (0.5, 0.5)


def test_the_default_ensembles_of_a_posterior_and_of_its_control_are_made_alike(tmp_path):
    for name, bayesian in (("adv-tuned-0", False), ("advbnn-tuned-0", True)):
        names = " ".join(catalogue.spelled_out(catalogue.default_names(bayesian, True, 10, "linf"), 10))
        attacked(tmp_path, name, set(range(50)), result=RESULT | {"attacks": names, "tried": names})
    reproduction.write_gains(tmp_path, [pair("tuned", 0)])
    assert csv_tables.read(tmp_path, "gains")[0]["gain"] == 0


@pytest.mark.parametrize("more", [
    {"network": "convnet:bf16"}, {"num_steps": 5}, {"num_queries": 500}, {"checkpoint": "advbnn-tuned-0/checkpoint.pt"},
    {"result": RESULT | {"attacks": "pgd square", "tried": "pgd square"}}], ids=lambda more: next(iter(more)))
def test_where_no_results_are_alike_the_pair_is_named(more, tmp_path):
    attacked(tmp_path, "adv-tuned-0", set(range(50)))
    attacked(tmp_path, "advbnn-tuned-0", set(range(50)), **more)
    with pytest.raises(InputError, match="made alike for advbnn-tuned-0 and adv-tuned-0"):
        reproduction.write_gains(tmp_path, [pair("tuned", 0)])
