"""Tests of streaming: the same images as in memory, in the same order, whatever reads them and however it ends."""
import hashlib
import itertools
import os
import threading
from functools import partial

import pytest
import torch
from hostile import refused_command
from tiny_runs import assert_same_run, content, equal

from pyro_advbnn import datasets, evaluate
from pyro_advbnn.cli import commands
from pyro_advbnn.datasets import decoding, load, loading
from pyro_advbnn.datasets.image_sets import Images
from pyro_advbnn.datasets.streaming import StreamedImages
from pyro_advbnn.reporting import csv_tables
from pyro_advbnn.system import json_files
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.train import train
from pyro_advbnn.training import configuration

TINY = {"dataset": "folder", "image_size": 8, "width": 4, "num_steps": 2, "epochs": 2, "batch_size": 10, "num_samples": 2,
        "validation": 9, "learning_rate": 0.01, "init_std": "fan_in/10", "attack_samples": 1, "device": "cpu",
        "augmentation": "crop_flip"}
SOON = 1e-9                                              # minutes


def streamed(folder, workers=0, split="train"):
    return load("folder", split, folder, image_size=8, loading="stream", workers=workers)


def in_memory(folder, split="train"):
    return load("folder", split, folder, image_size=8, loading="memory")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batches(images, first=0, **options):
    """The pass of seed 0 with crops and flips of seed 1, as a list."""
    choice = {"shuffle_with": generator(), "augmentation": "crop_flip", "augment_with": generator(1)} | options
    return list(datasets.batches(images, 7, **choice).from_batch(first))


def assert_same_batches(some, others):
    assert len(some) == len(others)
    for (x, y), (x_other, y_other) in zip(some, others):
        assert torch.equal(x, x_other) and torch.equal(y, y_other)


def refuse(*args):
    raise AssertionError("a file was read")


@pytest.mark.parametrize("workers", [0, 1, 3, 100])              # the last more than cores and batches: no cause for a warning
def test_the_same_seed_gives_the_batches_of_memory_whatever_the_number_of_workers(folder, workers):
    images = streamed(folder, workers)
    assert isinstance(images, StreamedImages) and not isinstance(in_memory(folder), StreamedImages)
    assert_same_batches(batches(images), batches(in_memory(folder)))


def test_a_streamed_set_tells_of_itself_what_one_in_memory_does(folder):
    some, other = streamed(folder), in_memory(folder)
    for name in ("num_classes", "class_names", "image_shape", "device"):
        assert getattr(some, name) == getattr(other, name), name
    assert len(some) == len(other) == 51 and torch.equal(some.labels, other.labels)
    assert torch.equal(some.images, other.images) and isinstance(some.in_memory(), Images)


def test_a_pass_that_begins_in_the_middle_reads_only_the_rest(folder, monkeypatch):
    whole, read, real = batches(streamed(folder), augmentation="none"), [], decoding.read_image
    monkeypatch.setattr(decoding, "read_image", lambda path, size: (read.append(path), real(path, size))[1])
    assert_same_batches(batches(streamed(folder), 5, augmentation="none"), whole[5:])
    assert len(read) == len(set(read)) == 51 - 5 * 7


def test_parts_are_those_of_memory_and_read_no_file(folder, monkeypatch):
    some, other = streamed(folder), in_memory(folder)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "read_image", refuse)
        parts = [datasets.balanced_subset(some, 20, 3), *datasets.hold_out(some, 15, 3), some.take([4, 50, 4])]
    for part, same in zip(parts, [datasets.balanced_subset(other, 20, 3), *datasets.hold_out(other, 15, 3),
                                  other.take([4, 50, 4])]):
        assert torch.equal(part.labels, same.labels) and torch.equal(part.images, same.images)


def test_reading_with_workers_draws_nothing_from_the_global_stream(folder):
    torch.manual_seed(5)
    batches(streamed(folder, 2))
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def test_the_hash_of_streamed_images_is_one_of_names_and_sizes(folder, monkeypatch):
    def digest(images):
        found = hashlib.sha256()
        images.update_hash(found)
        return found.hexdigest()

    monkeypatch.setattr(decoding, "read_image", refuse)
    images = streamed(folder)
    first = digest(images)
    assert digest(streamed(folder)) == first != digest(images.take(range(50)))
    assert digest(load("folder", "train", folder, image_size=9, loading="stream")) != first
    path = folder / "train/b/03.png"
    path.write_bytes(path.read_bytes() + b"x")
    assert digest(images) != first
    path.write_bytes(path.read_bytes()[:-1])
    path.rename(path.with_name("99.png"))
    assert digest(streamed(folder)) != first


