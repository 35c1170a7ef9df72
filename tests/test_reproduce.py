"""Tests of plans and reproduce: what each piece needs, that it stops and goes on anywhere, and does nothing twice."""
import functools
import os
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hostile import pixels, refused_command, write_folder, write_npz
from victims import Victim

from pyro_advbnn import datasets, evaluate, networks, reproduce, train
from pyro_advbnn.cli import commands
from pyro_advbnn.cli.text_tables import duration
from pyro_advbnn.experiments import ablations, accuracy_verbs, costs, reproduction, uncertainty_verb
from pyro_advbnn.experiments.plans import BEYOND_THE_PAPER, PIECES, Plan
from pyro_advbnn.experiments.scales import Reproduction
from pyro_advbnn.reporting import csv_tables, figures
from pyro_advbnn.system import json_files
from pyro_advbnn.training import run_folders

TINY = ["--epochs", "1", "--num_train", "100", "--num_test", "20", "--width", "4", "--attack_samples", "2"]
SHORT = {"num_steps": 3, "num_samples": 2}
OFTEN = {"accuracy": SHORT, "transfer": SHORT, "posterior": SHORT | {"fractions": [0.0, 0.5]}, "report": SHORT,
         "ensemble": {"num_samples": [1, 5]}, "steps": {"num_steps": [3, 20]}, "robust": SHORT | {"num_queries": 5}}


def run(*words, quick=OFTEN):
    """The command; its verbs measure with the flags of `quick`, and figures are drawn by the report alone, which draws all."""
    with pytest.MonkeyPatch.context() as patch:
        for name, flags in quick.items():
            patch.setitem(evaluate.VERBS, name, functools.partial(evaluate.VERBS[name], **flags))
        patch.setattr("pyro_advbnn.experiments.verbs.draw_figures", lambda *_: None)
        commands.run(reproduce.VERBS, [str(word) for word in words])


def csv_files(out):
    return {path.name: path.read_bytes() for path in (out / "evaluation").glob("*.csv")}


def plan(*pieces, num_train=1437, num_test=360, **flags):
    return Plan(pieces, Reproduction(out=Path("out"), **flags), num_train, num_test)


def defenses(steps):
    return [step.flags["defense"] for step in steps if step.is_training]


@pytest.mark.parametrize(("piece", "trained", "verbs"), [
    ("table1", ["adv", "advbnn"], ["accuracy", "report"]),
    ("fig2", ["none", "adv", "rse", "bnn", "advbnn"], ["accuracy", "report"]),
    ("fig3", ["none", "adv", "rse", "bnn", "advbnn"], ["transfer", "report"]),
    ("fig4", ["advbnn"], ["posterior", "report"]),
    ("fig5", ["advbnn", "adv"], ["ensemble", "steps", "report"]),
    ("alpha", ["advbnn"] * 5, ["accuracy", "report"]),
    ("prior", ["advbnn"] * 4, ["accuracy", "report"]),
    ("lipschitz", ["none", "adv", "rse", "bnn", "advbnn"], ["gradients", "report"]),
    ("kl", [*["advbnn"] * 7, "adv", "advbnn"], ["accuracy", "report"]),
    ("beyond", ["adv", "advbnn"] * 4, ["accuracy", "robust", "report"]),
])
def test_each_piece_trains_what_it_needs_and_evaluates_it(piece, trained, verbs):
    steps = plan(piece).steps
    assert defenses(steps) == trained
    assert list(dict.fromkeys(step.program.split()[-1] for step in steps if not step.is_training)) == verbs


def test_all_pieces_share_their_runs():
    steps = plan(*PIECES).steps
    assert len(defenses(steps)) == 5 + 4 + 3             # the recipe's own alpha and prior_std are none of these, but of fig2's
    assert len({step.command for step in steps}) == len(steps)
    made = set()
    for step in steps:
        if step.is_training:
            made.add(step.flags["out"])
        else:
            assert set(step.flags["runs"]) <= made


