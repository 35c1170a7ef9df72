"""Tests of rubbish: damaged, mislabelled and odd data files are read right or refused in one line, and never changed."""
import io
import random
import struct
import zipfile
import zlib
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hostile import digests, refused, write_cifar10, write_folder, write_imagenet, write_npz, write_stl10
from hypothesis import HealthCheck, given, settings
from PIL import Image
from torchvision.datasets import CIFAR10

from pyro_advbnn import datasets
from pyro_advbnn.system.errors import InputError


def is_sound(images):
    """Whether a set of images keeps what the rest of the code relies on."""
    stored = images.in_memory()
    return (stored.images.dtype == torch.uint8 and stored.images.dim() == 4 and len(stored.images) == len(images.labels) > 0
            and 0 <= int(images.labels.min()) <= int(images.labels.max()) < images.num_classes)


def cifar10(root, monkeypatch):
    write_cifar10(root, monkeypatch)
    return root, Path(CIFAR10.base_folder) / "data_batch_3"


def stl10(root, monkeypatch):
    write_stl10(root)
    return root, Path("stl10_binary") / "train_X.bin"


def stl10_labels(root, monkeypatch):
    write_stl10(root)
    return root, Path("stl10_binary") / "train_y.bin"


def npz(root, monkeypatch):
    return write_npz(root / "mine.npz"), Path("mine.npz")


def folder(root, monkeypatch):
    return write_folder(root), Path("train/dog/1.png")


def imagenet143(root, monkeypatch):
    return write_imagenet(root, monkeypatch), Path("train/n02/1.png")


DATA = {"cifar10": cifar10, "stl10": stl10, "stl10 labels": stl10_labels, "npz": npz, "folder": folder,
        "imagenet143": imagenet143}


@pytest.fixture(params=DATA)
def data(request, tmp_path, monkeypatch):
    """(name, what --data_dir takes, the file to damage) of a small data set."""
    data_dir, file = DATA[request.param](tmp_path, monkeypatch)
    return request.param.split()[0], data_dir, tmp_path / file


