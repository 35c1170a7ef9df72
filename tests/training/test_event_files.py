"""Tests of the event files of metrics: TensorBoard shows what metrics.jsonl says, once, and changes no training."""
import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE, EventAccumulator
from tensorboard.summary.writer import event_file_writer
from tiny_runs import TINY, assert_same_run, interrupt_after, refusal, snapshot, tiny, words

from pyro_advbnn.system import json_files
from pyro_advbnn.train import train
from pyro_advbnn.training import metrics, run_folders

SMALL = TINY | {"num_train": 60, "num_steps": 1, "batch_size": 20, "num_samples": 1}
SOON = 1e-9                                              # minutes


@pytest.fixture(autouse=True)
def names_in_order(monkeypatch):
    """The files of a second are numbered in each process, and 10 would come before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(1000))


def run(folder, **flags):
    train(**tiny(flags.get("defense"), SMALL) | {"out": folder, "tensorboard": True, **flags})
    return folder


def reader(folder):
    return EventAccumulator(str(folder), STORE_EVERYTHING_SIZE_GUIDANCE)


def shown(events):
    """The points that TensorBoard shows: {tag: [(step, value), ...]}."""
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def numbers(folder):
    """The same of metrics.jsonl, in single precision."""
    rows = json_files.read_jsonl(folder / "metrics.jsonl")
    points = {metrics.tag(field): [(row["epoch"], float(np.float32(row[field]))) for row in rows if row[field] is not None]
              for field in rows[0] if field != "epoch"}
    return {tag: values for tag, values in points.items() if values}


def assert_shows_what_the_run_says(folder, epochs):
    assert [row["epoch"] for row in json_files.read_jsonl(folder / "metrics.jsonl")] == epochs
    assert shown(reader(folder)) == numbers(folder)


def event_names(folder):
    return {path.name for path in folder.iterdir()} - {".lock", "config.json", "metrics.jsonl", "checkpoint.pt", "best.pt"}


def test_tensorboard_shows_every_number_of_metrics_jsonl(tmp_path):
    folder = run(tmp_path / "run")
    assert_shows_what_the_run_says(folder, [1, 2])
    assert_shows_what_the_run_says(run(tmp_path / "other", validation=0, epochs=1), [1])     # some fields have no number
    assert {"loss/nll", "loss/kl_weight", "accuracy/held_out_robust_accuracy", "training/learning_rate", "loss/kl_per_image",
            "training/snr", "snr/classifier"} <= numbers(folder).keys()
    assert json_files.read_json(folder / "config.json")["tensorboard"] is True


def test_every_point_is_on_the_disk_as_soon_as_its_row_is(tmp_path, monkeypatch):
    real, seen, write = run_folders.save_position, [], event_file_writer.RecordWriter.write
    monkeypatch.setattr(event_file_writer.RecordWriter, "write", lambda *a: (time.sleep(0.01), write(*a)))  # in a thread

    def save_position(folder, *others):
        seen.append((shown(reader(folder)), numbers(folder)))
        real(folder, *others)

    monkeypatch.setattr(run_folders, "save_position", save_position)
    run(tmp_path / "run")
    assert [len(points["loss/nll"]) for points, _ in seen] == [1, 2]
    assert all(points == said for points, said in seen)


@pytest.mark.parametrize("defense", ["advbnn", "rse"])
def test_the_training_is_the_same_with_and_without(tmp_path, defense):
    with_events = run(tmp_path / "with", defense=defense)
    without = run(tmp_path / "without", defense=defense, tensorboard=False)
    assert event_names(without) == set()
    assert json_files.read_json(without / "config.json")["tensorboard"] is False
    assert_same_run(with_events, without)


@pytest.mark.parametrize("save", [1, 2])
def test_points_later_than_the_checkpoint_are_gone_when_the_run_goes_on(tmp_path, monkeypatch, save):
    folder = tmp_path / "run"
    with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
        interrupt_after(dying, save, before_writing=True)
        run(folder)
    assert len(shown(reader(folder))["loss/nll"]) == save
    train(resume=folder, max_minutes=SOON)               # leaves in the middle of the epoch that is done again
    assert len(shown(reader(folder))["loss/nll"]) == save - 1
    train(resume=folder)
    assert_shows_what_the_run_says(folder, [1, 2])


def test_it_may_be_switched_on_at_a_resumption_and_goes_on_at_the_next(tmp_path):
    folder = run(tmp_path / "run", epochs=1, tensorboard=False)
    assert event_names(folder) == set()
    train(resume=folder, epochs=2, tensorboard=True)
    assert_shows_what_the_run_says(folder, [1, 2])       # with what went before
    train(resume=folder, epochs=3)
    assert_shows_what_the_run_says(folder, [1, 2, 3])
    assert json_files.read_json(folder / "config.json")["tensorboard"] is True
    points = [len(shown(reader(folder / name))["loss/nll"]) for name in sorted(event_names(folder))]
    assert points == [2, 1]                              # no file repeats what another one has


def test_where_the_package_is_missing_the_flag_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    finished = run(tmp_path / "finished", epochs=1)
    before = snapshot(finished)
    capsys.readouterr()
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    line = refusal(capsys, *words(SMALL), "--out", tmp_path / "run", "--tensorboard")
    assert "--tensorboard needs the package tensorboard" in line and "pip install tensorboard" in line
    assert not (tmp_path / "run").exists()
    assert "needs the package tensorboard" in refusal(capsys, "--resume", finished, "--epochs", 2)
    assert snapshot(finished) == before
    run(tmp_path / "run", tensorboard=False)             # needs it no more than before