def test_every_command_of_a_plan_is_one_that_can_be_given_by_hand():
    verbs = {"pyro_advbnn.evaluate": evaluate.VERBS, "pyro_advbnn.train": train.train}
    for scale in ("smoke", "small", "medium", "paper"):
        for step in plan(*PIECES, *BEYOND_THE_PAPER, scale=scale, dataset="cifar10", num_train=50_000, num_test=10_000).steps:
            python, m, module, *words = shlex.split(step.command)
            assert (python, m) == ("python", "-m")
            known, function = verbs[module], verbs[module]
            if isinstance(known, dict):
                function, words = known[words[0]], words[1:]
            read = commands._texts(function, words)
            assert read["out"].startswith("out")


def test_the_honest_attack_stands_beside_the_papers_in_table_1():
    draws = {tuple(step.flags["runs"])[0].name: step.flags["attack_samples"]
             for step in plan("table1", scale="paper", dataset="cifar10").steps if "accuracy" in step.program}
    assert draws == {"adv": [1], "advbnn": [1, 20]}


def test_the_paper_scale_takes_all_images_and_the_authors_recipe():
    for step in plan("table1", scale="paper", dataset="cifar10", num_train=50_000, num_test=10_000).steps:
        if step.is_training:
            assert step.flags["recipe"] == "authors"
            assert {step.flags[name] for name in ("num_train", "width", "network")} == {None}
            assert [step.flags[name] for name in ("epochs", "batch_size", "schedule")] == [30, 256, "cosine"]
        else:
            assert step.flags["num_test"] is None


def test_the_paper_scale_trains_in_bfloat16_on_a_gpu_and_what_the_user_says_stands():
    for scale, wanted, on_gpu, precision in (("paper", None, True, "bf16"), ("paper", None, False, "fp32"),
                                             ("medium", None, True, "bf16"), ("medium", "bf16", False, "bf16"),
                                             ("small", None, True, "fp32"), ("paper", "tf32", True, "tf32")):
        made = Plan(["table1"], Reproduction(scale=scale, dataset="cifar10", precision=wanted), 50_000, 10_000, on_gpu=on_gpu)
        assert {step.flags["precision"] for step in made.steps if step.is_training} == {precision}
        assert made.identity["precision"] == precision


@pytest.mark.parametrize(("dataset", "network", "width", "num_train", "num_test", "tested"), [
    ("cifar10", "vgg16", 16, 50_000, 10_000, 2000), ("stl10", "model_a", None, 5000, 3000, 3000),
    ("stl10", "model_a", None, 5000, 8000, 3000)])
def test_the_medium_scale_takes_all_images_and_many_draws_on_500_where_there_are_draws(
        dataset, network, width, num_train, num_test, tested):
    made = plan("table1", "fig2", "beyond", scale="medium", dataset=dataset, num_train=num_train, num_test=num_test)
    assert made.network_for(96) == network
    measured = {}
    for step in made.steps:
        if step.is_training:
            assert [step.flags[name] for name in ("recipe", "num_train", "network", "width")] == ["ours", None, None, width]
            assert step.flags["epochs"] == 30
        elif "accuracy" in step.program:
            name = step.flags["runs"][0].name.partition("-")[0]
            measured.setdefault(name, set()).add((*step.flags["attack_samples"], step.flags["num_test"]))
    of_control, of_random = {(1, tested), (1, 500)}, {(1, tested), (20, 500)}
    assert measured == {"none": of_control, "adv": of_control, "bnn": of_random, "rse": of_random, "advbnn": of_random}


def test_the_medium_scale_is_smoke_on_digits_and_few_test_images_are_those_of_all_draws():
    assert plan("table1", scale="medium").settings == plan("table1", scale="smoke").settings
    few = [step.flags for step in plan("table1", scale="medium", dataset="cifar10", num_test=300).steps
           if "accuracy" in step.program]
    assert [(flags["attack_samples"], flags["num_test"]) for flags in few] == [([1], 300), ([1, 20], 300)]


