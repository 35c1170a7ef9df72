"""Tests of files from strangers: nothing in them is executed, none costs memory or hangs, none leads out of its folder."""
import html.parser
import io
import json
import os
import pickle
import re
import resource
import signal
import socket
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

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
    write_cifar10,
    write_folder,
    write_imagenet,
    write_npz,
    write_results,
    write_stl10,
)
from PIL import Image
from victims import FORKSERVER, PATIENCE

from pyro_advbnn import datasets, evaluate
from pyro_advbnn.datasets import cache
from pyro_advbnn.experiments import reproduction
from pyro_advbnn.reporting import csv_tables, figures, report, summaries
from pyro_advbnn.system import json_files
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.train import train
from pyro_advbnn.training import checkpoints, run_folders

FILES = "hostile files refused"
pytestmark = pytest.mark.usefixtures("digits_once")


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a small finished run that a test may spoil."""
    return copied(finished, tmp_path / "run")


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "IT-RAN"


@pytest.fixture(autouse=True)
def no_hanging():
    """A file that blocks its reader fails the test instead of stopping the session."""
    def fail(*_):
        pytest.fail("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# Nothing is executed


def pickles(marker):
    """Pickles that make a folder when they are loaded, as bytes."""
    return [pickle.dumps(Bomb(marker), protocol) for protocol in (0, 2, 4)] + [
        pickle.dumps({"data": Bomb(marker), "labels": [0]}, 2)]


def inside_torch(marker, **more):
    file = io.BytesIO()
    torch.save({"format": 1, "config": {}, "settings": {"kind": "deterministic"}, "state": {"x": Bomb(marker)}, **more}, file)
    return file.getvalue()


def legacy_torch(marker):
    file = io.BytesIO()
    torch.save({"format": 1, "config": Bomb(marker), "settings": {}, "state": {}}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def inside_npz(marker, name="x_train"):
    file, array = io.BytesIO(), np.empty(1, object)
    array[0] = Bomb(marker)
    good = {"x_train": np.zeros((2, 8, 8, 3), np.uint8), "y_train": np.arange(2), "x_test": np.zeros((2, 8, 8, 3), np.uint8),
            "y_test": np.arange(2)}
    np.savez(file, **(good | {name: array}))
    return file.getvalue()


def npz_of_pickle(content):
    """A zip whose entry is the pickle itself, which np.load would take for one where it is allowed to."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def everything(marker):
    return [*pickles(marker), inside_torch(marker), legacy_torch(marker), inside_npz(marker), inside_npz(marker, "y_train"),
            *map(npz_of_pickle, pickles(marker)[:2])]


def test_the_bombs_would_go_off_if_they_were_let(tmp_path):
    for number, make in enumerate([lambda m: pickles(m)[0], lambda m: pickles(m)[2]]):
        pickle.loads(make(tmp_path / str(number)))
        assert (tmp_path / str(number)).is_dir()
    for name, make in {"torch": inside_torch, "legacy": legacy_torch}.items():
        torch.load(io.BytesIO(make(tmp_path / name)), weights_only=False)
        assert (tmp_path / name).is_dir()
    with np.load(io.BytesIO(inside_npz(tmp_path / "npz")), allow_pickle=True) as archive:
        assert archive["x_train"] is not None and (tmp_path / "npz").is_dir()


@pytest.mark.parametrize("name", ["checkpoint.pt", "best.pt"])
def test_no_checkpoint_runs_code(run, marker, name, tally):
    for content in everything(marker):
        (run / name).write_bytes(content)
        assert str(run / name) in refused(checkpoints.load, run / name)
        assert str(run / name) in refused(checkpoints.read, run / name, mmap=True)
        assert str(run / name) in refused(run_folders.load_classifier, run, "best" if name == "best.pt" else "last")
        tally(FILES)
    assert not marker.exists()


def test_neither_resuming_nor_starting_from_nor_evaluating_a_run_runs_its_code(run, marker, tmp_path, capsys, tally):
    for content in (inside_torch(marker), pickles(marker)[1], inside_torch(marker, training=Bomb(marker))):
        for name in ("checkpoint.pt", "best.pt"):
            (run / name).write_bytes(content)
        before = digests(run)
        for commands, words in ((train, ["--resume", run]),
                                (train, [*RUN_FLAGS, "--init_from", run, "--out", tmp_path / "new"]),
                                (evaluate.VERBS, ["accuracy", "--run", run, "--num_test", "10"])):
            assert str(run) in refused_command(capsys, commands, *words)
            tally(FILES)
        assert digests(run) == before and not marker.exists() and not (tmp_path / "new").exists()


