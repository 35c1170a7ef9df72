"""Tests that a long life in one process leaves memory, file handles and threads as they were."""
import gc
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import TINY, tiny

import pyro_advbnn as ab
from pyro_advbnn import datasets
from pyro_advbnn.train import train
from pyro_advbnn.training import loop

MIB = 1 << 20
MOST_GROWTH = 4 * MIB                                    # of the memory over a whole soak, by the robust fit
STEPS_PER_EPOCH = 10
TEN_STEPS = TINY | {"num_train": 270, "width": 2, "num_steps": 1, "tensorboard": False}
STREAMED = TINY | {"dataset": "folder", "image_size": 8, "num_train": None, "validation": 6, "batch_size": 15,
                   "loading": "stream", "workers": 2, "num_steps": 1}


def usage():
    """(bytes of memory of its own, open file handles, threads) of this process.

    Memory: resident and not of a file, or swapped out. All that is resident would do where the machine is idle: under
    pressure the system takes pages of libraries away (measured: 185 MiB).
    """
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = sum(1024 * int(status[name].split()[0]) for name in ("RssAnon", "VmSwap"))
    return memory, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def soak(flags, epochs, measure=False):
    """`usage` after every epoch of a training, each with its evaluations, metrics and checkpoints.

    measure: after each epoch one more evaluation of the classifier, on test images.
    """
    torch.set_num_threads(1)
    used, real = [], loop.Course.finish_epoch
    batches = list(datasets.batches(datasets.load("digits", "test").take(range(60)), 30)) if measure else None

    def finish(course, write_row):
        real(course, write_row)
        if measure:
            ab.robust_accuracy(course.training.classifier, batches, ab.PGD(0.2, num_steps=2), num_samples=3)
        used.append(usage())

    loop.Course.finish_epoch = finish
    try:
        train(**flags | {"epochs": epochs})
    finally:
        loop.Course.finish_epoch = real
    return used


def in_a_process_of_its_own(function, *arguments, **settings):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **settings).result(timeout=3600)


def slope(values):
    """The median of the slopes of all pairs (Theil and Sen): what one jump, or a few, do not move."""
    first, second = np.triu_indices(len(values), 1)
    values = np.asarray(values, dtype=float)
    return float(np.median((values[second] - values[first]) / (second - first)))


def assert_flat(used, capsys, what):
    """Memory, handles and threads after the first quarter, which is warm-up; prints the figures."""
    kept = used[len(used) // 4:]
    memory, handles, threads = zip(*kept, strict=True)
    growth = slope(memory) * len(kept)
    with capsys.disabled():
        print(f"\n{what}: memory {memory[0] / MIB:.1f} MiB after warm-up, {memory[-1] / MIB:.1f} at the end, "
              f"{max(memory) / MIB:.1f} at most; robust fit {growth / MIB:+.2f} MiB over {len(kept)} epochs; "
              f"handles {handles[0]} to {handles[-1]}, threads {threads[0]} to {threads[-1]}")
    assert growth < MOST_GROWTH
    assert max(handles) <= handles[0] and max(threads) <= threads[0]


def test_the_fit_sees_a_leak_through_noise_and_jumps_and_no_leak_where_there_is_none():
    noise = np.random.default_rng(0).normal(0, 5, 150)
    assert abs(slope(100 + noise)) < 0.02
    assert slope(100 + noise + 0.5 * np.arange(150)) == pytest.approx(0.5, abs=0.02)
    assert abs(slope(100 + noise + 50 * (np.arange(150) > 20))) < 0.3


def test_sixty_steps_leave_no_file_handle_and_no_thread(tmp_path):
    used = soak(TEN_STEPS | {"out": tmp_path / "run"}, epochs=6, measure=True)
    _, handles, threads = zip(*used[3:], strict=True)
    assert max(handles) <= handles[0] and max(threads) <= threads[0]


@pytest.mark.torture
@pytest.mark.parametrize("defense", ["advbnn", "advrse"])
def test_two_thousand_steps_and_two_hundred_evaluations_leave_memory_handles_and_threads_flat(defense, tmp_path, capsys):
    flags = tiny(defense, TEN_STEPS) | {"out": tmp_path / "run", "defense": defense}
    used = in_a_process_of_its_own(soak, flags, epochs=200, measure=True)
    assert len(used) == 200
    assert_flat(used, capsys, f"{defense}, {200 * STEPS_PER_EPOCH:,} steps, 200 evaluations and checkpoints")


@pytest.mark.torture
def test_a_hundred_epochs_with_workers_leave_memory_handles_and_threads_flat(tmp_path, folder, capsys):  # noqa: F811
    flags = STREAMED | {"data_dir": tmp_path / "data", "out": tmp_path / "run"}
    used = in_a_process_of_its_own(soak, flags, epochs=100)
    assert len(used) == 100
    assert_flat(used, capsys, "streamed by 2 workers, 100 epochs")