@pytest.mark.parametrize(("dataset", "averaging"), [("cifar10", 0.999), ("stl10", 0.995)])
def test_the_medium_scale_averages_weights_as_the_tuned_pair_which_is_its_own_two_runs(dataset, averaging):
    made = plan("table1", "kl", "beyond", scale="medium", dataset=dataset)
    runs = {step.flags["out"].name: step.flags for step in made.steps if step.is_training}
    assert not {"adv-tuned", "advbnn-tuned"} & set(runs)
    assert (made.pairs[0]["pair"], made.pairs[0]["control"], made.pairs[0]["contender"]) == ("tuned", "adv", "advbnn")
    assert runs["advbnn-longer"]["init_from"] == runs["adv"]["out"]
    assert {name: flags["weight_averaging"] for name, flags in runs.items()} == {
        name: 0 if name.startswith("kl-") else averaging for name in runs}
    assert len(made.steps[-1].flags["runs"]) == len(runs)
    others = plan("table1", scale="medium", dataset=dataset, recipe="authors").steps + plan("kl", scale="smoke").steps
    assert {step.flags.get("weight_averaging") for step in others if step.is_training} == {None}


@pytest.mark.parametrize("piece", BEYOND_THE_PAPER)
def test_a_run_that_is_compared_is_measured_before_the_next_one_is_trained(piece):
    steps = plan(piece, scale="paper", dataset="cifar10", num_train=50_000, num_test=10_000).steps
    compared = 0
    for step, following in zip(steps, steps[1:], strict=False):
        if "accuracy" in following.program:
            assert following.flags["runs"] == [step.flags["out"]] and following.flags["against"] == "run"
            assert following.flags["epsilons"] == [0.0, 0.035, 8 / 255] and following.flags["attack_samples"] == [1, 20]
            compared += 1
    robust = {(step.flags["epsilon"], step.flags["attack_samples"], step.flags["num_test"]) for step in steps
              if "robust" in step.program}
    assert robust == {"kl": set(), "beyond": {(8 / 255, 20, 1000)}}[piece]
    assert compared == {"kl": len(ablations.KL_OF_ALL_WEIGHTS),
                        "beyond": 2 * len(ablations.PAIRS)}[piece]


def test_what_is_tried_stands_over_the_plans_settings_and_starts_from_runs_of_the_plan():
    runs = {step.flags["out"].name: step.flags for step in plan("table1", "kl", "beyond", scale="paper",
                                                                       dataset="cifar10").steps if step.is_training}
    tried = len(ablations.KL_OF_ALL_WEIGHTS) + 2 * (len(ablations.PAIRS) + ablations.MIXTURES["tuned"] - 1)
    assert len(runs) == 2 + tried                        # adv is that of table1
    assert (runs["kl-as-printed"]["recipe"], runs["kl-as-printed"]["epochs"]) == ("paper", 10)
    assert runs["kl-warm-start"]["init_from"] == runs["adv"]["out"] and runs["adv"]["recipe"] == "authors"
    asked = plan("kl", scale="paper", dataset="cifar10", num_train=50_000, num_test=10_000, epochs=3)
    assert {step.flags["epochs"] for step in asked.steps if step.is_training} == {3}
    assert runs["advbnn-longer"]["init_from"] == runs["adv-tuned"]["out"]
    assert (runs["advbnn-longer"]["recipe"], runs["advbnn-longer"]["epochs"]) == ("ours", 30)


def test_each_contender_differs_from_its_control_in_the_defence_alone_and_in_each_seed_from_other_seeds():
    made = Plan(["beyond"], Reproduction(out=Path("out"), seed=2), 1437, 360, seeds=[1, 2, 2**31 - 1])
    flags = {step.flags["out"].name: step.flags for step in made.steps if step.is_training}
    attacked = {"+".join(run.name for run in step.flags["runs"] or step.flags["mixture"]): step.flags
                for step in made.steps if "robust" in step.program}
    assert [(pair["pair"], pair["seed"]) for pair in made.pairs] == [
        (name, seed) for seed in (1, 2, 2**31 - 1) for name in ("tuned", "perturbed", "longer", "tuned-mixture")]
    assert len(flags) == 3 * 8 and len(attacked) == 2 * len(made.pairs)
    for pair in made.pairs:
        contender, control = ([flags[name] for name in pair[role].split("+")] for role in ("contender", "control"))
        assert len(contender) == len(control) == (2 if pair["pair"] == "tuned-mixture" else 1)
        for ours, theirs in zip(contender, control, strict=True):
            assert {name for name in ours if ours[name] != theirs[name]} == {"defense", "out"}
            assert ours["weight_averaging"] == 0.999 and ours.get("awp") == {"perturbed": 0.005}.get(pair["pair"])
        seeds = {each["seed"] for each in contender}
        assert contender[0]["seed"] == pair["seed"] and len(seeds) == len(contender) and max(seeds) < 2**31
        ours, theirs = (attacked[pair[role]] for role in ("contender", "control"))
        assert {name for name in ours if ours[name] != theirs[name]} <= {"runs", "mixture"}
    for seed, suffix in ((1, "-seed-1"), (2, ""), (2**31 - 1, "-seed-2147483647")):      # the plan's own seed has no suffix
        assert flags[f"advbnn-longer{suffix}"]["init_from"] == flags[f"adv-tuned{suffix}"]["out"]
        assert flags[f"adv-tuned{suffix}"]["seed"] == seed


