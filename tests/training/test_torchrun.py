"""Tests of the train command in several processes, by torchrun and as torchrun starts them."""
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from process_groups import TINY, command, group, processes, train_command, words
from tiny_runs import assert_same_run, content, metrics

import pyro_advbnn as ab
from pyro_advbnn import evaluate
from pyro_advbnn.system import distributed, json_files, locks
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.train import train
from pyro_advbnn.training import algorithm1, configuration, session, trainer

ROOT = Path(__file__).parents[2]
SOON = 1e-9                                              # minutes


def test_a_batch_that_leaves_a_process_fewer_than_two_images_is_refused_before_any_work(tmp_path):
    few, rest = (processes(train_command, words(tmp_path / "run", batch_size=size)) for size in (3, 32))
    assert few == [(2, "", "error: --batch_size 3 gives some of 2 processes fewer than 2 images\n"), (0, "", "")]
    assert rest == [(2, "", "error: --batch_size 32 leaves a last batch of 3 of the 67 images, fewer than 2 for each of 2 "
                    "processes\n"), (0, "", "")]
    assert not list(tmp_path.iterdir())


def test_a_wrong_flag_and_a_question_for_help_are_answered_once(tmp_path):
    (code, out, err), other = processes(train_command, ["--epoch", 2])
    assert (code, out, other) == (2, "", (0, "", "")) and "unknown flag --epoch" in err
    (code, out, err), other = processes(train_command, ["--help"])
    assert (code, err, other) == (0, "", (0, "", "")) and "--batch_norm" in out


def lost_on_rank_1(words):
    real = algorithm1.gradients

    def gradients(*arguments, **settings):
        parts = real(*arguments, **settings)
        return replace(parts, nll=parts.nll * float("nan")) if distributed.rank() else parts

    algorithm1.gradients = gradients
    return train_command(words)


def test_a_loss_that_is_lost_in_one_process_ends_all(tmp_path):
    first, second = processes(lost_on_rank_1, words(tmp_path / "run"))
    assert first[0] == 2 and first[2].startswith("error: the loss is not finite: nll (nll nan, ")
    assert "at step 1 of epoch 1" in first[2]
    assert second == (0, "", "")


def damaged_on_rank_1(words):
    """`train`, in which rank 1 alone meets a streamed image that is damaged."""
    real, distributed._SECONDS_TO_BE_ENDED = trainer.Training._step, 0

    def step(self, x, y):
        if distributed.rank() and self.steps_done == 1:
            raise InputError("b/07.png: not a readable image")
        real(self, x, y)

    trainer.Training._step = step
    return train_command(words)


def test_an_image_that_only_one_process_reads_ends_all_with_its_name(tmp_path):
    folder = tmp_path / "run"
    first, second = processes(damaged_on_rank_1, words(folder), tasks=1)
    assert second[:2] == (2, "") and second[2].startswith("error: [rank 1] b/07.png: not a readable image; no checkpoint has")
    assert first[0] == 1 and "[rank 0] lost another process" in first[2]


def test_other_commands_refuse_several_processes_in_one_line(tmp_path):
    ends = processes(command, evaluate.VERBS, ["accuracy", "--run", tmp_path])
    assert ends == [(2, "", "error: only train runs in several processes; start this command without torchrun\n"), (0, "", "")]


@pytest.mark.parametrize(("flags", "message"), [
    (["--device", "cpu"], "under torchrun --out or --resume must be given"),
    (["--device", "cuda:0", "--out", "x"], "--device cuda:0 is one GPU for all processes"),
])
def test_flags_that_several_processes_cannot_share_are_refused(flags, message):
    (code, out, err), other = processes(train_command, flags)
    assert (code, out) == (2, "") and message in err and other == (0, "", "")


