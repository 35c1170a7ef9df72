"""Tests of files from strangers: nothing in them is executed, whatever reads them, and each is refused in one line."""
import io
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from hostile import (
    RUN_FLAGS,
    Bomb,
    copied,
    digests,
    refused,
    refused_command,
    write_folder,
    write_imagenet,
    write_npz,
)

from pyro_advbnn import datasets, evaluate
from pyro_advbnn.datasets import cache
from pyro_advbnn.system import json_files
from pyro_advbnn.train import train
from pyro_advbnn.training import checkpoints, run_folders


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a small finished run that a test may spoil."""
    return copied(finished, tmp_path / "run")


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "IT-RAN"


def inside_torch(marker, new=True, **more):
    file = io.BytesIO()
    torch.save({"format": checkpoints.FORMAT, "config": {}, "settings": {"kind": "deterministic"}, "state": {"x": Bomb(marker)},
                **more}, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def inside_npz(marker, name="x_train"):
    return write_npz(io.BytesIO(), **{name: np.array([Bomb(marker)], object)}).getvalue()


def npz_of_pickle(marker):
    """A zip whose entries are pickles themselves, which np.load would take for arrays where it is allowed to."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", pickle.dumps(Bomb(marker)))
    return file.getvalue()


def everything(marker):
    return [pickle.dumps(Bomb(marker), 0), pickle.dumps({"data": Bomb(marker), "labels": [0]}, 2), inside_torch(marker),
            inside_torch(marker, new=False), inside_npz(marker), inside_npz(marker, "y_train"), npz_of_pickle(marker)]


def test_the_bombs_would_go_off_if_they_were_let(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "pickle"), 0))
    torch.load(io.BytesIO(inside_torch(tmp_path / "torch")), weights_only=False)
    torch.load(io.BytesIO(inside_torch(tmp_path / "legacy", new=False)), weights_only=False)
    with np.load(io.BytesIO(inside_npz(tmp_path / "npz")), allow_pickle=True) as archive:
        assert archive["x_train"] is not None
    assert {path.name for path in tmp_path.iterdir()} == {"pickle", "torch", "legacy", "npz"}


def test_neither_resuming_nor_starting_from_nor_evaluating_a_run_runs_its_code(run, marker, tmp_path, capsys):
    for content in [*everything(marker), inside_torch(marker, training=Bomb(marker))]:
        for name in ("checkpoint.pt", "best.pt"):
            (run / name).write_bytes(content)
            assert str(run / name) in refused(checkpoints.read, run / name, mmap=True)
            assert str(run / name) in refused(run_folders.load_classifier, run, "best" if name == "best.pt" else "last")
    before = digests(run)
    for commands, words in ((train, ["--resume", run]), (train, [*RUN_FLAGS, "--init_from", run, "--out", tmp_path / "new"]),
                            (evaluate.VERBS, ["accuracy", "--run", run, "--num_test", "10"])):
        assert str(run) in refused_command(capsys, commands, *words)
    assert digests(run) == before and not marker.exists() and not (tmp_path / "new").exists()


def test_no_array_file_runs_code(tmp_path, marker):
    (tmp_path / "stl10").mkdir()
    for content in everything(marker):
        (tmp_path / "mine.npz").write_bytes(content)
        (tmp_path / "stl10" / "stl10.npz").write_bytes(content)
        for name, place in (("npz", tmp_path / "mine.npz"), ("stl10", tmp_path / "stl10")):
            assert str(tmp_path) in refused(datasets.load, name, "train", place)
    assert not marker.exists()


def test_the_names_inside_an_npz_are_never_paths(tmp_path):
    path = write_npz(tmp_path / "a.npz")
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../x.npy", "/tmp/x.npy", "..\\x.npy"):
            archive.writestr(name, b"0")
    before = digests(tmp_path)
    assert len(datasets.load("npz", "train", path)) == 4 and digests(tmp_path) == before


def test_no_image_and_no_cache_runs_code(tmp_path, marker, monkeypatch):
    folder, images = write_folder(tmp_path / "folder"), write_imagenet(tmp_path / "imagenet", monkeypatch)
    expected = datasets.load("imagenet143", "train", images).images.clone()
    path = images / "imagenet143-64-train.npy"
    fingerprint = path.read_bytes()[-64:]
    for content in everything(marker):
        path.write_bytes(content + fingerprint)
        assert torch.equal(datasets.load("imagenet143", "train", images).images, expected)
        (folder / "train" / "cat" / "0.png").write_bytes(content)
        assert "0.png" in refused(datasets.load, "folder", "train", folder)
        streamed = datasets.load("folder", "train", folder, image_size=8, loading="stream", workers=0)
        assert "0.png" in refused(next, streamed.read([torch.arange(1)]))
    assert not marker.exists()


def test_a_cache_of_objects_with_the_right_fingerprint_is_not_unpickled(tmp_path, marker):
    file, fingerprint = io.BytesIO(), b"f" * 64
    np.save(file, np.array([Bomb(marker)] * 3 * 64 * 64, object))
    (tmp_path / "cache.npy").write_bytes(file.getvalue() + fingerprint)
    assert cache._mapped(tmp_path / "cache.npy", (1, 3, 64, 64), fingerprint) is None and not marker.exists()


def test_a_network_that_a_run_names_is_not_imported(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "harmful.py").write_text("import pathlib\npathlib.Path(__file__).with_name('IT-RAN').mkdir()\n")
    monkeypatch.syspath_prepend(tmp_path)
    content, config = checkpoints.read(run / "checkpoint.pt"), json_files.read_json(run / "config.json")
    for network in ("harmful:build", "harmful:__import__", "os:system", "torchvision:harmful", "../harmful:build", ""):
        json_files.write_json(run / "config.json", config | {"network": network})
        for name in ("checkpoint.pt", "best.pt"):
            torch.save(content | {"config": content["config"] | {"network": network}}, run / name)
        for commands, words in ((train, ["--resume", run, "--epochs", "2"]), (evaluate.VERBS, ["accuracy", "--run", run]),
                                (train, [*RUN_FLAGS, "--init_from", run, "--out", tmp_path / "new"])):
            refused_command(capsys, commands, *words)
    assert not (tmp_path / "IT-RAN").exists() and "harmful" not in sys.modules