def test_more_draws_in_training_cost_more():
    flags = plan("table1").steps[-3].flags
    assert flags["defense"] == "advbnn"
    assert costs.training(flags | {"attack_samples": 4}, 1437) > 3 * costs.training(flags, 1437)
    assert costs.training(flags | {"epochs": 6}, 1437) == 2 * costs.training(flags | {"epochs": 3}, 1437)


def test_the_time_of_a_gradient_is_that_of_one_step_on_one_image(monkeypatch):
    clock = iter([1.0, 7.0])
    monkeypatch.setattr(costs, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    images = datasets.load("digits", "test")
    assert costs.seconds_per_gradient(networks.convnet(width=2), images) == 6 / (3 * 100)


def test_flags_stand_over_the_scale():
    first = plan("table1", scale="small", dataset="cifar10", num_train=50_000, width=6, epochs=3).steps[0].flags
    assert (first["width"], first["epochs"], first["num_train"], first["network"]) == (6, 3, 5000, "vgg11")


def test_a_step_costs_an_attack_for_each_draw_and_a_deterministic_network_has_one():
    one, many = (sum(step.gradients for step in plan("table1", attack_samples=draws).steps) for draws in (2, 20))
    assert many - one == 18 * 3 * 20 * 360               # draws x radii above 0 x steps x images
    cost = {step.flags["runs"][0].name: step.gradients for step in plan("beyond", scale="paper", dataset="cifar10").steps
            if "accuracy" in step.program}
    attacked, predicted = 2 * 20 * 360, 3 * 360 / 2      # gradients at two radii, forward passes at three
    assert cost["adv-tuned"] == attacked + predicted
    assert cost["advbnn-tuned"] == 21 * attacked + 2 * 20 * predicted
    assert costs.worst_case("adv", 20) == 12 * 40 + 1000 / 2             # PGD and eleven Auto-PGDs, then Square
    assert costs.worst_case("advbnn", 20) == (3 * 20 + 9) * 40 + 20 * 1000 / 2
    assert costs.worst_case("rse", 20) == 20 * costs.worst_case("adv", 20)


def test_every_step_takes_the_plans_seed_data_and_images():
    wanted = Reproduction(out=Path("out"), seed=3, num_test=150, data_dir=Path("d"), precision="bf16")
    made = Plan(PIECES, wanted, 1437, 360)
    assert made.identity["seed"] == 3
    for step in made.steps:
        if step.is_training:
            assert [step.flags[name] for name in ("seed", "precision", "data_dir")] == [3, "bf16", Path("d")]
        else:
            assert [step.flags[name] for name in ("seed", "num_test", "data_dir")] == [3, 150, Path("d")]


def test_figure_2_has_all_radii_and_the_honest_attack_on_all_that_is_random():
    steps = [step for step in plan("fig2", dataset="cifar10", scale="small").steps if "accuracy" in step.program]
    radii = {step.flags["runs"][0].name: step.flags["epsilons"] for step in steps
             if step.flags["attack_samples"] == [1]}
    assert list(radii) == ["none", "adv", "rse", "bnn", "advbnn"]
    assert all(epsilons == pytest.approx([0.005 * i for i in range(15)]) for epsilons in radii.values())
    honest = [step.flags["runs"][0].name for step in steps if step.flags["attack_samples"] == [1, 10]]
    assert honest == ["rse", "bnn", "advbnn"]


def test_figures_4_and_5_keep_a_pruned_network_and_have_the_honest_attack_on_fewer_images():
    few, _, *steps, _ = (step.flags for step in plan("fig4", "fig5", scale="paper", dataset="cifar10", num_train=50_000,
                                                    num_test=10_000).steps if not step.is_training)
    assert few["save_fractions"] == [0.5]
    assert [([run.name for run in flags["runs"]], flags.get("attack_samples"), flags["num_test"]) for flags in steps] == [
        (["adv", "advbnn"], None, 10_000), (["advbnn"], [20], 500)]


def test_the_sweeps_are_measured_clean_and_at_the_training_radius():
    for piece in ("alpha", "prior"):
        step, = (step for step in plan(piece).steps if "accuracy" in step.program)
        assert step.flags["epsilons"] == [0.0, 0.2] and step.flags["attack_samples"] == [1, 10]


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_the_run_without_a_kl_has_adam_because_the_natural_gradient_divides_by_alpha(scale):
    runs = {step.flags["out"].name: step.flags for step in plan("alpha", scale=scale, dataset="cifar10").steps
            if step.is_training}
    assert {name for name, flags in runs.items() if flags.get("optimizer")} == {"advbnn-alpha-0"}
    assert runs["advbnn-alpha-0"]["optimizer"] == "adam"


def test_a_small_subset_keeps_images_to_train_on_and_other_networks_have_no_width():
    for step in plan("table1", scale="small", dataset="cifar10", num_train=50_000, network="torchvision:resnet18").steps:
        if step.is_training:
            assert step.flags["width"] is None and step.flags["validation"] == 500
    few = Plan(["table1"], Reproduction(scale="small", dataset="cifar10", num_train=400), 50_000, 10_000)
    assert few.steps[0].flags["validation"] == 80


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All pieces, made without interruption."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run("all", *TINY, "--out", out)
    return out


def test_all_leaves_every_table_figure_and_the_report(whole):
    assert {path.stem for path in (whole / "evaluation").glob("*.csv")} == set(csv_tables.TABLES) - {
        *uncertainty_verb.TABLES, "robust", "robust_examples", "checks", "many_draws", "runs", "gains"}
    assert {path.stem for path in (whole / "figures").glob("*.svg")} == {
        "accuracy", "alpha", "prior_std", "transfer", "ensemble", "steps", "log_std", "log_std_by_layer",
        "signal_to_noise", "pruning", "gradients"}
    report = (whole / "report.html").read_text()
    assert len(report) > 50_000 and all(path.name in report for path in (whole / "runs").iterdir())
    assert {path.stem for path in (whole / "tables").glob("*.md")} >= {"table1", "transfer", "ensemble", "steps"}
    alphas = {row["alpha"] for row in csv_tables.read(whole, "alpha")}
    own, = alphas - {1, 0.1, 0.02, 0}
    stds = {row["prior_std"] for row in csv_tables.read(whole, "prior_std")}
    assert own == pytest.approx(json_files.read_config(whole / "runs" / "advbnn")["settings"]["alpha"]) and len(alphas) == 5
    assert stds == {"0.05", "0.1", "0.15", "auto"}


def test_the_runs_beyond_the_paper_leave_one_table_the_worst_case_and_a_verdict(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablations, "PAIRS", {"tuned": ablations.PAIRS["tuned"]})
    run("beyond", *TINY, "--out", tmp_path / "out")
    rows = csv_tables.read(tmp_path / "out", "runs")
    assert list(dict.fromkeys(row["run"] for row in rows)) == ["adv-tuned", "advbnn-tuned"]
    assert [(row["epsilon"], row["attack_samples"]) for row in rows if row["run"] == "advbnn-tuned"] == [
        (0, 1), (0.2, 1), (0, 2), (0.2, 2)]
    robust = {row["run"]: row["accuracy"] for row in csv_tables.read(tmp_path / "out", "robust")}
    single = ["adv-tuned", "advbnn-tuned"]
    assert list(robust) == [*single, *(f"{name}+{name}-seed-1000000" for name in single)]
    gains = csv_tables.read(tmp_path / "out", "gains")
    assert [(row["pair"], row["comparisons"], row["num_examples"]) for row in gains] == [
        ("tuned", 2, 20), ("tuned-mixture", 2, 20)]
    for row in gains:
        assert (row["accuracy"], row["control_accuracy"]) == (robust[row["contender"]], robust[row["control"]])
    verdict = "tuned: no verdict from one seed. tuned-mixture: no verdict from one seed."
    assert verdict in capsys.readouterr().out and verdict in (tmp_path / "out" / "report.html").read_text()
    lines = (tmp_path / "out" / "tables" / "runs.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| a")] == [
        "| adv-tuned", *2 * ["| advbnn-tuned"]]
    assert {path.stem for path in (tmp_path / "out" / "figures").glob("*.svg")} == set()


