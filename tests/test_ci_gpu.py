"""`.ci/gpu`, what is run on a lent GPU, rehearsed on the CPU at toy size."""
import functools
import json
import os
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyro_advbnn import evaluate, train
from pyro_advbnn.cli import commands
from pyro_advbnn.training.flags import check_meaning, check_optimizer
from pyro_advbnn.training.recipes import resolve

PROGRAM = Path(__file__).resolve().parents[1] / ".ci" / "gpu"
TOY = ["--dataset=digits", "--network=convnet", "--width=4", "--num_train=100", "--epochs=2", "--min_epochs=1", "--runs=adv",
       "--batch_size=50", "--epsilons=0.1", "--batch_sizes=2", "--device=cpu", "--precision=fp32",
       "--cuda_graphs=off", "--slower=10", "--budget_seconds=5400"]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch, without_matplotlib):
    monkeypatch.setenv("PYTHONPATH", without_matplotlib)


def rehearsed(part, folder, *flags):
    """The finished process, the steps that are recorded, and the names in the packed records."""
    (folder / "packed").mkdir(exist_ok=True)
    process = subprocess.run([sys.executable, PROGRAM, part, *TOY, *flags, f"--out={folder / 'gpu'}"], text=True,
                             capture_output=True, env=os.environ | {"OUT": str(folder / "packed"), "PYTHON": sys.executable})
    name = {"check": "check", "table1": "digits"}[part]
    with tarfile.open(folder / "packed" / f"{name}.tar.gz") as tar:
        names = {Path(found).relative_to(name).as_posix() for found in tar.getnames()}
    return process, [json.loads(line) for line in (folder / "gpu" / name / "steps.jsonl").read_text().splitlines()], names


def test_the_commands_of_every_run_are_such_as_the_programs_take():
    gpu, called = runpy.run_path(str(PROGRAM)), []
    asked = SimpleNamespace(dataset="cifar10", data_dir=None, network="vgg16", width=None, num_train=50_000, validation=None,
                            batch_size=256, weight_averaging=0.999, device="cpu", epsilons="8/255,0", num_test=(9, 3, 2))

    def taken(command, flags):
        idle = functools.wraps(command)(lambda **flags: called.append(flags))
        commands.run(idle, [f"--{name}={value}" for name, value in flags.items() if value is not None])
        return called[-1]

    for name in gpu["RUNS"]:
        groups = taken(train.train, gpu["training"](name, asked)).values()
        flags = {flag: value for group in groups for flag, value in vars(group).items() if value is not None}
        check_meaning(flags["defense"], flags)
        check_optimizer(flags["defense"], resolve(flags["recipe"], "cifar10", flags["defense"], flags))
        steps = gpu["evaluations"](name, asked)
        for _, verb, chosen in steps:
            taken(evaluate.VERBS[verb], chosen | {"run": "run"})
        assert [verb for _, verb, _ in steps] == (["accuracy", "accuracy", "robust", "posterior"] if "bnn" in name else [
            "accuracy", "robust"])


@pytest.mark.parametrize("works, epochs, trials", [({"auto", "off"}, 8, ["auto"]), ({"off"}, 8, ["auto", "off"]),
                                                   (set(), 3, ["auto", "off"])])
def test_a_trial_that_fails_is_made_again_without_graphs_and_stops_no_training(tmp_path, works, epochs, trials):
    gpu, called = runpy.run_path(str(PROGRAM)), []
    flags = SimpleNamespace(dataset="cifar10", data_dir=None, network="vgg16", width=None, num_train=50_000, validation=None,
                            batch_size=256, weight_averaging=0.999, device="cuda", epochs=30, min_epochs=3, slower=1)

    def call(name, module, flags, seconds):
        called.append(flags["cuda_graphs"])
        flags["out"].mkdir()
        rows = '{"images_per_second": 4000}\n' if flags["cuda_graphs"] in works else ""
        (flags["out"] / "metrics.jsonl").write_text(rows)

    records = SimpleNamespace(folder=tmp_path, left=lambda: 520.0, call=call)
    for _ in "ab":                                       # the second time from the records
        assert gpu["tried"](records, flags) == {"epochs": epochs, "cuda_graphs": trials[-1]}
    assert called == trials


def test_records_that_cannot_be_packed_stop_nothing(tmp_path, monkeypatch, capsys):
    gpu = runpy.run_path(str(PROGRAM))
    monkeypatch.setenv("OUT", str(tmp_path / "gone"))
    assert gpu["Records"](tmp_path / "records", 60).call("step", "platform", {}, 50) == 0
    assert "not packed: " in capsys.readouterr().out and (tmp_path / "records" / "steps.jsonl").exists()


def test_a_run_that_is_none_is_refused_before_any_work(tmp_path):
    process = subprocess.run([sys.executable, PROGRAM, "table1", "--runs=adv,advbn", f"--out={tmp_path / 'gpu'}"], text=True,
                             capture_output=True)
    assert process.returncode == 2 and process.stderr.endswith(", got adv,advbn\n") and not list(tmp_path.iterdir())


@pytest.mark.torture
def test_the_check_keeps_what_tests_and_benchmark_say(tmp_path):
    process, steps, names = rehearsed("check", tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    assert [(step["step"], step["code"]) for step in steps] == [("tests", 0), ("benchmark graphs off", 0)]
    assert {"tests.log", "tests.xml", "benchmark-graphs-off.log", "graphs-off/benchmark.csv", "steps.jsonl"} <= names
    assert "skipped" in (tmp_path / "gpu" / "check" / "tests.log").read_text().splitlines()[-1]


@pytest.mark.slow
def test_table_1_trains_and_evaluates_and_a_second_call_goes_on_from_the_records(tmp_path):
    process, steps, _ = rehearsed("table1", tmp_path, "--num_test", "0", "4", "4")             # evaluate refuses 0
    assert process.returncode == 1 and "1 evaluations are not done" in process.stdout, process.stdout + process.stderr
    assert [step["code"] for step in steps] == [0, 0, 2, 0]
    process, steps, names = rehearsed("table1", tmp_path, "--num_test", "20", "4", "4", "--runs=adv,none", "--jobs=2")
    assert process.returncode == 0, process.stdout + process.stderr
    assert {step["step"] for step in steps[4:]} == {"adv 1 draws", "none train", "none 1 draws", "none apgd"}
    assert {"epochs.json", "adv/config.json", "none/metrics.jsonl", "evaluation/accuracy.csv", "evaluation/robust.csv"} <= names
    assert not any(".pt" in name for name in names)
    assert len(rehearsed("table1", tmp_path)[1]) == len(steps)