def test_no_array_file_runs_code(tmp_path, marker, monkeypatch, tally):
    (tmp_path / "stl10").mkdir()
    for content in everything(marker):
        (tmp_path / "mine.npz").write_bytes(content)
        (tmp_path / "stl10" / "stl10.npz").write_bytes(content)
        write_cifar10(tmp_path, monkeypatch, content)
        for name, place in (("npz", tmp_path / "mine.npz"), ("stl10", tmp_path / "stl10"), ("cifar10", tmp_path)):
            assert str(tmp_path) in refused(datasets.load, name, "train", place)
            tally(FILES)
    assert not marker.exists()


def test_no_image_and_no_cache_runs_code(tmp_path, marker, monkeypatch, tally):
    folder = write_imagenet(tmp_path, monkeypatch)
    expected = datasets.load("imagenet143", "train", folder).images.clone()
    cache = folder / "imagenet143-64-train.npy"
    fingerprint = cache.read_bytes()[-64:]
    for content in everything(marker):
        cache.write_bytes(content + fingerprint)             # as long as the right one is not needed to be read
        assert cache._mapped(cache, tuple(expected.shape), fingerprint) is None
        assert torch.equal(datasets.load("imagenet143", "train", folder).images, expected)
        (folder / "train" / "n01" / "0.png").write_bytes(content)
        for loading in ({"image_size": 8}, {"image_size": 8, "loading": "stream", "workers": 0}):
            found = datasets.load
            if "loading" in loading:
                images = datasets.load("folder", "train", folder, **loading)
                found = lambda *_, **__: next(images.read([torch.arange(1)]))       # noqa: B023, E731
            assert "0.png" in refused(found, "folder", "train", folder, **loading)
            tally(FILES)
        Image.new("RGB", (8, 8), (0, 20, 30)).save(folder / "train" / "n01" / "0.png")
    assert not marker.exists()


def test_a_cache_of_objects_with_the_right_size_and_fingerprint_is_not_unpickled(tmp_path, marker):
    array = np.empty(3 * 64 * 64, object)
    array[:] = [Bomb(marker)] * len(array)
    file, fingerprint = io.BytesIO(), b"f" * 64
    np.save(file, array)
    body = file.getvalue()[:128 + 3 * 64 * 64]
    (tmp_path / "cache.npy").write_bytes(body + fingerprint)
    assert cache._mapped(tmp_path / "cache.npy", (1, 3, 64, 64), fingerprint) is None and not marker.exists()


TEXTS = {
    "config.json": lambda run: run_folders.read_config(run),
    "metrics.jsonl": lambda run: run_folders.reopen(run, {}, None, {"epochs_done": 1}),
    "evaluation/accuracy.csv": lambda run: csv_tables.read(run, "accuracy"),
    "evaluation/log.jsonl": lambda run: report.write(run),
    "figures/accuracy.svg": lambda run: report.write(run),
    "reproduce.jsonl": lambda run: reproduction.Journal(SimpleNamespace(out=run, identity={}, steps=())),
}


@pytest.mark.parametrize("name", TEXTS)
def test_no_text_file_runs_code(run, marker, name, tally):
    write_results(run)
    for content in everything(marker):
        (run / name).write_bytes(content + b"\n")
        before = digests(run)
        assert name in refused(TEXTS[name], run)
        assert digests(run) == before
        tally(FILES)
    assert not marker.exists()


def test_a_network_that_a_run_names_is_not_imported(run, tmp_path, monkeypatch, capsys, tally):
    (tmp_path / "harmful.py").write_text("import pathlib\npathlib.Path(__file__).with_name('IT-RAN').mkdir()\n")
    monkeypatch.syspath_prepend(tmp_path)
    content, config = checkpoints.read(run / "checkpoint.pt"), json_files.read_json(run / "config.json")
    for network in ("harmful:build", "harmful:__import__", "os:system", "torchvision:harmful", "../harmful:build", "", 5, None,
                    ["convnet"], {"a": 1}):
        json_files.write_json(run / "config.json", config | {"network": network})
        for name in ("checkpoint.pt", "best.pt"):
            torch.save(content | {"config": content["config"] | {"network": network}}, run / name)
        for commands, words in ((train, ["--resume", run, "--epochs", "2"]), (evaluate.VERBS, ["accuracy", "--run", run]),
                                (train, [*RUN_FLAGS, "--init_from", run, "--out", tmp_path / "new"])):
            refused_command(capsys, commands, *words)
            tally(FILES)
    assert not (tmp_path / "IT-RAN").exists() and "harmful" not in sys.modules


