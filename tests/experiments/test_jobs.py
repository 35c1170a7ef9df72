"""Tests of --jobs: trainings at work at once, what comes when, and that nothing is lost or taken for done that is not.

The trainings are a shell script in place of Python, which ends when the files that a test waits for are there.
"""
import collections
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest
import torch

from pyro_advbnn.cli import commands, signals
from pyro_advbnn.experiments import reproduction
from pyro_advbnn.experiments.plans import Plan
from pyro_advbnn.experiments.scales import Reproduction
from pyro_advbnn.system import json_files
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.train import train
from pyro_advbnn.training import run_folders

# $run is the folder of the training; `await FILE ...` waits for files, 60 seconds at most.
SCRIPT = """#!/bin/sh
words="$*"
for word; do case $before in --out|--resume) run=$word;; esac; before=$word; done
cd "{home}"; mkdir -p $run; cd $run
name=$(basename $run)
await() {{ for i in $(seq 1200); do ls "$@" >ls.txt 2>&1 && return; sleep 0.05; done; exit 9; }}
echo "$words" >>words; echo $OMP_NUM_THREADS >threads; cut -d" " -f5 /proc/$$/stat >group; touch config.json here
{what}
"""
FINISH = "echo done: 1 epochs; touch finished"
BOTH = "await ../adv/here ../advbnn/here"
STOPPED = "trap 'touch saved; exit 143' TERM; touch ready; await never"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A function that sets what a training does; a run is finished where it has left a file of that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(run_folders, "is_finished", lambda folder: (folder / "finished").exists())
    monkeypatch.setattr(reproduction, "_seconds_per_gradient", lambda *_: (1e-6, 1e-6))
    monkeypatch.setattr(reproduction.summaries, "summaries", lambda _: [])

    def write(what):
        (tmp_path / "python").write_text(SCRIPT.format(home=tmp_path, what=what))
        (tmp_path / "python").chmod(0o755)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)      # where the tests run in the background it is ignored
    yield write
    signal.signal(signal.SIGINT, before)


def reproduce(jobs=2, **flags):
    """[(what ran in this process, its runs, on how many threads)] of table1 in the folder out."""
    done = []

    def evaluate(verb):
        def evaluated(runs, out, **_):
            done.append((verb, [run.name for run in runs], torch.get_num_threads()))
            for name in ("evaluation", "tables", "figures"):
                (out / name).mkdir(exist_ok=True)
            (out / ("report.html" if verb == "evaluate report" else "evaluation/accuracy.csv")).touch()
            (out / f"measured-{'-'.join(run.name for run in runs)}").touch()
        return evaluated

    programs = collections.defaultdict(lambda: None, {f"evaluate {verb}": evaluate(f"evaluate {verb}")
                                                      for verb in ("accuracy", "report")})
    with signals.raising():
        reproduction.run("table1", Reproduction(out=Path("out"), scale="small", jobs=jobs, **flags), programs)
    return done


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_two_trainings_are_at_work_at_once_each_with_its_share_and_what_is_trained_is_evaluated_meanwhile(
        script, four_threads, capsys):
    script(f"{BOTH}; [ $name = adv ] || await ../../measured-adv; {FINISH}")
    assert reproduce() == [("evaluate accuracy", ["adv"], 2), ("evaluate accuracy", ["advbnn"], 4),
                           ("evaluate report", ["adv", "advbnn"], 4)]
    out = capsys.readouterr().out
    assert "2 trainings at once on 2 threads each" in out and "out/runs/advbnn: done: 1 epochs" in out
    for name in ("adv", "advbnn"):
        run, log = Path("out/runs") / name, Path("out/logs") / f"{name}.log"
        assert (run / "threads").read_text() == "2\n" and int((run / "group").read_text()) != os.getpgrp()
        assert log.read_text() == "done: 1 epochs\n"
        m, program, *words = shlex.split((run / "words").read_text())
        assert (m, program) == ("-m", "pyro_advbnn.train") and commands._texts(train, words)["out"] == str(run)
    assert len(json_files.read_jsonl("out/reproduce.jsonl")) == 1 + 5
    assert reproduce() == [] and "nothing to do: all 5 steps are done" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["a training fails", "Ctrl-C", "SIGTERM", "--max_minutes"])
