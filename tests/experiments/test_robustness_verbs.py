"""Tests of the verbs robust and checks: rows per image, going on, budgets, and what is refused."""
import csv
import shutil
from types import SimpleNamespace

import pytest
from hostile import refused_command
from tiny_runs import stop_at

from pyro_advbnn import evaluate
from pyro_advbnn.attacks import catalogue
from pyro_advbnn.attacks.carlini_wagner import CarliniWagner
from pyro_advbnn.cli import commands
from pyro_advbnn.evaluation import checks
from pyro_advbnn.experiments import robustness_verbs
from pyro_advbnn.reporting import csv_tables
from pyro_advbnn.system.errors import InputError

QUICK = ["--num_test", "60", "--batch_size", "40", "--epsilon", "0.05", "--num_steps", "2", "--attack_samples", "2",
         "--num_samples", "5", "--num_queries", "5"]
ATTACKS = ["--attacks", "noise,apgd-ce@mean,pgd,apgd-dlr"]


def evaluated(folder, verb, *words):
    commands.run(evaluate.VERBS, [verb, "--run", str(folder), *QUICK, *words])


def lines(folder, name):
    """The rows without what is not the same twice."""
    with (folder / "evaluation" / f"{name}.csv").open(newline="") as file:
        return [{name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def late_after(batches, monkeypatch):
    """It is late once so many batches were computed."""
    rows, count = robustness_verbs.worst_case._rows, []

    def counted(*arguments):
        count.append(1)
        return rows(*arguments)

    monkeypatch.setattr(robustness_verbs.worst_case, "_rows", counted)
    monkeypatch.setattr(robustness_verbs.time, "monotonic", lambda: 1e9 * (len(count) >= batches))


def test_a_table_of_another_version_is_refused_before_any_attack(run, capsys):
    (run / "evaluation").mkdir()
    (run / "evaluation" / "robust.csv").write_text("run,accuracy\n")
    assert "robust.csv: its columns are not those of a table of this version" in refused_command(
        capsys, evaluate.VERBS, "robust", "--run", run, *QUICK, *ATTACKS)
    assert not (run / "evaluation" / "robust_examples.csv").exists()


def test_robust_writes_a_row_per_image_and_attack_and_the_worst_case(run, capsys):
    evaluated(run, "robust", *ATTACKS)
    examples, (result,) = csv_tables.read(run, "robust_examples"), csv_tables.read(run, "robust")
    clean = [row for row in examples if row["attack"] == "none"]
    assert [row["index"] for row in clean] == list(range(60))
    left = {row["index"] for row in clean if row["leaves"]}
    assert {row["index"] for row in examples if row["attack"] == "noise"} == set(range(60)) - left
    stands = {index: row for index in range(60)
              for row in [min((row for row in examples if row["index"] == index), key=lambda row: row["judged_margin"])]}
    assert result["accuracy"] == pytest.approx(sum(not row["broken"] for row in stands.values()) / 60)
    assert result["attacks"] == result["tried"] == "noise apgd-ce@mean pgd apgd-dlr"
    told = capsys.readouterr().out
    assert "accuracy in the worst case, after each attack" in told and "apgd-ce@mean" in told and "added 1 rows" in told
    assert {row["label"] for row in clean} <= set("0123456789")


def test_a_second_call_computes_nothing_and_one_that_was_stopped_goes_on_to_the_same_rows(run, monkeypatch, capsys):
    evaluated(run, "robust", *ATTACKS)
    whole = [lines(run, name) for name in ("robust_examples", "robust")]
    monkeypatch.setattr(robustness_verbs.worst_case, "judge", lambda *_: pytest.fail("computed again"))
    evaluated(run, "robust", *ATTACKS)
    assert "added 0 rows" in capsys.readouterr().out
    monkeypatch.undo()

    shutil.rmtree(run / "evaluation")
    stop_at(monkeypatch, robustness_verbs.worst_case, "_rows", 6)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        evaluated(run, "robust", *ATTACKS)
    monkeypatch.undo()
    assert 0 < len(lines(run, "robust_examples")) < len(whole[0]) and not (run / "evaluation" / "robust.csv").exists()
    evaluated(run, "robust", *ATTACKS)
    assert [lines(run, name) for name in ("robust_examples", "robust")] == whole


def test_when_the_time_is_up_the_result_says_what_was_tried_and_the_next_call_goes_on(run, capsys, monkeypatch):
    late_after(4, monkeypatch)                           # two batches of clean images, two of noise
    evaluated(run, "robust", *ATTACKS, "--max_minutes", "1")
    monkeypatch.undo()
    row, = csv_tables.read(run, "robust")
    assert row["tried"] == "noise" and row["num_examples"] == 60
    assert "the time was up before apgd-ce@mean, pgd, apgd-dlr had seen all images" in capsys.readouterr().out
    evaluated(run, "robust", *ATTACKS)
    again, = csv_tables.read(run, "robust")
    assert again["tried"] == again["attacks"]


def test_an_attack_that_was_stopped_between_its_batches_is_finished_by_the_next_call(run, monkeypatch):
    evaluated(run, "robust", "--attacks", "noise,pgd")
    whole = [lines(run, name) for name in ("robust_examples", "robust")]
    shutil.rmtree(run / "evaluation")
    late_after(5, monkeypatch)                           # before the second batch of the last attack
    evaluated(run, "robust", "--attacks", "noise,pgd", "--max_minutes", "1")
    monkeypatch.undo()
    row, = csv_tables.read(run, "robust")
    attacks = {row["attack"] for row in csv_tables.read(run, "robust_examples")}
    assert row["tried"] == "noise" and attacks == {"none", "noise", "pgd"}
    evaluated(run, "robust", "--attacks", "noise,pgd")
    assert [lines(run, name) for name in ("robust_examples", "robust")] == whole
    csv_tables.Table(run, "robust").add([row])           # as where it is killed before the result is written
    evaluated(run, "robust", "--attacks", "noise,pgd")
    assert [lines(run, name) for name in ("robust_examples", "robust")] == whole


def test_fewer_attacks_afterwards_add_rows_and_change_none(run, monkeypatch, capsys):
    monkeypatch.setattr(robustness_verbs.worst_case, "SURE", 0)                 # an image leaves as soon as it is broken
    evaluated(run, "robust", *ATTACKS)
    whole = lines(run, "robust_examples")
    evaluated(run, "robust", "--attacks", "pgd")         # sees images, too, that an earlier attack had removed
    after = lines(run, "robust_examples")
    assert len(after) > len(whole) and all(row in after for row in whole)
    monkeypatch.setattr(robustness_verbs.worst_case, "judge", lambda *_: pytest.fail("computed again"))
    capsys.readouterr()
    evaluated(run, "robust", *ATTACKS)
    assert "added 0 rows" in capsys.readouterr().out


def test_checks_writes_verdicts_and_the_curve_over_draws(run, capsys, monkeypatch):
    monkeypatch.setattr(checks, "COUNTS", (1, 3))
    evaluated(run, "checks")
    rows = csv_tables.read(run, "checks")
    assert [row["check"] for row in rows] == list(checks.CHECKS)
    assert {row["verdict"] for row in rows} <= {checks.HELD, checks.FAILED, checks.UNKNOWN, checks.UNFIT}
    assert [row["attack_samples"] for row in csv_tables.read(run, "many_draws")] == [1, 3]
    assert (run / "figures" / "many_draws.svg").exists() and "could not tell" in capsys.readouterr().out
    monkeypatch.setattr(robustness_verbs.Examination, "correct", lambda *_, **__: pytest.fail("measured again"))
    evaluated(run, "checks")


def test_robust_draws_from_the_seed_of_the_flag(run, monkeypatch):
    asked, real = [], robustness_verbs.worst_case.attacked
    monkeypatch.setattr(robustness_verbs.worst_case, "attacked",
                        lambda *args, **how: asked.append(how["seed"]) or real(*args, **how))
    evaluated(run, "robust", "--attacks", "noise", "--seed", "3")
    assert asked == [3]


def test_the_checks_take_the_seed_and_the_papers_step(run, monkeypatch):
    made, real = [], robustness_verbs.Examination
    monkeypatch.setattr(robustness_verbs, "Examination", lambda *args, **how: made.append(how) or real(*args, **how))
    monkeypatch.setattr(robustness_verbs.recipes, "default_step_size", lambda dataset: 0.007)
    monkeypatch.setattr(robustness_verbs.checks, "CHECKS", {"large radius": checks.large_radius})
    evaluated(run, "checks", "--seed", "3")
    assert (made[0]["seed"], made[0]["paper_step"]) == (3, 0.007)


def test_an_euclidean_ensemble_has_a_radius_of_its_own(run, monkeypatch):
    monkeypatch.setitem(catalogue.ATTACKS, "cw", (("l2",), lambda strength: CarliniWagner(strength.epsilon, num_steps=3)))
    commands.run(evaluate.VERBS, ["robust", "--run", str(run), "--num_test=20", "--norm=l2", "--attacks=noise,cw",
                             "--num_samples=2",
                             "--attack_samples=1", "--num_steps=2"])
    row, = csv_tables.read(run, "robust")
    assert (row["norm"], row["epsilon"]) == ("l2", 0.5)


def test_two_classes_have_no_dlr_and_are_told_so_before_any_attack():
    run = SimpleNamespace(name="two", config={"num_classes": 2}, is_random=True, is_bayesian=True, is_mixture=False)
    strength = catalogue.Strength(0.1)
    names = robustness_verbs._ensemble(run, None, strength)[0]
    assert "apgd-dlr" not in names and "apgd-margin" in names
    for name, least in (("apgd-dlr", 3), ("apgd-t", 4), ("apgd-t2", 4), ("apgd-t9", 10)):
        with pytest.raises(InputError, match=f"{name} needs at least {least} classes, there are 2"):
            robustness_verbs._ensemble(run, ["pgd", f"{name}@mean"], strength)


def test_targeted_apgd_goes_for_each_wrong_class_but_for_nine_at_most():
    strength = catalogue.Strength(0.1)
    for num_classes, most in ((4, 3), (10, 9), (100, 9)):
        run = SimpleNamespace(config={"num_classes": num_classes})
        attacks, _ = robustness_verbs._ensemble(run, ["pgd", "apgd-t@mean", "square"], strength)
        ranks = range(1, most + 1)
        assert list(attacks) == ["pgd", *(f"apgd-t{rank}@mean" for rank in ranks), "square"]
        assert [attacks[f"apgd-t{rank}@mean"].attack.target_rank for rank in ranks] == [*ranks]


@pytest.mark.parametrize(("words", "message"), [
    (["robust", "--attacks=pdg"], "--attacks must be of noise, fgsm"),
    (["robust", "--epsilon=2"], "epsilon must lie in [0, 1], got 2"),
    (["robust", "--attacks=square", "--norm=l2"], "square is an attack in the norm linf"),
    (["robust", "--epsilon=0"], "--epsilon"),
    (["checks", "--epsilon=0"], "--epsilon"),
])
def test_wrong_flags_are_refused_before_any_work(run, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        commands.run(evaluate.VERBS, [words[0], "--run", str(run), *words[1:]])
    assert ended.value.code == 2 and message in capsys.readouterr().err and not (run / "evaluation").exists()


def test_the_report_shows_the_worst_case_and_the_checks(run, monkeypatch):
    monkeypatch.setattr(checks, "COUNTS", (1, 2))
    evaluated(run, "robust", "--attacks=noise")
    evaluated(run, "checks")
    commands.run(evaluate.VERBS, ["report", "--run", str(run), "--num_images=0"])
    page = (run / "report.html").read_text()
    assert "Accuracy in the worst case over several attacks" in page and "Signs of a broken evaluation" in page
    assert (run / "tables" / "robust.md").exists()