def test_a_training_that_starts_from_another_run_goes_on_after_a_kill_also_in_a_folder_that_was_moved(tmp_path):
    tiny = dict(epochs=1, num_train=100, num_test=20, width=4, attack_samples=2)

    def trainings(name):
        made = Plan(["beyond"], Reproduction(out=tmp_path / name, **tiny), 1437, 360)
        return {step.flags["out"].name: step for step in made.steps if step.is_training}

    train.train(**trainings("out")["adv-tuned"].flags)
    train.train(**trainings("out")["adv-longer"].flags, max_minutes=1e-9)        # as one that was killed leaves it
    (tmp_path / "out").rename(tmp_path / "moved")
    longer = trainings("moved")["adv-longer"]
    reproduction._run_step(longer, float("inf"), {"train": train.train})
    assert run_folders.is_finished(longer.flags["out"])


def test_what_has_no_figures_is_done_without_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablations, "KL_OF_ALL_WEIGHTS", {"ours": ablations.KL_OF_ALL_WEIGHTS["ours"]})
    run("kl", *TINY, "--out", tmp_path / "out")
    capsys.readouterr()
    run("kl", *TINY, "--out", tmp_path / "out")
    assert capsys.readouterr().out.startswith("nothing to do: all 3 steps are done")


def test_every_row_names_its_checkpoint_and_attack(whole):
    for name in ("accuracy", "transfer", "ensemble", "steps", "pruning", "alpha", "prior_std"):
        for row in csv_tables.read(whole, name):
            for column in ("run", "checkpoint", "weights", "attack", "epsilon", "num_steps", "step_size", "attack_samples",
                           "num_samples", "seed", "num_examples"):
                assert row[column] is not None, (name, column)
            assert (whole / "runs" / row["checkpoint"]).exists()