def test_what_stops_one_training_stops_the_others_after_a_step_and_the_same_command_goes_on(script, capsys, how):
    ends = {"a training fails": "echo 'error: out of luck'; exit 2", "Ctrl-C": f"kill -INT $PPID; {STOPPED}",
            "SIGTERM": f"kill -TERM $PPID; {STOPPED}", "--max_minutes": "exit 0"}
    script(f"[ $name = adv ] || {{ {STOPPED}; }}; await ../advbnn/ready; {ends[how]}")
    if how == "--max_minutes":
        assert reproduce(max_minutes=9) == []
        assert "stopped: --max_minutes 9 are over; the same command goes on" in capsys.readouterr().out
        assert "--max_minutes" in Path("out/runs/advbnn/words").read_text()
    else:
        with pytest.raises(InputError if how == "a training fails" else KeyboardInterrupt) as error:
            reproduce()
        if how == "a training fails":
            assert str(error.value) == ("the training of out/runs/adv ended with code 2: out of luck; all that it said is in "
                                        "out/logs/adv.log")
        assert "more after their step; Ctrl-C again stops at once" in capsys.readouterr().out
    assert Path("out/runs/advbnn/saved").exists()
    assert len(json_files.read_jsonl("out/reproduce.jsonl")) == 1
    script(FINISH)
    assert [verb for verb, *_ in reproduce()] == ["evaluate accuracy", "evaluate accuracy", "evaluate report"]
    assert "-m pyro_advbnn.train --resume out/runs/adv " in Path("out/runs/adv/words").read_text().splitlines()[-1]


def test_what_ended_beside_a_training_that_failed_is_kept(script):
    script(f"[ $name = adv ] || {{ {BOTH}; {FINISH}; exit; }}; await ../advbnn/finished; exit 2")
    with pytest.raises(InputError, match=r"runs/adv ended with code 2: it said nothing"):
        reproduce()
    script(FINISH)
    reproduce(jobs=3)
    assert len(Path("out/runs/advbnn/words").read_text().splitlines()) == 1


def test_a_second_signal_kills_what_does_not_stop(script):
    script(f"trap 'touch ended' EXIT; trap 'kill -INT $PPID' TERM; touch ready; "
           f"[ $name = adv ] || {{ {BOTH}; await ../adv/ready; kill -INT $PPID; }}; await never")
    with pytest.raises(KeyboardInterrupt):
        reproduce()
    assert not list(Path("out").rglob("ended"))          # as whoever ends by himself leaves behind


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_a_step_comes_when_its_runs_are_there_and_the_report_when_all_is(jobs):
    plan = Plan(["beyond", "fig2"], Reproduction(out=Path("out"), jobs=jobs), 1437, 360, seeds=[0, 1])
    waiting, at_work, trained, order, most = list(plan.steps), [], set(), [], 0
    while waiting or at_work:
        step = reproduction._next(waiting, at_work) if len(at_work) < jobs else None
        if step is None:
            trained.add(at_work.pop(0).flags["out"])
            continue
        waiting.remove(step)
        order.append(step)
        needed = step.flags.get("runs") or step.flags.get("mixture") or [step.flags.get("init_from")]
        assert set(needed) - {None} <= trained
        if step.is_training:
            at_work.append(step)
        most = max(most, len(at_work))
    assert most == jobs and order[-1].program == "evaluate report"
    assert jobs > 1 or order == plan.steps


@pytest.mark.torture
def test_trainings_side_by_side_leave_the_rows_of_those_one_after_another(tmp_path, capsys):
    from pyro_advbnn.reproduce import VERBS

    tiny = ["--epochs", "1", "--num_train", "100", "--num_test", "20", "--width", "4", "--attack_samples", "2"]
    for jobs in ("1", "2"):
        commands.run(VERBS, ["table1", *tiny, "--jobs", jobs, "--out", str(tmp_path / jobs)])
    assert len({(tmp_path / jobs / "evaluation" / "accuracy.csv").read_bytes() for jobs in ("1", "2")}) == 1
    assert (tmp_path / "2" / "logs" / "advbnn.log").read_text().splitlines()[-1].startswith("done: 1 epochs")