def in_one_piece_and_in_many(folder):
    flags = {**TINY, "augmentation": "crop_flip"}
    session.start({**flags, "out": folder / "whole"})
    session.start({**flags, "out": folder / "pieces", "max_minutes": SOON})
    positions = []
    while True:
        distributed.sum_(torch.zeros(()))                # waits for the writer, and below for the readers
        at = content(folder / "pieces")["training"]
        positions.append((at["epochs_done"], at["steps_done"]))
        distributed.sum_(torch.zeros(()))
        if at["epochs_done"] == TINY["epochs"]:
            return positions
        torch.manual_seed(len(positions))                # whatever other processes have done to the streams
        session.start({"resume": folder / "pieces", "max_minutes": SOON})


def test_a_run_of_two_processes_that_is_stopped_after_every_step_ends_bit_for_bit_as_the_run_in_one_piece(tmp_path):
    first, second = group(in_one_piece_and_in_many, tmp_path)
    assert first == second == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert_same_run(tmp_path / "whole", tmp_path / "pieces")
    assert len(metrics(tmp_path / "whole")) == 2


def test_a_run_goes_on_in_another_number_of_processes_with_streams_that_begin_anew(tmp_path, capsys):
    folder = tmp_path / "run"
    processes(train_command, words(folder, max_minutes=SOON))
    _, resumed, _, _ = configuration.resume(folder, {})
    assert torch.initial_seed() == distributed.own_seed(0, 0, 1)
    assert resumed._augment.initial_seed() == distributed.own_seed(1, 0, 1)
    train(resume=folder, max_minutes=SOON)
    assert "of 2 processes, not 1: the streams of weights and augmentation begin anew" in capsys.readouterr().out
    assert [content(folder)["training"][name] for name in ("steps_done", "rng_of_others")] == [2, []]
    (code, out, err), other = processes(train_command, ["--resume", folder])
    assert (code, err, other) == (0, "", (0, "", "")) and "of 1 processes, not 2" in out
    assert [row["epoch"] for row in metrics(folder)] == [1, 2]
    assert json_files.read_json(folder / "config.json")["world_size"] == 2


def restarted(words, count, job):
    return processes(train_command, words, TORCHELASTIC_RESTART_COUNT=count, TORCHELASTIC_RUN_ID=job)


def test_processes_started_anew_go_on_with_their_own_run_and_with_no_other(tmp_path):
    folder = tmp_path / "run"
    begun, other_seed = words(folder, max_minutes=SOON), words(folder, max_minutes=SOON, seed=1)
    restarted(begun, 0, "a")
    for line, restarts, job in (begun, 1, "b"), (other_seed, 1, "a"), (begun, 1, "none"):
        (code, _, err), _ = restarted(line, restarts, job)
        assert code == 2 and "is not overwritten" in err
    (code, out, err), _ = restarted(begun, 1, "a")
    assert (code, err) == (0, "") and "going on after epoch 0, step 1" in out
    assert content(folder)["training"]["steps_done"] == 2


def test_the_command_trains_one_run_that_rank_0_alone_prints_and_writes(tmp_path):
    folder = tmp_path / "run"
    (code, out, err), other = processes(train_command, words(folder, augmentation="crop_flip"))
    assert (code, err, other) == (0, "", (0, "", ""))
    for text in ("advbnn on digits", "2 processes, BatchNorm sync", "epoch   2/2", "done: 2 epochs"):
        assert out.count(text) == 1
    assert {path.name for path in folder.iterdir()} - {".lock"} == {"config.json", "metrics.jsonl", "checkpoint.pt", "best.pt"}
    assert [row["epoch"] for row in metrics(folder)] == [1, 2]
    config, at = json_files.read_json(folder / "config.json"), content(folder)["training"]
    assert (config["world_size"], config["batch_norm"], config["device"]) == (2, "sync", "cpu")
    other, = at["rng_of_others"]
    assert torch.equal(at["rng"]["order"], other["order"])
    assert not torch.equal(at["rng"]["global"], other["global"]) and not torch.equal(at["rng"]["augment"], other["augment"])
    assert ab.load(folder / "best.pt")(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.fixture
def torchrun(tmp_path, without_matplotlib):
    """Starts `train` in two processes of torchrun's, stdout and stderr together in one pipe; killed at the end."""
    started = []

    def start(*words, restarts=0):
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                f"--max-restarts={restarts}", "-m", "pyro_advbnn.train", *map(str, words)]
        environment = os.environ | {"PYTHONPATH": without_matplotlib, "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(line, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.communicate(timeout=40)


def read_until(process, text):
    """What the process has printed up to the line with `text`."""
    lines = []
    while not lines or text not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], "".join(lines)
    return "".join(lines)