def test_a_second_call_does_nothing_and_says_so(whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    run("all", *TINY, "--out", whole)
    out = capsys.readouterr().out
    assert out.startswith("nothing to do: all 29 steps are done") and out.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_a_figure_after_another_trains_only_what_is_missing(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pyro_advbnn.experiments.report_verb.draw_figures", lambda *_: None)
    run("fig4", *TINY, "--out", tmp_path / "out")
    capsys.readouterr()
    run("table1", *TINY, "--out", tmp_path / "out")
    out = capsys.readouterr().out
    assert out.count("writing ") == 1 and "[1/4] python -m pyro_advbnn.train" in out
    for name in ("density.csv", "pruning.csv"):
        assert csv_files(tmp_path / "out")[name] == csv_files(whole)[name]
    rows = csv_tables.read(whole, "accuracy")
    assert all(row in rows for row in csv_tables.read(tmp_path / "out", "accuracy"))


def test_what_was_lost_is_made_again_also_in_a_folder_that_was_moved(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", {name: figures.FIGURES[name] for name in ("accuracy", "steps")})
    out = shutil.copytree(whole, tmp_path / "out")
    for name in ("figures", "tables"):
        shutil.rmtree(out / name)
    (out / "report.html").unlink()
    run("all", *TINY, "--out", out, "--dry_run")
    assert capsys.readouterr().out.startswith(f"29 steps to {out}, 28 of them done")
    (out / "evaluation" / "steps.csv").unlink()
    run("all", *TINY, "--out", out)
    said = capsys.readouterr().out
    assert "[1/2] python -m pyro_advbnn.evaluate steps" in said and "[2/2] python -m pyro_advbnn.evaluate report" in said
    assert "Table 1: accuracy (%) under white-box PGD on digits" in said and (out / "report.html").exists()
    for name in ("evaluation/*.csv", "figures/accuracy.*", "figures/steps.*", "tables/*"):
        assert {path.name: path.read_bytes() for path in out.glob(name)} == {
            path.name: path.read_bytes() for path in whole.glob(name)}


def test_a_run_that_is_gone_is_trained_and_evaluated_anew(whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    made = Plan(PIECES, Reproduction(epochs=1, num_train=100, num_test=20, width=4, attack_samples=2, out=out), 1437, 360)
    journal, lost = reproduction.Journal(made), out / "runs" / "advbnn"
    assert not journal.waiting()
    shutil.rmtree(lost)
    waiting = journal.waiting()
    assert [step for step in made.steps if lost in (step.flags["out"], *step.flags.get("runs", ()))] == waiting
    assert {"train", "evaluate posterior", "evaluate report"} < {step.program for step in waiting}


def test_killed_at_several_points_and_started_again_it_ends_with_the_same_records(tmp_path):
    out, once = tmp_path / "out", tmp_path / "once"
    for path in ("runs/adv/config.json", "evaluation/accuracy.csv"):
        victim = Victim("pyro_advbnn.reproduce:VERBS", ["table1", *TINY, "--out", out], tmp_path / "said")
        victim.wait_for((out / path).exists)
        victim.process.kill()
        assert victim.end() == -9
    for folder in (out, once):
        run("table1", *TINY, "--out", folder, quick={})
    assert csv_files(once) == csv_files(out) and len(csv_tables.read(out, "accuracy")) == 3 * 4


def test_a_step_that_fails_leaves_what_is_done_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accuracy_verbs, "robust_accuracy", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit) as end:
        run("table1", *TINY, "--out", tmp_path / "out")
    assert end.value.code == 130
    monkeypatch.undo()
    capsys.readouterr()
    run("table1", *TINY, "--out", tmp_path / "out")
    assert "1 of them done" in (out := capsys.readouterr().out) and "done in" in out
    assert "Table 1: accuracy (%) under white-box PGD on digits" in out


def test_it_stops_after_max_minutes(tmp_path, capsys):
    run("fig4", *TINY, "--out", tmp_path / "out", "--max_minutes", "1e-9")
    assert "stopped: --max_minutes 1e-09 are over; the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_dry_run_prints_the_plan_with_its_estimate_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("all", *TINY, "--dry_run")
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert last.startswith("on one thread: put OMP_NUM_THREADS=1 before a command")
    assert first.startswith("29 steps to runs/reproduce-digits-smoke, 0 of them done; about ")
    assert len(lines) == 29 and all(" python -m pyro_advbnn." in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_the_estimate_is_that_of_each_step_in_its_precision_and_of_trainings_side_by_side(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(costs, "seconds_per_gradient",
                        lambda network, images, precision="fp32": {"fp32": 1e-3, "bf16": 2e-3}[precision])
    wanted = Reproduction(out=tmp_path / "out", precision="bf16", jobs=2, device="cpu", dry_run=True)
    reproduction.run("table1", wanted, {})
    first, *lines, _ = capsys.readouterr().out.splitlines()
    steps = Plan(["table1"], wanted, 1437, 360).steps
    seconds = [step.gradients * (2e-3 if step.is_training else 1e-3) for step in steps]
    assert [line.partition("  python")[0].strip() for line in lines] == [duration(each) for each in seconds]
    total = sum(each / (2 if step.is_training else 1) for step, each in zip(steps, seconds, strict=True))
    assert f"about {duration(total)} on" in first


def refusal(capsys, *words):
    return refused_command(capsys, reproduce.VERBS, *words)


def test_the_seeds_of_the_runs_beyond_the_paper_are_refused_elsewhere_and_where_one_is_negative(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "--seeds must be a list of integers in [0, 2147483647]" in refusal(capsys, "beyond", *TINY, "--seeds", "0,-1")
    assert "unknown flag --seeds" in refusal(capsys, "table1", *TINY, "--seeds", "0,1")
    assert list(tmp_path.iterdir()) == []


def test_other_flags_in_the_same_folder_are_refused(whole, capsys):
    before = json_files.read_jsonl(whole / "reproduce.jsonl")
    assert "other flags (width 4, now 8)" in refusal(capsys, "all", *TINY[:-4], "--width", 8, "--attack_samples", 2,
                                                      "--out", whole)
    assert json_files.read_jsonl(whole / "reproduce.jsonl") == before


def test_other_images_of_the_users_own_are_refused_in_the_folder_of_the_first_and_the_same_elsewhere_are_not(tmp_path, capsys):
    first, moved, other = (tmp_path / f"{name}.npz" for name in ("first", "moved", "other"))
    images = {"y_train": np.arange(24) % 3, "x_test": pixels(4), "y_test": np.arange(4) % 3}
    write_npz(first, x_train=pixels(24), **images)
    shutil.copy(first, moved)
    write_npz(other, x_train=pixels(24)[::-1], **images)
    out = tmp_path / "out"
    flags = ["--dataset", "npz", "--num_train", 24, "--num_test", 4, "--width", 4, "--network", "convnet", "--out", out]
    plan, _ = reproduction._plan(["table1"], Reproduction(
        dataset="npz", data_dir=first, num_train=24, num_test=4, width=4, network="convnet", out=out), torch.device("cpu"))
    out.mkdir()
    reproduction.Journal(plan).open()
    assert "other flags (images " in refusal(capsys, "table1", *flags, "--data_dir", other)
    assert "now None)" in refusal(capsys, "table1", "--num_train", 24, "--num_test", 4, "--width", 4, "--out", out)
    run("table1", *flags, "--data_dir", moved, "--dry_run")


def test_a_plan_for_a_folder_is_the_same_whether_memory_holds_its_images_or_not(tmp_path, monkeypatch):
    write_folder(tmp_path / "a")
    wanted, plans = Reproduction(dataset="folder", data_dir=tmp_path / "a", image_size=8, num_train=4, num_test=4), []
    for fits in (True, False):
        monkeypatch.setattr("pyro_advbnn.datasets.loading._fits", lambda *_, fits=fits: fits)
        plans.append(reproduction._plan(["table1"], wanted, torch.device("cpu"))[0].identity)
    (tmp_path / "a" / "train" / "cat" / "0.png").rename(tmp_path / "a" / "train" / "cat" / "9.png")
    other = reproduction._plan(["table1"], wanted, torch.device("cpu"))[0].identity
    assert plans[0] == plans[1] != other and plans[0].keys() == other.keys()


def test_a_folder_with_something_else_is_refused_and_unchanged(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "exists already and is not overwritten; choose another --out\n" in refusal(capsys, "fig4", *TINY, "--out", tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("verb", reproduce.VERBS)
def test_every_piece_refuses_wrong_flags(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "did you mean --scale" in refusal(capsys, verb, "--scales", "smoke")
    assert "--scale must be one of smoke, small, medium, paper" in refusal(capsys, verb, "--scale", "big")
    assert "--data_dir" in refusal(capsys, verb, "--dataset", "npz")
    assert list(tmp_path.iterdir()) == []


def test_images_that_the_network_cannot_take_are_refused_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write_npz(tmp_path / "a.npz", x_train=pixels(12, 16), y_train=np.arange(12) % 3, x_test=pixels(2, 16))
    words = ["--dataset", "npz", "--data_dir", path, "--dry_run", "--num_train", "12", "--num_test", "2"]
    told = refusal(capsys, "table1", *words, "--network", "torchvision:alexnet")
    assert told.startswith("error: the network cannot take images of (3, 16, 16): ")


def test_photographs_of_several_sizes_are_brought_to_one_as_in_train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, size in (("cat", (20, 16)), ("dog", (16, 24))):
        write_folder(tmp_path / "photos", {f"{split}/{name}": 6 for split in ("train", "test")}, size)
    words = ["table1", "--dataset", "folder", "--data_dir", tmp_path / "photos", "--dry_run", "--width", 4]
    assert "--image_size brings all to one size" in refusal(capsys, *words)
    run(*words, "--image_size", 16)
    assert capsys.readouterr().out.count("--image_size 16") == 2


def test_the_shorter_side_of_images_names_their_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for height, width in ((20, 40), (40, 20)):
        images = np.zeros((12, height, width, 3), np.uint8)
        path = write_npz(tmp_path / "a.npz", x_train=images, y_train=np.arange(12) % 3, x_test=images[:2])
        run("table1", "--dataset", "npz", "--data_dir", path, "--dry_run")
        train.train(dataset="npz", data_dir=path, dry_run=True, width=4)
        assert '"network": "convnet"' in capsys.readouterr().out