# No memory is spent


def rewritten(path, change):
    """The archive at path with change(name, bytes) -> bytes for each record, stored as torch.save stores them."""
    with zipfile.ZipFile(path) as archive:
        records = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def grown_storage(name, content):
    """The pickle with 1,000,000 in place of the 7 elements of a storage."""
    assert not name.endswith("data.pkl") or b"K\x07" in content
    return content.replace(b"K\x07", b"J" + struct.pack("<i", 10**6)) if name.endswith("data.pkl") else content


def deflated(path, parts, name="x_train.npy"):
    """A zip with one entry of mebibytes of zeros, which takes thousandths of them; then the usual labels."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(name, "w") as file:
            for part in parts:
                file.write(part)
        labels = io.BytesIO()
        np.save(labels, np.zeros(100, int))
        for other in {"y_train.npy", "x_train.npy"} - {name}:
            archive.writestr(other, labels.getvalue())
    return path


def header(shape, descr="|u1"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def claims(path, **headers):
    """An npz whose arrays are headers and ten bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in headers.items():
            archive.writestr(f"{name}.npy", content + bytes(10))
    return path


def png(width, height, data=b""):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b""))


def sparse(path, size=2**36):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


def plain(path, config=None, state=None):
    config = {"network": "convnet", "num_classes": 10, "in_channels": 1, "width": 2, "defense": "none"} | (config or {})
    torch.save({"format": 1, "config": config, "settings": {"kind": "deterministic"}, "state": state or {}}, path)
    return path


