"""Tests of Ctrl-C and SIGTERM: a training ends its step and is saved, a second one ends it at once, exit codes tell."""
import os
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from tiny_runs import TINY, assert_same_run, content, run, snapshot, words
from victims import Victim

from pyro_advbnn import __main__, benchmark, demo, evaluate, reproduce
from pyro_advbnn.cli import commands, signals
from pyro_advbnn.experiments import accuracy_verbs, comparison
from pyro_advbnn.system import distributed, json_files, locks
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.train import main, train
from pyro_advbnn.training import loop, run_folders
from pyro_advbnn.training.progress import Progress
from pyro_advbnn.training.trainer import Training

ENDLESS = TINY | {"epochs": 100_000, "schedule": "constant"}
ROOT = Path(__file__).parents[2]
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
SMOKE = ["fig4", "--epochs", "1", "--num_train", "100", "--num_test", "20", "--width", "4"]


@pytest.fixture(autouse=True)
def not_ignored():
    """Where the tests run in the background, Ctrl-C is ignored, and under nohup SIGHUP."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers():
    return [signal.getsignal(number) for number in WORDS]


def at_step(monkeypatch, step, number):
    """Send this process a signal in the middle of a step, numbered over the run."""
    real, count = Training._step, 0

    def step_(self, x, y):
        nonlocal count
        count += 1
        if count == step:
            signal.raise_signal(number)
        real(self, x, y)

    monkeypatch.setattr(Training, "_step", step_)


@pytest.fixture
def drawn(monkeypatch):
    """What the command `train` has drawn; nothing is drawn in fact."""
    calls = []
    monkeypatch.setattr("pyro_advbnn.train.find_spec", lambda name: name)
    monkeypatch.setattr("pyro_advbnn.reporting.figures.draw", lambda *arguments: calls.append(arguments))
    return calls


@pytest.mark.parametrize(("ending", "code"), [("the end", 0), ("max_minutes", 0), ("SIGTERM", 143), ("not finite", 2)])
def test_the_command_draws_the_course_of_its_run_whatever_ends_it(tmp_path, monkeypatch, drawn, ending, code):
    folder, flags = tmp_path / "run", TINY | {"max_minutes": 1e-6} if ending == "max_minutes" else TINY
    if ending == "SIGTERM":
        at_step(monkeypatch, 2, signal.SIGTERM)
    if ending == "not finite":
        flags = flags | {"optimizer": "sgd", "learning_rate": 1e30}
    with pytest.raises(SystemExit) if code else nullcontext() as end:
        main([*map(str, words(flags)), "--out", str(folder)])
    assert (end.value.code if code else 0) == code
    assert drawn == [(folder, ["training"])]
    with pytest.raises(SystemExit):                      # what is refused is not drawn
        main(["--resume", str(folder), "--epochs", "1", "--seed", "1"])
    assert len(drawn) == 1


def test_a_second_signal_and_the_call_from_python_draw_nothing(tmp_path, monkeypatch, drawn):
    run(tmp_path / "python", epochs=1)
    at_step(monkeypatch, 2, signal.SIGTERM)
    monkeypatch.setattr(run_folders, "save_position", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as end:
        main([*map(str, words(TINY)), "--out", str(tmp_path / "run")])
    assert end.value.code == 143 and drawn == []


@pytest.mark.parametrize("error", [ValueError("no\nfonts"), OSError("full")])
def test_a_figure_that_cannot_be_drawn_is_a_line_and_costs_no_training(tmp_path, monkeypatch, capsys, drawn, error):
    monkeypatch.setattr("pyro_advbnn.reporting.figures.draw", Mock(side_effect=error))
    folder = tmp_path / "run"
    main([*map(str, words(TINY | {"epochs": 1})), "--out", str(folder)])
    out, err = capsys.readouterr()
    assert err == "" and out.endswith(f"note: {folder}/figures/training.svg is not drawn: {' '.join(str(error).split())}\n")
    assert run_folders.is_finished(folder)
    monkeypatch.setattr("pyro_advbnn.train.find_spec", lambda name: None)
    main([*map(str, words(TINY | {"epochs": 1})), "--out", str(tmp_path / "without matplotlib")])
    assert "note" not in capsys.readouterr().out


def test_a_program_that_imports_the_package_keeps_its_signals():
    code = ("import signal\nfrom pyro_advbnn import demo, evaluate, reproduce, benchmark, train, __main__\n"
            "print(signal.getsignal(2) is signal.default_int_handler, signal.getsignal(15) is signal.SIG_DFL)")
    said = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert said.stdout == b"True True\n"


@pytest.mark.parametrize("number", WORDS)
def test_a_process_that_is_asked_to_stop_says_how_to_go_on_and_does(tmp_path, number):
    code, word = 128 + number, WORDS[number]
    folder = tmp_path / "run"
    victim = Victim("pyro_advbnn.train:train", [*words(ENDLESS), "--out", folder], tmp_path / "out")
    victim.wait_for(lambda: "epoch   1/" in victim.said())
    victim.send(number)
    assert victim.end() == code
    lines = victim.said().splitlines()
    assert lines[-1] == word and f": {word}; go on with --resume {folder}" in lines[-2]
    assert set(os.listdir(folder)) - {locks.NAME} == {"config.json", "metrics.jsonl", "checkpoint.pt", "best.pt"}
    done = content(folder)["training"]["epochs_done"]
    assert done >= 1 and f"stopped in epoch {done + 1} after step {content(folder)['training']['steps_done']}:" in lines[-2]
    train(resume=folder, max_minutes=1e-9)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_run_that_was_asked_to_stop_at_any_step_ends_as_the_run_in_one_piece(
        whole, tmp_path, monkeypatch, capsys, step):
    cut, before = tmp_path / "cut", handlers()
    at_step(monkeypatch, step, signal.SIGTERM)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        commands.run(train, [*map(str, words(TINY)), "--out", str(cut)])
    out, err = capsys.readouterr()
    assert (end.value.code, err) == (143, f"terminated; {cut} is finished\n" if step == 8 else "terminated\n")
    assert ("--resume" in out) == (step < 8) == ("done: 2 epochs" not in out) and handlers() == before
    at = content(cut)["training"]
    assert at["epochs_done"] * 4 + at["steps_done"] == step
    monkeypatch.undo()
    if step < 8:
        train(resume=cut)
    assert run_folders.is_finished(cut)
    assert_same_run(whole, cut)


def interrupted_at(monkeypatch, capsys, owner, name, call, numbers, folder, **flags):
    """(exit code, stdout, stderr) of a training that gets signals after a call of owner.name."""
    real, calls = getattr(owner, name), []

    def interrupted(*arguments, **more):
        result = real(*arguments, **more)
        calls.append(name)
        if len(calls) == call:
            for number in numbers:
                signal.raise_signal(number)
        return result

    monkeypatch.setattr(owner, name, interrupted)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        commands.run(train, [*map(str, words(TINY | flags)), "--out", str(folder)])
    monkeypatch.undo()
    return end.value.code, *capsys.readouterr()


@pytest.mark.parametrize(("owner", "name", "call", "numbers"), [
    (loop, "accuracies", 4, [signal.SIGINT]),                         # the last measurement
    (run_folders, "save_position", 2, [signal.SIGINT]),               # the last checkpoint is written
    (Progress, "finished", 1, [signal.SIGINT]), (Progress, "finished", 1, [signal.SIGINT, signal.SIGINT]),
])
def test_a_run_that_is_interrupted_when_it_is_finished_says_so_and_not_how_to_go_on(
    whole, tmp_path, monkeypatch, capsys, owner, name, call, numbers
):
    folder = tmp_path / "run"
    code, out, err = interrupted_at(monkeypatch, capsys, owner, name, call, numbers, folder)
    assert (code, err) == (130, f"interrupted; {folder} is finished\n") and "--resume" not in out
    assert_same_run(whole, folder)
    with pytest.raises(InputError, match="has done 2 epochs of 2"):
        train(resume=folder)


def test_a_run_without_patience_left_is_finished_too_whatever_stops_it(tmp_path, monkeypatch, capsys):
    flags = {"patience": 1, "epochs": 9}
    monkeypatch.setattr(loop.Course, "_is_better", lambda self, clean, robust: self.best is None)
    code, out, err = interrupted_at(monkeypatch, capsys, Progress, "epoch", 2, [signal.SIGTERM], tmp_path / "run", **flags)
    assert (code, err) == (143, f"terminated; {tmp_path / 'run'} is finished\n")
    assert "done: 2 epochs" in out and "--resume" not in out and run_folders.is_finished(tmp_path / "run")


def test_a_second_signal_before_the_last_checkpoint_leaves_a_run_to_go_on_with(whole, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    twice = [signal.SIGTERM, signal.SIGTERM]
    code, out, err = interrupted_at(monkeypatch, capsys, loop, "accuracies", 4, twice, folder)
    assert (code, err) == (143, "terminated\n") and f"go on with --resume {folder} from {folder / 'checkpoint.pt'}" in out
    train(resume=folder)
    assert_same_run(whole, folder)


def test_a_reproduction_whose_training_ends_with_the_signal_stops_and_does_not_train_it_again(tmp_path, monkeypatch, capsys):
    out, few = tmp_path / "out", {"fractions": [0.0], "num_steps": 1, "num_samples": 1}
    monkeypatch.setitem(evaluate.VERBS, "posterior", partial(evaluate.VERBS["posterior"], **few))
    monkeypatch.setattr("pyro_advbnn.experiments.verbs.draw_figures", lambda *_: None)
    monkeypatch.setattr("pyro_advbnn.experiments.report_verb.draw_figures", lambda *_: None)
    monkeypatch.setattr(Progress, "finished", lambda *_: signal.raise_signal(signal.SIGTERM))
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        reproduce.main([*SMOKE, "--out", str(out)])
    assert (end.value.code, capsys.readouterr().err) == (143, "terminated; the same command goes on\n")
    trained = [path.parent for path in out.rglob("checkpoint.pt")]
    assert [run_folders.is_finished(folder) for folder in trained] == [True]
    assert len(json_files.read_jsonl(out / "reproduce.jsonl")) == 1         # the settings
    before = (trained[0] / "checkpoint.pt").stat()
    reproduce.main([*SMOKE, "--out", str(out)])
    assert (trained[0] / "checkpoint.pt").stat() == before and (out / "report.html").exists()


def test_a_signal_that_comes_while_the_processes_agree_is_not_lost(tmp_path, monkeypatch, capsys):
    real, calls = distributed.clock, []

    def clock(number=0):
        told = real(number)
        calls.append(number)
        if len(calls) == 2:                              # after it has told the others that there is none
            signal.raise_signal(signal.SIGTERM)
        return told

    monkeypatch.setattr(distributed, "clock", clock)
    with pytest.raises(SystemExit) as end:
        commands.run(train, [*map(str, words(ENDLESS)), "--out", str(tmp_path / "run"), "--max_minutes", "1"])
    assert end.value.code == 143 and calls == [0, 0, signal.SIGTERM]
    assert content(tmp_path / "run")["training"]["steps_done"] == 2


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_checkpoint_that_was_there(tmp_path):
    folder = tmp_path / "run"
    line = [*words(TINY | {"validation": 0}), "--out", folder]           # no best.pt: the second torch.save is of epoch 2
    victim = Victim("pyro_advbnn.train:train", line, tmp_path / "out", ("torch.save", 2, "hang"))
    victim.wait_for(victim.hangs.exists)                 # half of the new checkpoint is written
    before = (folder / "checkpoint.pt").read_bytes()
    victim.send(signal.SIGINT)
    victim.send(signal.SIGTERM)                          # two of one kind may arrive as one
    assert victim.end() in (130, 143)
    assert f"go on with --resume {folder} from {folder / 'checkpoint.pt'}" in victim.said()
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert set(os.listdir(folder)) - {locks.NAME} == {"config.json", "metrics.jsonl", "checkpoint.pt"}
    train(resume=folder)
    assert run_folders.is_finished(folder)


def test_what_is_ignored_stays_ignored_and_other_threads_change_nothing():
    def in_a_thread():
        with signals.asking(), signals.raising():
            seen.append(handlers())

    before, seen = handlers(), []
    signal.signal(signal.SIGINT, signal.SIG_IGN)         # as nohup and a shell's background do
    try:
        with signals.asking():
            seen.append(signal.getsignal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before[0])
    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_IGN, before] and handlers() == before


@pytest.fixture
def call(by, monkeypatch):
    """A function that calls a command by its module, with words, in one of the two ways to call it."""
    def by_the_package(command, line):
        monkeypatch.setattr(sys, "argv", ["pyro-advbnn", command.__name__.partition(".")[2], *line])
        __main__.main()

    return by_the_package if by == "pyro-advbnn" else lambda command, line: command.main(line)


@pytest.mark.parametrize(("number", "by"), [*zip(WORDS, ["python -m", "pyro-advbnn", "python -m"])])
def test_the_other_commands_stop_in_one_line_that_says_how_to_go_on(tmp_path, monkeypatch, capsys, number, call):
    def stopped(owner, name, command, *line):
        """(exit code, stderr) of a command that gets a signal in a call of owner.name; the handlers come back."""
        monkeypatch.setattr(owner, name, lambda *_, **__: signal.raise_signal(number))
        before = handlers()
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            call(command, list(map(str, line)))
        assert handlers() == before
        return end.value.code, capsys.readouterr().err

    code, word = 128 + number, WORDS[number]
    folder, out = run(tmp_path / "run", defense="none", epochs=1), tmp_path / "out"
    how = stopped(accuracy_verbs, "robust_accuracy", evaluate, "accuracy", "--run", folder, "--num_test", 20, "--device", "cpu")
    assert how == (code, f"{word}; the same command goes on and does not compute again what it has written\n")
    assert not (folder / "evaluation").exists()
    assert stopped(reproduce, "train", reproduce, *SMOKE, "--out", out) == (code, f"{word}; the same command goes on\n")
    assert not (out / locks.OWNER).exists()
    how = stopped(comparison._Compared, "measure", benchmark, "--network", "convnet", "--image_size", 8, "--batch_sizes", 4,
                  "--contestants", "deterministic", "--precisions", "fp32", "--repeats", 1)
    assert how == (code, f"{word}; what was measured is above, and the same command begins anew\n")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    assert stopped(demo, "train", demo) == (code, f"{word}; without --out its runs are gone\n")


def test_a_command_that_a_signal_ends_has_changed_no_file_but_its_own(tmp_path):
    folder = run(tmp_path / "run", defense="none", epochs=1)
    before = snapshot(folder)
    victim = Victim("pyro_advbnn.evaluate:VERBS", ["accuracy", "--run", folder, "--num_test", 300, "--num_steps", 100_000,
                                                   "--device", "cpu"], tmp_path / "out")
    victim.wait_for((folder / "evaluation" / locks.OWNER).exists)
    victim.send(signal.SIGTERM)
    assert victim.end() == 143 and victim.said().splitlines()[-1].startswith("terminated")
    after = snapshot(folder)
    assert before.items() <= after.items() and not (folder / "evaluation" / locks.OWNER).exists()
