"""Tests of training in several processes: real processes and gloo, on the CPU."""
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

import pytest
import tiny_runs
import torch
from tiny_runs import assert_same_run, content, metrics, tiny
from torch import nn
from victims import FORKSERVER, PATIENCE

import pyro_advbnn as ab
from pyro_advbnn import datasets, evaluate
from pyro_advbnn.cli import commands
from pyro_advbnn.system import distributed, json_files, locks
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.train import train
from pyro_advbnn.training import algorithm1, batch_norm, configuration, construction, loop, session, trainer

ROOT = Path(__file__).parents[2]
TINY = tiny_runs.TINY | {"num_train": 88, "validation": 21}         # a last batch of 17 images, one more for rank 0
SOON = 1e-9                                              # minutes


def processes(function, *arguments, world=2, tasks=None, **environment):
    """What function(*arguments) returns in each of the processes that torchrun would start, in their order.

    tasks: 1 has each process end after it, as torchrun's do, by which the others see that it is lost.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        environment |= {"WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": free.getsockname()[1]}
    with ProcessPoolExecutor(world, mp_context=FORKSERVER, max_tasks_per_child=tasks) as pool:
        futures = [pool.submit(_as_rank, rank, environment, function, arguments) for rank in range(world)]
        return [future.result(timeout=PATIENCE) for future in futures]


def _as_rank(rank, environment, function, arguments):
    torch.set_num_threads(1)
    os.environ |= {name: str(value) for name, value in {**environment, "RANK": rank, "LOCAL_RANK": rank}.items()}
    return function(*arguments)


def group(function, *arguments, world=2):
    """What function(*arguments) returns in each process of a group."""
    return processes(distributed.run, function, *arguments, world=world)


def command(verbs, words, **how):
    """(exit code, stdout, stderr) of a command line."""
    code = 0
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err, redirect_stdout(out), redirect_stderr(err):
        try:
            commands.run(verbs, list(map(str, words)), **how)
        except SystemExit as end:
            code = end.code
        return code, *((file.seek(0), file.read())[1] for file in (out, err))


def command_in_group(function, *arguments):
    return command(lambda: distributed.run(function, *arguments), [], processes=True)


def train_command(words):
    return command(train, words, processes=True)


def words(folder, **flags):
    return tiny_runs.words({**TINY, **flags, "out": folder})


def course(flags, large=1 << 20):
    """The averages after every step of a training of two epochs with the same draws everywhere, and its state at the end."""
    distributed._LARGE = large
    config, images, _ = configuration.configure({**tiny(flags.get("defense"), TINY), **flags})
    run = construction.build(config, images)
    torch.manual_seed(3)
    averages = []
    for _ in range(2):
        for _ in run.epoch():
            averages.append(torch.tensor(list(run.averages().values())))
        run.restart_averages()
    return torch.stack(averages), run.classifier.state_dict()


def courses(cases):
    return [course(*case) for case in cases]


SGD = {"optimizer": "sgd"}           # Adam brings gradients that are rounding errors, of biases before a BatchNorm, to its rate
CASES = [({"defense": "advbnn"},), ({"defense": "advbnn"}, 1), ({"defense": "adv", **SGD},), ({"defense": "adv", **SGD}, 100),
         ({"defense": "bnn", "prior": "scale_mixture", "prior_std": 0.5},), ({"defense": "bnn", "precision": "bf16", **SGD},)]


@pytest.fixture(scope="module")
def two_courses():
    return group(courses, CASES)


@pytest.mark.parametrize("number", range(len(CASES)), ids=str)
def test_two_processes_with_equal_draws_train_as_one_does_with_the_joined_batch(two_courses, number):
    (averages, state), (_, other_state) = (rank[number] for rank in two_courses)
    expected_averages, expected = course(*CASES[number])
    tolerance = {"rtol": 1e-2, "atol": 1e-3} if "precision" in CASES[number][0] else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(averages, expected_averages, **tolerance)
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, **tolerance)
        assert torch.equal(state[name], other_state[name]), name


def gradient(kl_weight):
    torch.manual_seed(1)
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4), prior_std=0.2, init_std=0.1)
    x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
    first, step = distributed.shard()
    ab.train_step(classifier, torch.optim.SGD(classifier.parameters(), 0.0), x[first::step], y[first::step],
                  kl_weight=kl_weight, share=len(x[first::step]) / 5)
    return classifier.mean.detach(), classifier.mean.grad, classifier.log_std.grad


def gradients():
    return gradient(0.0), gradient(1.0)


def test_the_kl_counts_once():
    for without, (mean, *whole) in group(gradients):
        kl_by_mean, kl_by_log_std = (w - o for w, o in zip(whole, without[1:]))
        torch.testing.assert_close(kl_by_mean, mean / 0.2**2, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(kl_by_log_std, torch.full_like(mean, 0.1**2 / 0.2**2 - 1), rtol=1e-4, atol=1e-5)


def test_without_a_share_a_step_asks_no_other_process():
    assert group(step_of_one) == [False, True]


def step_of_one():
    if distributed.is_main():
        classifier = ab.BayesianClassifier(ab.networks.convnet(width=4))
        ab.train_step(classifier, torch.optim.SGD(classifier.parameters(), 0.1), torch.rand(4, 1, 8, 8), torch.arange(4),
                      kl_weight=0.0)
    return not distributed.is_main()


def parts_of(x):
    return (x[:2], x[2:]) if distributed.world_size() > 1 else (x, None)


NORMS = [(nn.BatchNorm2d(3), (7, 3, 4, 5)), (nn.BatchNorm1d(3), (7, 3)), (nn.BatchNorm2d(3, affine=False), (7, 3, 2, 2)),
         (nn.BatchNorm2d(3, momentum=None), (7, 3, 2, 2)), (nn.BatchNorm1d(3, track_running_stats=False), (7, 3, 4)),
         (nn.BatchNorm3d(3, dtype=torch.float64), (7, 3, 2, 2, 2))]


def normalised(number):
    """Outputs, gradients and buffers of a norm after two batches, of which this process has its part."""
    norm, shape = NORMS[number]
    norm = batch_norm.synchronise(nn.Sequential(norm), "cpu")
    with torch.no_grad():
        for i, p in enumerate(norm.parameters()):
            p.copy_(torch.linspace(0.5, 1.5, 3) + i)
    dtype = torch.float64 if len(shape) == 5 else torch.float32
    for seed in (1, 2):
        x, target = (t.to(dtype) for t in torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed)) * 3 + 5)
        x, target = parts_of(x)[distributed.rank()].clone().requires_grad_(), parts_of(target)[distributed.rank()]
        out = norm(x)
        (out * target).sum().backward()
    gradients = [distributed.sum_(p.grad) for p in norm.parameters()]
    still = norm.eval()(x.detach()[:1] * 0).detach()
    return [out.detach(), x.grad], [*gradients, *norm.buffers(), still], list(norm.state_dict())


def all_normalised():
    return [normalised(number) for number in range(len(NORMS))]


def test_synchronised_batch_norm_is_that_of_the_joined_batch_forward_backward_and_in_its_statistics():
    for first, second, whole in zip(*group(all_normalised), all_normalised(), strict=True):
        for joined, expected in zip(zip(first[0], second[0]), whole[0], strict=True):
            torch.testing.assert_close(torch.cat(joined), expected, rtol=1e-4, atol=1e-5)
        for rank in first, second:
            assert rank[2] == whole[2]
            for value, expected in zip(rank[1], whole[1], strict=True):
                torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def converted():
    torch.manual_seed(0)
    network = ab.networks.convnet(width=4)
    before = network.state_dict()
    after = batch_norm.synchronise(network, "cpu")
    cuda = batch_norm.synchronise(ab.networks.convnet(width=4), "cuda")
    return ([type(m).__name__ for m in after.modules() if "Norm" in type(m).__name__], list(before) == list(after.state_dict()),
            all(torch.equal(a, b) for a, b in zip(before.values(), after.state_dict().values())),
            {type(m) for m in cuda.modules() if "Norm" in type(m).__name__} == {nn.SyncBatchNorm},
            list(cuda.state_dict()) == list(before))


def test_a_network_with_synchronised_norms_keeps_names_order_and_values():
    assert group(converted) == 2 * [(4 * ["SyncedBatchNorm"], True, True, True, True)]
    network = ab.networks.convnet(width=4)
    assert batch_norm.synchronise(network, "cpu") is network and "SyncedBatchNorm" not in str(network)   # in one process


def running_course(by_running):
    """A training with running statistics from the start or, for a network prepared for it, never; its state."""
    averages, state = course({"defense": "advbnn", "running_statistics": 0.0 if by_running else 0.999})
    return averages, state


def test_running_statistics_of_two_processes_are_those_of_the_joined_batch():
    for by_running in (True, False):
        (averages, state), _ = group(running_course, by_running)
        alone, expected = running_course(by_running)
        torch.testing.assert_close(averages, alone, rtol=1e-4, atol=1e-4)
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4)
    by_batch, _ = course({"defense": "advbnn"})
    torch.testing.assert_close(by_batch, alone, rtol=1e-5, atol=1e-5)           # in one process that is not switched: no change


def broadcast_course():
    config, images, _ = configuration.configure({**tiny("none", TINY), "defense": "none", "batch_norm": "broadcast"})
    run = construction.build(config, images)
    norms = [m for m in run.classifier.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    own = []
    norms[0].register_forward_hook(lambda module, *_: own.append(module.running_mean.clone()))
    next(run.epoch())
    return own[-1], norms[0].running_mean, {type(norm) for norm in norms}


def test_broadcast_leaves_each_process_its_own_batch_and_brings_the_running_statistics_of_rank_0():
    (own, after, kinds), (other_own, other_after, _) = group(broadcast_course)
    assert kinds == {nn.BatchNorm2d}
    assert torch.equal(after, own) and torch.equal(other_after, own) and not torch.equal(other_own, own)


def test_the_parts_of_the_processes_do_not_overlap_and_cover_every_batch_of_the_epoch():
    images = datasets.Images(torch.arange(23, dtype=torch.uint8).view(23, 1, 1, 1), torch.arange(23), tuple("c" * 23))

    def passes(shard):
        batches = datasets.batches(images, 10, shuffle_with=torch.Generator().manual_seed(4), shard=shard)
        return [set(y.tolist()) for _ in range(2) for _, y in batches]

    whole, parts = passes((0, 1)), [passes((rank, 3)) for rank in range(3)]
    assert [len(batch) for batch in whole] == [10, 10, 3] * 2
    for batch, *of_ranks in zip(whole, *parts, strict=True):
        assert set.union(*of_ranks) == batch and sum(map(len, of_ranks)) == len(batch)
        assert max(map(len, of_ranks)) - min(map(len, of_ranks)) <= 1


def test_a_process_without_a_part_of_a_batch_leaves_it_out():
    images = datasets.Images(torch.zeros(7, 1, 1, 1, dtype=torch.uint8), torch.arange(7), tuple("c" * 7))
    assert [len(y) for _, y in datasets.batches(images, 5, shard=(2, 4))] == [1]


def test_a_batch_that_leaves_a_process_fewer_than_two_images_is_refused_before_any_work(tmp_path):
    few, rest = (processes(train_command, words(tmp_path / "run", batch_size=size)) for size in (3, 32))
    assert few == [(2, "", "error: --batch_size 3 gives some of 2 processes fewer than 2 images\n"), (0, "", "")]
    assert rest == [(2, "", "error: --batch_size 32 leaves a last batch of 3 of the 67 images, fewer than 2 for each of 2 "
                    "processes\n"), (0, "", "")]
    assert not list(tmp_path.iterdir())


def measured(defense):
    config, images, held_out = configuration.configure({**tiny(defense, TINY), "defense": defense})
    classifier = construction.build(config, images).classifier
    return [loop.accuracies(classifier, sample, config["settings"], seed=1)
            for sample in (held_out, images, held_out.take([0]))]


def test_accuracies_are_measured_in_parts_and_are_those_of_all_images():
    first, second = group(measured, "adv")
    assert first == second == measured("adv")


def test_own_seeds_are_the_seed_itself_on_rank_0_and_differ_between_ranks_and_positions():
    assert distributed.own_seed(5) == 5
    first, second = group(seeds)
    assert first[0] == 5 and len({seed % 2**32 for seed in first + second}) == 6   # torch's CPU generator reads 32 bits


def seeds():
    return [distributed.own_seed(5), distributed.own_seed(6), distributed.own_seed(5, 1, 2)]


def stream_seeds():
    config, images, _ = configuration.configure(TINY)
    run = construction.build(config, images)
    return torch.initial_seed(), run._augment.initial_seed(), distributed.own_seed(0), distributed.own_seed(1)


def test_weights_and_augmentation_are_drawn_from_streams_of_each_process():
    for weights, augmentation, own, own_of_augmentation in group(stream_seeds):
        assert (weights, augmentation) == (own, own_of_augmentation)


def wrong_input(ranks, message):
    with distributed.together():
        if distributed.rank() in ranks:
            raise InputError(message + (" here" if message == "own" and distributed.rank() else ""))
    print("went on")


@pytest.mark.parametrize(("ranks", "message", "expected"), [
    ((), "x", [(0, "went on\n", ""), (0, "", "")]),
    ((0, 1), "same", [(2, "", "error: same\n"), (0, "", "")]),
    ((1,), "lone", [(0, "", ""), (2, "", "error: [rank 1] lone\n")]),
    ((0, 1), "own", [(2, "", "error: own\n"), (2, "", "error: [rank 1] own here\n")]),
], ids=["none", "same", "lone", "own"])
def test_wrong_input_ends_all_processes_and_every_error_is_told_once(ranks, message, expected):
    assert processes(command_in_group, wrong_input, ranks, message) == expected


def different():
    distributed.require_same([1, "a"], "not the same one")
    print("the same")
    distributed.require_same(distributed.rank(), "not the same")


def test_processes_that_do_not_see_the_same_are_refused_once():
    assert processes(command_in_group, different) == [(2, "the same\n", "error: not the same\n"), (0, "", "")]


def test_a_wrong_flag_and_a_question_for_help_are_answered_once(tmp_path):
    (code, out, err), other = processes(train_command, ["--epoch", 2])
    assert (code, out, other) == (2, "", (0, "", "")) and "unknown flag --epoch" in err
    (code, out, err), other = processes(train_command, ["--help"])
    assert (code, err, other) == (0, "", (0, "", "")) and "--batch_norm" in out


def passage():
    with distributed.one_at_first():
        entered = time.monotonic()
        time.sleep(0.2)
    return entered


def test_one_process_of_a_machine_goes_first_and_the_others_wait_for_it():
    first, second, third = group(passage, world=3)
    assert min(second, third) > first + 0.2


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


def failing(rank):
    distributed._SECONDS_TO_BE_ENDED = 0
    if distributed.rank() == rank:
        raise RuntimeError("out of memory")
    distributed.sum_(torch.zeros(()))


def failing_command(rank):
    try:
        return command_in_group(failing, rank)
    except RuntimeError as error:
        return str(error)


def test_the_error_of_one_process_is_its_own_and_the_others_say_that_they_lost_it():
    (code, out, err), error = processes(failing_command, 1)
    assert (code, out, error) == (1, "", "out of memory") and err.startswith("[rank 0] lost another process (")


def test_a_job_is_told_from_another_by_its_name_or_where_it_has_none_by_a_counted_restart(monkeypatch):
    assert not distributed.is_this_job(None) and not distributed.is_this_job("a")
    for name in "RANK", "LOCAL_RANK", "WORLD_SIZE":
        monkeypatch.setenv(name, "0")
    seen = {}
    for job in "a", "none":
        for restarts in "0", "1":
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
            seen[job, restarts] = [distributed.is_this_job(name) for name in (None, "a", "none")]
    assert seen == {("a", "0"): [False, True, False], ("a", "1"): [False, True, False],
                    ("none", "0"): [False, False, False], ("none", "1"): [False, False, True]}


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
def torchrun(tmp_path):
    """Starts `train` in two processes of torchrun's, stdout and stderr together in one pipe; killed at the end."""
    started = []

    def start(*words, restarts=0):
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                f"--max-restarts={restarts}", "-m", "pyro_advbnn.train", *map(str, words)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
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
def test_a_killed_process_ends_the_others_within_seconds_and_a_restart_goes_on_from_the_checkpoint(tmp_path, torchrun):
    folder = tmp_path / "run"
    process = torchrun(*words(folder, epochs=10_000), restarts=1)
    read_until(process, "epoch   2/")
    kill_rank(process, 1)
    again = read_until(process, "going on after epoch")
    begun = int(re.search(r"going on after epoch (\d+), step 0", again)[1])
    assert begun >= 2
    assert re.search(rf"epoch +{begun + 1}/10000", read_until(process, "nll"))
    kill_rank(process, 1)
    killed = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert process.returncode and time.monotonic() - killed < 10
    assert "rank      : 1 (local_rank: 1)\n  exitcode  : -9" in out.partition("Root Cause")[2]
    done = content(folder)["training"]["epochs_done"]
    train(resume=folder, epochs=done + 1)
    assert [row["epoch"] for row in metrics(folder)] == list(range(1, done + 2))