def compressed_checkpoint(path):
    plain(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, \
            archive.open(f"{path.stem}/data/0", "w") as file:
        for _ in range(MEBIBYTES):
            file.write(bytes(2**20))
    return path


def with_structure(path, opcodes):
    plain(path)
    rewritten(path, lambda name, content: b"\x80\x02" + opcodes + b"." if name.endswith("data.pkl") else content)
    return path


def larger_than_its_record(path):
    rewritten(plain(path, state={"x": torch.zeros(7)}), grown_storage)
    return path


MEBIBYTES = 150                                          # what a bomb of zeros unpacks to: 50 more than any file may cost
CHECKPOINTS = {
    "compressed": compressed_checkpoint,
    "larger than its record": larger_than_its_record,
    "one number a billion times": lambda path: plain(path, {"width": 10**5}, {"x": torch.zeros(1).expand(2**40)}),
    "memo": lambda path: with_structure(path, b"}r" + struct.pack("<I", 2**29)),
    "bytearray": lambda path: with_structure(path, b"c__builtin__\nbytearray\nJ" + struct.pack("<i", 2**30) + b"\x85R"),
    "wide": lambda path: plain(path, {"width": 10**5}),
    "wider than any machine": lambda path: plain(path, {"width": 10**12}),
    "classes": lambda path: plain(path, {"num_classes": 10**9}),
    "torchvision": lambda path: plain(path, {"network": "torchvision:vit_h_14", "in_channels": 3, "width": None}),
    "sparse": sparse,
}
ARRAYS = {
    "shape": lambda path: claims(path, x_train=header((10**6, 1000, 1000, 3)), y_train=header((10,))),
    "negative shape": lambda path: claims(path, x_train=header((-1, 8, 8, 3)), y_train=header((10,))),
    "shape beyond 64 bits": lambda path: claims(path, x_train=header((2**62, 2**62, 2**62, 3)), y_train=header((10,))),
    "long text": lambda path: claims(path, x_train=header((10,)), y_train=header((1,), "|S2000000000")),
    "objects": lambda path: claims(path, x_train=header((1,), "|O"), y_train=header((10,))),
    "labels": lambda path: claims(path, y_train=header((2**36,)), x_train=header((1, 8, 8, 1))),
    "zeros": lambda path: deflated(path, [header((MEBIBYTES, 1024, 1024, 1)), *[bytes(2**20)] * MEBIBYTES]),
    "header": lambda path: deflated(path, [b"\x93NUMPY\x02\x00" + struct.pack("<I", MEBIBYTES * 2**20),
                                             *[b" " * 2**20] * MEBIBYTES]),
    "labels of zeros": lambda path: deflated(path, [header((MEBIBYTES * 2**17,), "<i8"), *[bytes(2**20)] * MEBIBYTES],
                                             "y_train.npy"),
    "sparse": sparse,
}
READ = {                                                     # the folder of bombs, what reads them
    "checkpoints": checkpoints.load, "arrays": lambda path: datasets.load("npz", "train", path),
    "json": json_files.read_json, "jsonl": json_files.read_jsonl, "csv": lambda path: csv_tables.read(path, "accuracy"),
    "svg": report.write, "images": lambda path: datasets.load("folder", "train", path, image_size=8),
    "stl10": lambda path: datasets.load("stl10", "train", path),
    "cifar10": lambda path: datasets.load("cifar10", "train", path),
}


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measure(root, pipe):
    """Read every bomb, for a process of its own: (place, what it was told, MiB that the peak of its memory rose)."""
    torch.set_num_threads(1)
    for path in (root / "checkpoints" / "good.pt", root / "arrays" / "good.npz"):   # what the first use costs
        READ[path.parent.name](path)
    for place in sorted(root.glob("*/bad*")):
        before, told = peak(), None
        try:
            READ[place.parent.name](place)
        except InputError as error:
            told = str(error)
        pipe.send((place, told, peak() - before))


def write_bombs(root, run):
    for kind, bombs, suffix in (("checkpoints", CHECKPOINTS, "pt"), ("arrays", ARRAYS, "npz")):
        (root / kind).mkdir()
        for name, make in bombs.items():
            make(root / kind / f"bad {name}.{suffix}")
    (root / "checkpoints" / "good.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    write_npz(root / "arrays" / "good.npz")
    for name, content in (("wide", png(60000, 60000)), ("tall", png(1, 2**31 - 1)), ("much", png(9400, 9400, bytes(2**22)))):
        place = root / "images" / f"bad {name}" / "train" / "a" / "0.png"
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
    sparse(root / "images" / "bad sparse" / "train" / "a" / "0.png")
    sparse(root / "json" / "bad")
    (root / "json" / "bad deep").write_text("[" * 10**5)
    sparse(root / "jsonl" / "bad")
    sparse(root / "csv" / "bad" / "evaluation" / "accuracy.csv")
    sparse(root / "svg" / "bad" / "figures" / "accuracy.svg")
    deep = root / "svg" / "bad deep" / "figures" / "accuracy.svg"
    deep.parent.mkdir(parents=True)
    deep.write_text('<svg xmlns="http://www.w3.org/2000/svg">' + "<g>" * 20000 + "</g>" * 20000 + "</svg>")
    laughs = root / "svg" / "bad laughs" / "figures" / "accuracy.svg"
    laughs.parent.mkdir(parents=True)
    laughs.write_text('<!DOCTYPE svg [<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij")) + "]><svg>&j;</svg>")
    for name in ("train_y.bin", "train_X.bin"):
        folder = write_stl10(root / "stl10" / f"bad {name}")
        sparse(folder / name)
    sparse(root / "cifar10" / "bad" / "cifar-10-batches-py" / "data_batch_1")


def test_no_file_costs_memory_beyond_what_it_holds(tmp_path, run, tally):
    root = tmp_path / "bombs"
    root.mkdir()
    write_bombs(root, run)
    told, (here, there) = [], FORKSERVER.Pipe(duplex=False)
    process = FORKSERVER.Process(target=measure, args=(root, there))
    process.start()
    there.close()
    while here.poll(PATIENCE):
        try:
            told.append(here.recv())
        except EOFError:
            break
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert len(told) == len(list(root.glob("*/bad*"))) == len(CHECKPOINTS) + len(ARRAYS) + 4 + 2 + 1 + 1 + 3 + 2 + 1
    for place, message, mebibytes in told:
        assert message and place.name in message and len(message.splitlines()) == 1, (place, message)
        assert mebibytes < 100, (place, message, mebibytes)
        tally(FILES)


def test_what_a_tensor_claims_beyond_its_record_is_not_read_from_elsewhere(tmp_path):
    path = larger_than_its_record(tmp_path / "c.pt")
    assert "damaged or no checkpoint" in refused(checkpoints.read, path)
    assert "damaged or no checkpoint" in refused(checkpoints.read, path, mmap=True)


def test_compressed_arrays_that_are_no_bombs_are_read(tmp_path):
    images = np.zeros((400, 32, 32, 3), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x_train=images, y_train=np.repeat(np.arange(4), 100), x_test=images[:1],
                        y_test=np.zeros(1, int))
    assert len(datasets.load("npz", "train", tmp_path / "a.npz")) == 400
    np.savez(tmp_path / "b.npz", x_train=np.asfortranarray(images), y_train=np.repeat(np.arange(4), 100), x_test=images[:1],
             y_test=np.zeros(1, int))
    assert len(datasets.load("npz", "train", tmp_path / "b.npz")) == 400


def test_an_array_larger_than_the_memory_is_refused_with_both_sizes(tmp_path, monkeypatch):
    path = write_npz(tmp_path / "a.npz")
    monkeypatch.setattr("pyro_advbnn.datasets.array_archives.available_memory", lambda: 1000)
    assert "GiB of memory" in refused(datasets.load, "npz", "train", path)


# Names and links


@pytest.mark.parametrize("name", ["../x", "/x", "archive/../../x", "a\\..\\x"])
def test_the_names_inside_a_checkpoint_stay_inside(tmp_path, name, run, tally):
    path = run / "checkpoint.pt"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"")
    assert str(path) in refused(checkpoints.read, path)
    assert not (tmp_path / "x").exists() and not Path("/x").exists()
    tally(FILES)


def test_the_names_inside_an_npz_are_never_paths(tmp_path, tally):
    path = write_npz(tmp_path / "a.npz")
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../x.npy", "/tmp/x.npy", "..\\x.npy"):
            archive.writestr(name, header((1,)) + b"0")
            tally(FILES)
    before = digests(tmp_path)
    assert len(datasets.load("npz", "train", path)) == 4 and digests(tmp_path) == before


LINKED = {
    "a class": ("folder", "train/cat"), "an image": ("folder", "train/cat/0.png"), "a split": ("folder", "train"),
    "a batch": ("cifar10", "cifar-10-batches-py/data_batch_1"), "batches": ("cifar10", "cifar-10-batches-py"),
    "labels": ("stl10", "stl10_binary/train_y.bin"), "pixels": ("stl10", "stl10_binary/train_X.bin"),
    "an npz": ("stl10", "stl10.npz"), "a wnid": ("imagenet143", "train/n01"), "its image": ("imagenet143", "train/n01/0.png"),
    "a cache": ("imagenet143", "imagenet143-64-train.npy"),
}


def data_of(name, folder, monkeypatch):
    """The smallest data set of a name in the folder."""
    {"folder": write_folder, "stl10": write_stl10, "cifar10": lambda root: write_cifar10(root, monkeypatch),
     "imagenet143": lambda root: write_imagenet(root, monkeypatch)}[name](folder)
    return folder


@pytest.mark.parametrize("kind", LINKED)
def test_a_link_out_of_the_data_folder_is_refused_and_named_and_one_within_is_followed(tmp_path, monkeypatch, kind, tally):
    name, place = LINKED[kind]
    folder = tmp_path / "data"
    folder.mkdir()
    if kind == "an npz":
        (folder / "stl10.npz").write_bytes(b"")
    else:
        data_of(name, folder, monkeypatch)
    if kind == "a cache":
        datasets.load(name, "train", folder)
    outside, inside = tmp_path / "outside", folder / ".inside"
    (folder / place).rename(outside)
    (folder / place).symlink_to(outside)
    before = digests(tmp_path)
    message = refused(datasets.load, name, "train", folder)
    assert f"{folder / place}: a link that leads out of {folder}" in message or f"a link that leads out of {folder}" in message
    assert str(outside) in message and digests(tmp_path) == before
    tally(FILES)
    if kind == "an npz":
        return
    outside.rename(inside)
    (folder / place).unlink()
    (folder / place).symlink_to(inside)
    assert len(datasets.load(name, "train", folder)) > 0
    (tmp_path / "alias").symlink_to(folder)
    assert len(datasets.load(name, "train", tmp_path / "alias")) > 0


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nb", b"\xff\xfe"])
def test_a_class_folder_whose_name_would_garble_the_terminal_or_the_records_is_refused(tmp_path, name, tally):
    write_folder(tmp_path)
    place = tmp_path / "train" / os.fsdecode(name)
    (tmp_path / "train" / "cat").rename(place)
    assert "class folder" in refused(datasets.load, "folder", "train", tmp_path).replace(str(tmp_path), "")
    tally(FILES)


def test_names_in_records_lead_no_evaluation_out_of_its_folder(run, tmp_path, capsys):
    config = json_files.read_json(run / "config.json")
    json_files.write_json(run / "config.json", config | {"class_names": [f"../../../{i}" for i in range(10)], "data_dir": None})
    before = digests(tmp_path)
    assert "class_names" in refused_command(capsys, evaluate.VERBS, "accuracy", "--run", run)
    assert digests(tmp_path) == before


# Special files


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path)[-100:] if len(str(path)) > 100 else str(path))