def test_auto_streams_what_does_not_fit_in_the_memory(folder, monkeypatch):
    needed = 51 * 3 * 8 * 8
    for available, kind in ((needed, Images), (needed - 1, StreamedImages)):
        monkeypatch.setattr(loading, "available_memory", partial(int, available))
        assert isinstance(load("folder", "train", folder, image_size=8), kind)


def test_processes_of_torchrun_share_the_memory(folder, monkeypatch):
    needed = 51 * 3 * 8 * 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for available, kind in ((2 * needed, Images), (2 * needed - 1, StreamedImages)):
        monkeypatch.setattr(loading, "available_memory", partial(int, available))
        assert isinstance(load("folder", "train", folder, image_size=8), kind)


def test_auto_streams_what_does_not_fit_in_half_of_the_devices_memory(folder, monkeypatch):
    needed = 51 * 3 * 8 * 8
    for free, kind in ((2 * needed, Images), (2 * needed - 1, StreamedImages)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2**40))
        assert isinstance(load("folder", "train", folder, image_size=8, device="cuda"), kind)
        assert isinstance(load("folder", "train", folder, image_size=8, device="cpu"), Images)


def test_by_default_there_are_as_many_workers_as_cores_but_at_most_8(folder, monkeypatch):
    for cores, workers in ((3, 3), (64, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: set(range(cores)))
        assert load("folder", "train", folder, image_size=8, loading="stream").workers == workers


@pytest.mark.parametrize("flags, message", [
    (["--dataset=folder", "--loading=stream"], "--loading stream needs --image_size"),
    (["--loading=stream"], "--loading stream is only for dataset folder, not for digits"),
    (["--workers=2"], "--workers is only for dataset folder, not for digits"),
    (["--workers=-1"], "--workers must be"),
    (["--loading=disk"], "--loading must be"),
])
def test_flags_that_do_not_go_together_are_refused_before_any_work(folder, capsys, flags, message):
    data_dir = [f"--data_dir={folder}"] if "--dataset=folder" in flags else []
    assert message in refused_command(capsys, train, *flags, *data_dir)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_when_its_turn_comes(folder, workers):
    path = folder / "train/c/16.png"                     # the last of all
    path.write_bytes(path.read_bytes()[:60])
    seen, before = [], threading.active_count()
    with pytest.raises(InputError) as caught:
        seen.extend(datasets.batches(streamed(folder, workers), 7))
    assert threading.active_count() == before
    assert len(seen) == 7 and str(caught.value).startswith(f"{path}: not a readable image") and "\n" not in str(caught.value)
    with pytest.raises(InputError) as in_one_go:
        in_memory(folder)
    assert str(in_one_go.value) == str(caught.value)


@pytest.mark.parametrize(("workers", "ahead"), [(0, 1), (2, 5)])
def test_few_batches_are_read_ahead(folder, workers, ahead):
    asked = []
    reading = streamed(folder, workers).read(asked.append(i) or torch.tensor([i]) for i in range(50))
    next(reading)
    assert len(asked) == ahead
    reading.close()


def test_an_error_of_the_program_while_it_reads_is_raised_as_it_is(folder, monkeypatch):
    monkeypatch.setattr(decoding, "read_image", lambda *_: torch.zeros(2).view(3))
    with pytest.raises(RuntimeError, match="is invalid for input of size 2"):
        batches(streamed(folder))


def test_a_pass_that_is_given_up_leaves_no_worker(folder):
    before, reading = threading.active_count(), iter(datasets.batches(streamed(folder, 2), 3))
    next(reading)
    assert before < threading.active_count() <= before + 2          # the pool begins a second one where none is idle
    reading.close()
    assert threading.active_count() == before
    batches(streamed(folder, 2))                         # and a full one leaves none either
    assert threading.active_count() == before


def run(out, folder, **flags):
    train(**{**TINY, "data_dir": folder, "out": out, **flags})
    return out


def test_a_streamed_training_ends_bit_for_bit_as_one_in_memory(tmp_path, folder):
    memory = run(tmp_path / "memory", folder, loading="memory")
    stream = run(tmp_path / "stream", folder, loading="stream", workers=2, deterministic=True)
    assert_same_run(memory, stream)
    assert [json_files.read_json(path / "config.json")["loading"] for path in (memory, stream)] == ["memory", "stream"]


def test_a_streamed_training_goes_on_in_the_middle_of_an_epoch_as_if_it_had_not_stopped(tmp_path, folder, monkeypatch):
    whole = run(tmp_path / "whole", folder, loading="stream", workers=0)
    monkeypatch.setattr(loading, "available_memory", lambda: 2000)           # now it is auto that streams
    pieces = run(tmp_path / "pieces", folder, workers=0, max_minutes=SOON)
    monkeypatch.undo()
    while content(pieces)["training"]["epochs_done"] < TINY["epochs"]:
        train(resume=pieces, max_minutes=SOON)
    assert equal(content(whole)["state"], content(pieces)["state"])
    train(resume=pieces, epochs=3, workers=1)
    assert json_files.read_json(pieces / "config.json")["workers"] == 1


def test_a_streamed_training_does_not_go_on_with_other_images(tmp_path, folder):
    out = run(tmp_path / "run", folder, loading="stream", workers=0, max_minutes=SOON)
    (folder / "train/a/00.png").rename(folder / "train/a/00b.png")
    with pytest.raises(InputError, match="the training images are not those that the run began with"):
        train(resume=out)
    with pytest.raises(InputError, match="--loading cannot be given with --resume"):
        train(resume=out, loading="memory")


def test_a_damaged_image_ends_a_training_with_the_way_on_in_one_line(tmp_path, folder, capsys):
    run(tmp_path / "run", folder, loading="stream", workers=1, epochs=1)
    path = folder / "train/b/07.png"
    path.write_bytes(bytes(path.stat().st_size))         # the same name and size
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        commands.run(train, ["--resume", str(tmp_path / "run"), "--epochs=2"])
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1
    assert f"{path}: not a readable image" in line and f"checkpoint is {tmp_path / 'run/checkpoint.pt'}" in line


@pytest.mark.usefixtures("undrawn")
def test_evaluation_streams_what_does_not_fit_and_measures_the_same(tmp_path, folder, monkeypatch):
    runs = [run(tmp_path / how, folder, loading=how, **({"workers": 0} if how == "stream" else {}), epochs=1)
            for how in ("memory", "stream")]
    made, real = [], StreamedImages.read
    monkeypatch.setattr("pyro_advbnn.datasets.loading.default_workers", lambda: 0)
    monkeypatch.setattr(StreamedImages, "read", lambda self, *a: (made.append(len(self)), real(self, *a))[1])
    for path, available in itertools.product(runs, (2**40, 10)):
        monkeypatch.setattr(loading, "available_memory", partial(int, available))
        for split in ("test", "held_out") if available > 10 or path.name == "stream" else ("test",):
            made.clear()
            commands.run(evaluate.VERBS, ["accuracy", f"--run={path}", f"--split={split}", "--num_steps=2", "--num_samples=2",
                                     "--epsilons=0,0.1", "--batch_size=7", "--device=cpu"])
            streams = path.name == "stream" or split == "test" and available == 10
            assert bool(made) == (streams and (path, available) != (runs[1], 10))          # there the rows are there already
    found = [[(row["epsilon"], row["accuracy"]) for row in csv_tables.read(path, "accuracy")] for path in runs]
    assert len(found[0]) == 6 and len(found[1]) == 4     # what was in memory is known by its pixels, and anew by its names
    assert set(found[0]) == set(found[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_on_the_gpu_as_they_are_in_memory(folder, workers):
    on_gpu = batches(streamed(folder, workers).to("cuda"), augmentation="none")
    assert all(x.is_cuda and y.is_cuda for x, y in on_gpu)
    assert_same_batches(on_gpu, batches(in_memory(folder).to("cuda"), augmentation="none"))
    moved = streamed(folder).to("cuda").in_memory()
    assert moved.images.is_cuda and moved.labels.is_cuda


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_streamed_training_runs_on_the_gpu(tmp_path, folder):
    out = run(tmp_path / "run", folder, loading="stream", workers=2, device="cuda")
    assert len(json_files.read_jsonl(out / "metrics.jsonl")) == 2
    config, images, _ = configuration.configure({**TINY, "data_dir": folder, "loading": "stream", "device": "cuda"})
    assert images.device.type == "cuda" and config["loading"] == "stream"