def kill_rank(process, rank):
    """SIGKILL for a process of torchrun's."""
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return os.kill(int(pid), signal.SIGKILL)
    raise AssertionError(f"no process has rank {rank}")


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_all_go_on_from_the_checkpoint_until_a_sigterm(tmp_path, torchrun):
    folder = tmp_path / "run"
    process = torchrun(*words(folder, epochs=10_000), restarts=1)
    read_until(process, "epoch   2/")
    kill_rank(process, 1)
    begun = int(re.search(r"going on after epoch (\d+), step 0", read_until(process, "going on after epoch"))[1])
    assert begun >= 2
    assert re.search(rf"epoch +{begun + 1}/10000", read_until(process, "nll"))
    process.terminate()
    out, _ = process.communicate(timeout=60)
    stop = re.search(r"stopped in epoch (\d+) after step (\d+): terminated; go on with --resume", out)
    assert stop, out
    at = content(folder)["training"]
    assert (at["epochs_done"] + 1, at["steps_done"]) == (int(stop[1]), int(stop[2]))
    assert not (folder / locks.OWNER).exists()
    train(resume=folder, epochs=at["epochs_done"] + 1)
    assert [row["epoch"] for row in metrics(folder)] == list(range(1, at["epochs_done"] + 2))


@pytest.mark.slow
@pytest.mark.torture
def test_a_killed_process_ends_the_job_within_a_minute_and_torchrun_names_it(tmp_path, torchrun):
    process = torchrun(*words(tmp_path / "run", epochs=10_000))
    read_until(process, "epoch   2/")
    kill_rank(process, 1)
    out, _ = process.communicate(timeout=60)
    assert process.returncode
    assert "rank      : 1 (local_rank: 1)\n  exitcode  : -9" in out.partition("Root Cause")[2]


def signalled(words, rank, step):
    """`train`, in which the process `rank` alone gets a SIGTERM in the middle of a step."""
    real, count = trainer.Training._step, 0

    def step_(self, x, y):
        nonlocal count
        count += 1
        if (count, distributed.rank()) == (step, rank):
            signal.raise_signal(signal.SIGTERM)
        real(self, x, y)

    trainer.Training._step = step_
    try:
        return command(train, words, processes=True)
    finally:
        trainer.Training._step = real


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path, rank):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    processes(train_command, words(whole))
    (code, out, err), other = processes(signalled, words(folder), rank, 1)
    assert (code, err, other) == (143, "terminated\n", (143, "", ""))
    assert f"stopped in epoch 1 after step 1: terminated; go on with --resume {folder}" in out
    assert [content(folder)["training"][name] for name in ("epochs_done", "steps_done")] == [0, 1]
    (code, _, err), other = processes(train_command, ["--resume", folder])
    assert (code, err, other) == (0, "", (0, "", ""))
    assert_same_run(whole, folder)


def test_rank_0_holds_the_lock_of_a_run_and_a_refusal_ends_all(tmp_path):
    folder = tmp_path / "run"
    processes(train_command, words(folder, max_minutes=SOON))
    assert not (folder / locks.OWNER).exists()
    with locks.locked(folder):
        (code, out, err), other = processes(train_command, ["--resume", folder])
    assert (code, out, other) == (2, "", (0, "", "")) and err.startswith(f"error: {folder} is in use by process")
    assert content(folder)["training"]["steps_done"] == 1