SPECIAL = {"a pipe": make_pipe, "a folder": Path.mkdir, "a device": lambda path: path.symlink_to("/dev/zero"),
           "a link to nothing": lambda path: path.symlink_to("nowhere"), "a ring": lambda path: path.symlink_to(path.name)}
PLACES = {
    "run/checkpoint.pt": lambda root: run_folders.load_classifier(root / "run", "last"),
    "run/best.pt": lambda root: run_folders.load_classifier(root / "run"),
    "run/config.json": lambda root: run_folders.read_config(root / "run"),
    "run/metrics.jsonl": lambda root: run_folders.reopen(root / "run", {}, None, {"epochs_done": 1}),
    "run/evaluation/accuracy.csv": lambda root: report.write(root / "run"),
    "run/evaluation/log.jsonl": lambda root: report.write(root / "run"),
    "run/figures/accuracy.svg": lambda root: report.write(root / "run"),
    "mine.npz": lambda root: datasets.load("npz", "train", root / "mine.npz"),
    "folder/train/cat/0.png": lambda root: datasets.load("folder", "train", root / "folder"),
    "stl10/stl10_binary/train_X.bin": lambda root: datasets.load("stl10", "train", root / "stl10"),
    "stl10/stl10_binary/train_y.bin": lambda root: datasets.load("stl10", "train", root / "stl10"),
    "cifar10/cifar-10-batches-py/data_batch_2": lambda root: datasets.load("cifar10", "train", root / "cifar10"),
    "imagenet143/train/n01/0.png": lambda root: datasets.load("imagenet143", "train", root / "imagenet143"),
    "imagenet143/imagenet143-64-train.npy": lambda root: datasets.load("imagenet143", "train", root / "imagenet143"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_pipe_a_folder_a_device_or_a_dead_link_in_place_of_a_file_neither_hangs_nor_passes(
        tmp_path, run, monkeypatch, place, tally):
    write_results(run)
    kind = place.partition("/")[0]
    if kind not in ("run", "mine.npz"):
        data_of(kind, tmp_path / kind, monkeypatch)
    path = tmp_path / place
    path.unlink(missing_ok=True)
    for name, make in SPECIAL.items():
        make(path)
        assert path.name in refused(PLACES[place], tmp_path), name
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        tally(FILES)


# The report


EVIL = ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "javascript:alert(1)", "]]><!--", "&lt;script&gt;",
        "x\x00\x07\x1b[2Jy", "\u202egnp.exe\u2066", "`|a](javascript:alert(1))", "</title></style></script>", "\ud800",
        "\u2028"]
SVG = ('<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9" onload="alert(1)">'
       '<script>alert(1)</script><style>*{{}}</style><foreignObject><iframe src="javascript:alert(1)"/></foreignObject>'
       '<a xlink:href="javascript:alert(1)"><text>a</text></a><use xlink:href="javascript:alert(1)"/>'
       '<image xlink:href="http://x/y.png"/><rect style="fill:url(javascript:alert(1))" onclick="alert(1)" onmouseover="x=1"/>'
       '<set attributeName="href" to="javascript:alert(1)"/><text font-family="{quoted}">{text}</text></svg>')


class Markup(html.parser.HTMLParser):
    """Which tags and which names of attributes a page has, the values of those that load or run, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.links, self.words = set(), set(), [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.links += [value for name, value in attributes if name in ("href", "src", "action", "style", "content")]

    def handle_data(self, text):
        self.words.append(text)

    def handle_comment(self, text):
        pytest.fail(f"a comment: {text}")

    def handle_pi(self, text):
        pytest.fail(f"a processing instruction: {text}")


def escaped(text):
    from xml.sax.saxutils import escape
    allowed = "".join(c if c.isprintable() else "?" for c in text)
    return escape(allowed, {'"': "&quot;"})


def spoiled(value, evil, kept=("settings", "dataset", "defense")):
    """A record in which every text, and every name that is not ours, is `evil`."""
    if isinstance(value, dict):
        return {name: spoiled(item, evil) for name, item in value.items()} | {evil: evil}
    return [spoiled(item, evil) for item in value] if isinstance(value, list) else evil if isinstance(value, str) else value


@pytest.mark.parametrize("evil", EVIL, ids=range(len(EVIL)))
def test_no_text_of_any_record_becomes_markup_of_the_report(run, tmp_path, evil, tally):
    folder = write_results(tmp_path / "results")
    harmless = Markup(report.write(folder, [run]).read_text())
    name = re.sub(r"[/\x00\ud800]", "", evil)[:60]
    other = tmp_path / "runs" / name
    other.mkdir(parents=True)
    config = json_files.read_json(run / "config.json")
    (other / "config.json").write_text(json.dumps(spoiled(config, evil) | {"classifier": {"kind": "bayesian", evil: evil}}))
    json_files.write_jsonl(other / "metrics.jsonl", [{"epoch": evil, "nll": evil, evil: evil}])
    row, = csv_tables.read(folder, "accuracy")
    text = evil.encode("utf-8", "replace").decode().replace("\x00", "")
    csv_tables.Table(folder, "accuracy").add([{n: text if isinstance(v, str) else v for n, v in row.items()}])
    example = {n: text if n in csv_tables._TEXTS else 1 for n in csv_tables.TABLES["examples"]}
    csv_tables.Table(folder, "examples").add([example])
    json_files.write_jsonl(folder / "evaluation" / "log.jsonl", [{"command": evil, "seconds": evil, "rows": evil,
                                                                "environment": {"device": evil}}])
    (folder / "figures" / f"{name}.svg").write_text(SVG.format(text=escaped(evil), quoted=escaped(evil)))
    page = report.write(folder, [run, other]).read_text()
    markup = Markup(page)
    new = {"h3", "small", "figure", "div", "span", "b", "use", "image", "rect", "dl", "dt", "dd", "details", "text"}
    assert markup.tags - harmless.tags <= new, markup.tags - harmless.tags
    assert not {name for name in markup.attributes if name.startswith("on")}
    assert markup.attributes - harmless.attributes <= {"font-family", "style", "alt", "width", "height"}
    assert not [link for link in markup.links if link and "javascript:" in link.lower()]
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    if evil.startswith("<script"):
        assert "".join(markup.words).count(evil) > 20        # it is shown, as text
    tally("texts that tried to become markup")


@pytest.mark.parametrize("evil", EVIL, ids=range(len(EVIL)))
def test_no_name_becomes_markup_of_a_drawing_or_a_summary(tmp_path, evil):
    import xml.etree.ElementTree as ET
    folder = write_results(tmp_path / "results")
    row, = csv_tables.read(folder, "accuracy")
    evil = evil.encode("utf-8", "replace").decode().replace("\x00", "")
    rows = [row | {"run": evil, "dataset": evil, "defense": evil, "network": evil, "attack": evil, "epsilon": epsilon}
            for epsilon in (0.1, 0.2)] + [row | {"run": "$\\frac{$", "epsilon": epsilon} for epsilon in (0.1, 0.2)]
    table = csv_tables.Table(folder, "accuracy")
    table.add(rows)
    (folder / "figures" / "accuracy.svg").unlink()
    figures.draw(folder, ["accuracy"])
    known = {"svg", "g", "defs", "path", "use", "clipPath", "rect", "text", "style", "metadata", "RDF", "Work", "type", "date",
             "format", "creator", "Agent", "title", "tspan"}
    for path in (folder / "figures").glob("*.svg"):
        tags = {re.sub("{.*}", "", node.tag) for node in ET.parse(path).iter()}
        assert tags <= known, tags - known
    for path in summaries.write(folder):
        text = path.read_text()
        assert not re.search(r"(?<!\\)<\w", text) and not re.search(r"(?<!\\)\]\(", text)