def signalled(words, rank, step):
    """`train`, in which the process `rank` alone gets a SIGTERM in the middle of a step."""
    real, count = trainer.Training._step, 0

    def step_(self, x, y):
        nonlocal count
        count += 1
        if (count, distributed.rank()) == (step, rank):
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, x, y)

    trainer.Training._step = step_
    try:
        return command(train, words, processes=True)
    finally:
        trainer.Training._step = real


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path, rank, tally):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    processes(train_command, words(whole))
    (code, out, err), other = processes(signalled, words(folder), rank, 1)
    assert (code, err, other) == (143, "terminated\n", (143, "", ""))
    assert f"stopped in epoch 1 after step 1: terminated; go on with --resume {folder}" in out
    assert [content(folder)["training"][name] for name in ("epochs_done", "steps_done")] == [0, 1]
    (code, _, err), other = processes(train_command, ["--resume", folder])
    assert (code, err, other) == (0, "", (0, "", ""))
    assert_same_run(whole, folder)
    tally("signals obeyed")


def test_rank_0_holds_the_lock_of_a_run_and_a_refusal_ends_all(tmp_path):
    folder = tmp_path / "run"
    processes(train_command, words(folder, max_minutes=SOON))
    assert not (folder / locks.OWNER).exists()
    with locks.locked(folder):
        (code, out, err), other = processes(train_command, ["--resume", folder])
    assert (code, out, other) == (2, "", (0, "", "")) and err.startswith(f"error: {folder} is in use by process")
    assert content(folder)["training"]["steps_done"] == 1


@pytest.mark.slow
def test_torchruns_sigterm_leaves_a_checkpoint_of_one_step_of_all(tmp_path, torchrun, tally):
    folder = tmp_path / "run"
    process = torchrun(*words(folder, epochs=10_000))
    read_until(process, "epoch   2/")
    process.terminate()
    out, _ = process.communicate(timeout=60)
    stop = re.search(r"stopped in epoch (\d+) after step (\d+): terminated; go on with --resume", out)
    assert stop, out
    at = content(folder)["training"]
    assert (at["epochs_done"] + 1, at["steps_done"]) == (int(stop[1]), int(stop[2]))
    assert not (folder / locks.OWNER).exists()
    train(resume=folder, epochs=at["epochs_done"] + 1)
    assert [row["epoch"] for row in metrics(folder)] == list(range(1, at["epochs_done"] + 2))
    tally("signals obeyed")
