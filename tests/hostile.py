"""What tests of foreign and damaged files share: the smallest run and data sets, and what a refusal must be."""
import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from pyro_advbnn.cli import commands
from pyro_advbnn.datasets import folders
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.train import train

RUN_FLAGS = ["--defense", "advbnn", "--dataset", "digits", "--epochs", "1", "--num_train", "60", "--validation", "10",
             "--width", "2", "--num_steps", "1", "--num_samples", "1", "--device", "cpu"]
CATS_AND_DOGS = {"train/cat": 2, "train/dog": 2, "val/cat": 2, "val/dog": 2}


class Bomb:
    """Whoever unpickles it makes the folder `marker`."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def make_run(folder):
    commands.run(train, [*RUN_FLAGS, "--out", str(folder)])
    return folder


def copied(run, to):
    """A copy of a run that a test may spoil."""
    to.mkdir(parents=True)
    for path in run.iterdir():
        if path.is_file():
            (to / path.name).write_bytes(path.read_bytes())
    return to


def refused(call, *arguments, **named):
    """The message of the InputError with which a call ends; it must be one line and not empty."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **named)
    message = str(caught.value)
    assert message.strip() and len(message.splitlines()) == 1
    return message


def refused_command(capsys, verbs, *words):
    """The line with which a command refuses: alone on stderr, with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        commands.run(verbs, [str(word) for word in words])
    out, line = capsys.readouterr()
    assert (ended.value.code, out) == (2, "") and line.startswith("error: ") and line.count("\n") == 1
    return line


def digests(folder):
    """What every file below a folder holds, so that a change shows."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).rglob("*"))
            if path.is_file()}


def pixels(num, size=8, channels=3):
    return np.random.default_rng(0).integers(0, 256, (num, size, size, channels), dtype=np.uint8)


def write_npz(path, **changes):
    """Four training and two test images of three classes; None leaves an array out. Returns path."""
    arrays = {"x_train": pixels(4), "y_train": np.array([0, 1, 2, 1]), "x_test": pixels(2), "y_test": np.array([1, 0])}
    np.savez(path, **{name: array for name, array in (arrays | changes).items() if array is not None})
    return path


def write_stl10(root, labels=(0, 9, 4)):
    """pixels(3, size=96) in both splits, as published: column by column, labels from 1."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"{split}_X.bin").write_bytes(pixels(3, size=96).transpose(0, 3, 2, 1).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes(label + 1 for label in labels))
    return folder


def write_cifar10(root, monkeypatch, content=None):
    """pixels(24, size=32) in CIFAR-10's six files, or in each `content`, and torchvision's list of MD5 sums to fit."""
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True, exist_ok=True)
    images, sums = pixels(24, size=32).transpose(0, 3, 1, 2).reshape(6, 4, -1), []
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        # Protocol 3 is the oldest that stores bytes without calling a function.
        batch = pickle.dumps({"data": images[i], "labels": [i, 1, 2, 9]}, protocol=3) if content is None else content
        (folder / name).write_bytes(batch)
        sums.append([name, hashlib.md5(batch).hexdigest()])
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    return folder


def write_folder(root, layout=CATS_AND_DOGS, size=(8, 8)):
    """layout: {"train/cat": 2} makes two PNG files there; grey enough that no filter overshoots. Returns root."""
    for seed, (name, num) in enumerate(layout.items()):
        (root / name).mkdir(parents=True)
        for i in range(num):
            array = np.random.default_rng((seed, i)).integers(80, 176, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(array).save(root / name / f"{i}.png")
    return root


def write_imagenet(root, monkeypatch):
    monkeypatch.setattr(folders, "_imagenet143_wnids", lambda: ("n01", "n02"))
    return write_folder(root, {"train/n01": 2, "train/n02": 2, "val/n01": 2, "val/n02": 2})