def test_a_missing_an_empty_and_a_cut_file_of_every_data_set_is_refused_and_named(data):
    name, data_dir, path = data
    whole = path.read_bytes()
    assert is_sound(datasets.load(name, "train", data_dir))
    last = len(whole) * 2 // 3 if path.suffix == ".png" else len(whole) - 1          # what ends a PNG says nothing
    for cut in (0, 1, len(whole) // 3, len(whole) // 2, last):
        for cache in path.parents[2].glob("imagenet143-*.npy"):
            cache.unlink()
        path.write_bytes(whole[:cut])
        message = refused(datasets.load, name, "train", data_dir)
        assert str(path.parent) in message and (path.name in message or path.with_suffix("").name in message)
    path.unlink()
    if name in ("folder", "imagenet143"):
        assert len(datasets.load(name, "train", data_dir)) == 3         # one image fewer is no damage
    else:
        assert str(path) in refused(datasets.load, name, "train", data_dir)


RED, GREEN, BLUE = (250, 10, 20), (10, 240, 30), (20, 30, 230)


def with_orientation(path):
    exif = Image.Exif()
    exif[0x0112] = 6                                         # turned by 90 degrees
    image = Image.new("RGB", (8, 8), RED)
    image.paste(GREEN, (0, 0, 8, 4))
    image.save(path, "PNG", exif=exif)


def sixteen_bit_colours(path):
    """A PNG of 16 bits per channel, which Pillow cannot write; the upper bytes are those of RED."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = b"\0" + struct.pack(">3H", *(value * 256 + 200 for value in RED)) * 8
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
                     + chunk(b"IDAT", zlib.compress(row * 8)) + chunk(b"IEND", b""))


def palette_with_transparency(path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette((*RED, *BLUE))
    image.save(path, "PNG", transparency=bytes([0, 100]))


READ_AS = {                                                  # a way to write 8x8 pixels, what they are read as
    "turned by EXIF": (with_orientation, GREEN), "16-bit colours": (sixteen_bit_colours, RED),
    "palette with transparency": (palette_with_transparency, BLUE),
}


def image_folder(root, save):
    path = root / "train" / "a" / "0.png"
    path.parent.mkdir(parents=True)
    save(path)
    return path


@pytest.mark.parametrize("kind", READ_AS)
def test_odd_images_are_read_as_documented_in_memory_and_streamed(tmp_path, kind):
    save, colour = READ_AS[kind]
    image_folder(tmp_path, save)
    in_memory = datasets.load("folder", "train", tmp_path).images
    assert in_memory.shape == (1, 3, 8, 8)
    assert tuple(in_memory[0, :, 1, 1].tolist()) == colour
    streamed = datasets.load("folder", "train", tmp_path, image_size=8, loading="stream", workers=0)
    assert torch.equal(next(iter(streamed.read([torch.arange(1)])))[0], in_memory)


def mutated(content, chance):
    """Bytes with one to eight changes: bits flipped, parts cut, doubled, swapped, filled or put in."""
    content = bytearray(content)
    for _ in range(chance.randrange(1, 9)):
        at, length = chance.randrange(len(content) + 1), chance.choice((1, 1, 2, 4, 30, 300))
        part = content[at:at + length]
        kind = chance.randrange(6)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del content[at:at + length]
        elif kind == 2:
            content[at:at] = part
        elif kind == 3:
            content[at:at + length] = bytes(chance.randrange(256) for _ in part)
        elif kind == 4:
            content[at:at + length] = bytes([chance.choice((0, 255, 10, 34, 44, 46))]) * len(part)
        elif chance.random() < 0.2:
            del content[at:]
    return bytes(content)


def mutated_records(content, chance):
    """A zip in which one record is changed and its sum is right, so that the damage is found further in."""
    if chance.random() < 0.3:
        return mutated(content, chance)
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(file, "w") as copy:
        names = archive.namelist()
        weak = chance.choice(names)
        for name in names:
            part = archive.read(name)
            head = chance.choice((100, 10**9))
            copy.writestr(name, mutated(part[:head], chance) + part[head:] if name == weak else part)
    return file.getvalue()


def load_all(name, data_dir):
    found = [datasets.load(name, split, data_dir) for split in datasets.SPLITS]
    assert all(map(is_sound, found))


FUZZ = {                                                     # the file, how it is changed, what reads it
    "npz": ("mine.npz", mutated_records, lambda root: load_all("npz", root / "mine.npz")),
    "png": ("folder/train/cat/0.png", mutated, lambda root: load_all("folder", root / "folder")),
    "stl10": ("stl10/stl10_binary/train_y.bin", mutated, lambda root: load_all("stl10", root / "stl10")),
    "cache": ("imagenet143/imagenet143-64-train.npy", mutated, lambda root: load_all("imagenet143", root / "imagenet143")),
}
WRITTEN = ("imagenet143-64-test.npy", "imagenet143-64-train.npy")


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    """A folder with one of every data set."""
    root = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        write_npz(root / "mine.npz")
        write_folder(root / "folder")
        write_stl10(root / "stl10")
        write_imagenet(root / "imagenet143", patch)
        for split in datasets.SPLITS:
            datasets.load("imagenet143", split, root / "imagenet143")
        yield root


def fuzz(root, kind, seed):
    """One malformed file: read or refused in one line, and nothing that was there before is another afterwards."""
    name, change, call = FUZZ[kind]
    path, chance = root / name, random.Random(seed)
    whole = path.read_bytes()
    content = change(whole, chance)
    try:
        path.write_bytes(content)
        before = {name: value for name, value in digests(root).items() if not name.endswith(WRITTEN)}
        try:
            call(root)
        except InputError as error:
            assert len(str(error).splitlines()) == 1
        after = digests(root)
        assert {name: after.get(name) for name in before} == before
    finally:
        path.write_bytes(whole)


FEW = settings(max_examples=12, deadline=None, derandomize=True, database=None,
               suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.mark.parametrize("kind", FUZZ)
@FEW
@given(seed=st.integers(0, 2**32))
def test_no_malformed_file_ends_in_anything_but_a_line(fuzzed, kind, seed):
    fuzz(fuzzed, kind, seed)


@pytest.mark.torture
@pytest.mark.parametrize("kind", FUZZ)
@settings(FEW, max_examples=500)
@given(seed=st.integers(0, 2**32))
def test_none_of_thousands_of_malformed_files_ends_in_anything_but_a_line(fuzzed, kind, seed):
    fuzz(fuzzed, kind, seed)
