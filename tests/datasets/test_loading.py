import hashlib
import http.client
import importlib.util
import os
import urllib.error
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hostile import pixels, refused, write_cifar10, write_folder, write_npz, write_stl10
from PIL import Image
from process_groups import group
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10
from torchvision.transforms.functional import InterpolationMode, center_crop, hflip, resize
from torchvision.transforms.functional import resized_crop as torchvision_crop

from pyro_advbnn import datasets
from pyro_advbnn.datasets import (
    AUGMENTATIONS,
    DATASETS,
    DEFAULT_AUGMENTATION,
    SPLITS,
    Images,
    cache,
    decoding,
    folders,
    image_sets,
    load,
)
from pyro_advbnn.experiments import images as experiment_images
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.training import configuration

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
refusal = partial(refused, load)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def labelled(labels, classes=None):
    """Images whose only pixel is their index."""
    labels = torch.as_tensor(labels)
    names = tuple(str(i) for i in range(classes or int(labels.max()) + 1))
    return Images(torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1), labels, names)


def test_balanced_subset_takes_equally_many_of_each_class_in_stored_order():
    images = labelled(torch.arange(100) % 4)
    subset = datasets.balanced_subset(images, 42, seed=3)
    counts = subset.labels.bincount()
    assert len(subset) == 42 and counts.max() - counts.min() == 1
    index = subset.images.flatten().int()
    assert (index.diff() > 0).all()
    assert torch.equal(images.labels[index], subset.labels)


def test_balanced_subset_fills_up_from_the_larger_classes_when_one_is_too_small():
    subset = datasets.balanced_subset(labelled([0] * 3 + [1] * 50 + [2] * 50), 43, seed=0)
    assert subset.labels.bincount().tolist() == [3, 20, 20]


def test_balanced_subset_depends_on_the_seed_and_on_nothing_else():
    images = labelled(torch.arange(200) % 5)
    first, again, other = (datasets.balanced_subset(images, 20, seed).images for seed in (7, 7, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_smaller_subset_is_part_of_a_larger_one():
    images = labelled(torch.arange(200) % 5)
    small, large = (set(datasets.balanced_subset(images, num, 1).images.flatten().tolist()) for num in (30, 70))
    assert small < large


def test_the_seed_means_the_same_images_in_every_version():
    assert datasets.balanced_subset(labelled(torch.arange(60) % 3), 6, 0).images.flatten().tolist() == [
        26, 28, 30, 33, 34, 35]


def test_hold_out_is_a_class_balanced_partition():
    images = labelled(torch.arange(120) % 6)
    rest, held_out = datasets.hold_out(images, 30, seed=5)
    assert held_out.labels.bincount().tolist() == [5] * 6
    assert not torch.equal(held_out.images, datasets.hold_out(images, 30, seed=6)[1].images)
    together = torch.cat([rest.images, held_out.images]).flatten()
    assert torch.equal(together.sort().values, images.images.flatten())
    assert (rest.images.flatten().int().diff() > 0).all()


HAM10000 = [327, 514, 1099, 115, 6705, 1113, 142]


@pytest.mark.parametrize(("counts", "num"), [
    ([150, 50], 100), (HAM10000, 1000), ([1, 2, 97], 50), ([200] + 50 * [4], 20), ([120, 80] + 50 * [4], 260)])
def test_every_class_gives_the_same_share_to_what_is_held_out_and_keeps_an_image_to_train_on(counts, num):
    images = labelled(torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)))
    rest, held_out = datasets.hold_out(images, num, seed=1)
    measured = datasets.stratified_subset(images, num, seed=1)
    for part in (held_out, measured):
        shares = part.labels.bincount(minlength=len(counts)) - num * torch.tensor(counts) / sum(counts)
        assert len(part) == num and shares.abs().max() < 1
    assert rest.labels.bincount(minlength=len(counts)).min() >= 1


def test_the_single_images_of_classes_which_all_stay_leave_the_others_equal_shares():
    _, held_out = datasets.hold_out(labelled([0] * 200 + [1] * 20 + list(range(2, 102))), 110, seed=1)
    assert held_out.labels.bincount().tolist() == [100, 10]


def test_of_classes_of_equal_size_a_stratified_part_is_the_balanced_one():
    images = labelled(torch.arange(200) % 5)
    for num in (7, 50, 200):
        balanced, stratified = (draw(images, num, 3) for draw in (datasets.balanced_subset, datasets.stratified_subset))
        assert torch.equal(balanced.images, stratified.images)


def test_hold_out_of_nothing_leaves_the_images_as_they_are():
    images = labelled([0, 1])
    assert datasets.hold_out(images, 0, seed=0) == (images, None)


@pytest.mark.parametrize("draw, num, numbers", [
    (datasets.balanced_subset, 0, "1 to 4"), (datasets.balanced_subset, -1, "1 to 4"), (datasets.balanced_subset, 5, "1 to 4"),
    (datasets.hold_out, -1, "0 to 2"), (datasets.hold_out, 3, "0 to 2"), (datasets.hold_out, True, "0 to 2"),
    (datasets.balanced_subset, 2.5, "1 to 4")])
def test_an_impossible_number_of_images_is_refused(draw, num, numbers):
    assert f"num must be a whole number from {numbers}, got" in refused(draw, labelled([0, 1, 0, 1]), num, seed=0)


def test_batches_of_no_image_or_of_an_unknown_augmentation_are_refused():
    assert "batch_size must be at least 1, got 0" in refused(datasets.batches, labelled([0, 1]), 0)
    assert "augmentation must be one of" in refused(datasets.batches, labelled([0, 1]), 2, augmentation="flip")


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_images_are_taken_by_a_mask_and_not_by_what_is_neither_mask_nor_index(kind):
    for images in (labelled([0, 1, 2, 1]), labelled([0, 1, 2, 1]).view(range(4))):
        part = images.take(kind([False, True, False, True]))
        assert part.labels.tolist() == [1, 1] and torch.equal(part.images, images.images[[1, 3]])
        for wrong in (kind([True, False]), kind([0.0, 1.0]), kind([[0, 1]]), 2):
            with pytest.raises(InputError, match=r"integers \(M,\), or a bool for each of 4 images"):
                images.view(wrong)


def test_images_are_taken_by_index_and_keep_their_names():
    images = labelled([0, 1, 2]).to("cpu").take([2, 0])
    assert images.images.flatten().tolist() == [2, 0] and images.labels.tolist() == [2, 0]
    assert images.num_classes == 3 and len(images) == 2


def test_every_crop_flip_is_a_crop_of_the_padded_image_or_its_mirror_image():
    x = torch.from_numpy(pixels(40, size=6).transpose(0, 3, 1, 2).copy())
    out = datasets.augment(x, "crop_flip", generator(1))
    assert out.shape == x.shape and out.dtype == torch.uint8
    seen = set()
    for image, result in zip(x, out, strict=True):
        padded = F.pad(image, (4, 4, 4, 4))
        crops = {(top, left, flip): padded[:, top:top + 6, left:left + 6].flip(2) if flip
                 else padded[:, top:top + 6, left:left + 6]
                 for top in range(9) for left in range(9) for flip in (False, True)}
        matches = [key for key, crop in crops.items() if torch.equal(crop, result)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 25  # every image has its own parameters
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(9))


@pytest.mark.parametrize("kind", ["crop_flip", "resized_crop"])
def test_half_of_the_images_are_flipped(kind):
    ramp = torch.arange(1.0, 17.0).div(20).expand(2000, 1, 16, 16)  # rises from left to right
    middle = datasets.augment(ramp, kind, generator(0))[:, 0, 8, 4:12]
    rate = (middle[:, 4] < middle[:, 3]).float().mean()
    assert 0.46 < rate < 0.54  # 3.5 standard deviations


def test_resized_crop_equals_torchvision_for_the_same_parameters():
    x = torch.rand(30, 3, 64, 64, generator=generator(5))
    out = datasets.augment(x, "resized_crop", generator(9))
    area, place_x, place_y, flip = torch.rand(4, 30, generator=generator(9))
    for i in range(30):
        side = round(64 * float(0.8 + 0.1 * area[i]) ** 0.5)
        assert 57 <= side <= 61
        left, top = int(place_x[i] * (65 - side)), int(place_y[i] * (65 - side))
        expected = torchvision_crop(x[i], top, left, side, side, [64, 64], InterpolationMode.BILINEAR)
        expected = hflip(expected) if flip[i] < 0.5 else expected
        torch.testing.assert_close(out[i], expected, atol=1e-4, rtol=0)


def test_resized_crop_brings_bytes_to_the_unit_range_and_keeps_a_constant_image():
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 16, 16)
    out = datasets.augment(x, "resized_crop", generator())
    assert out.dtype == torch.float32 and out.min() >= 0 and out.max() <= 1
    torch.testing.assert_close(out, torch.tensor([0, 0.2, 1]).view(3, 1, 1, 1).expand(3, 3, 16, 16))


def test_resized_crop_refuses_images_that_are_not_square():
    with pytest.raises(InputError, match="needs square images, got 9x8"):
        datasets.augment(torch.zeros(1, 3, 8, 9), "resized_crop")


@pytest.mark.parametrize("kind", ["crop_flip", "resized_crop"])
def test_augmentation_is_decided_by_the_state_of_its_generator(kind):
    x, own = torch.rand(4, 3, 16, 16, generator=generator()), generator(1)
    before = torch.get_rng_state()
    first, second = datasets.augment(x, kind, own), datasets.augment(x, kind, own)
    assert torch.equal(first, datasets.augment(x, kind, generator(1))) and not torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_no_augmentation_is_the_identity_and_an_unknown_one_is_refused():
    x = torch.rand(2, 1, 4, 4)
    assert datasets.augment(x, "none") is x
    with pytest.raises(InputError, match="augmentation must be one of none, crop_flip, resized_crop, got 'flip'"):
        datasets.augment(x, "flip")


def test_every_data_set_has_a_default_augmentation():
    assert set(DEFAULT_AUGMENTATION) == set(DATASETS) and set(DEFAULT_AUGMENTATION.values()) == set(AUGMENTATIONS)


def test_one_pass_holds_every_image_once_and_the_next_pass_in_another_order():
    loader = datasets.batches(labelled(torch.arange(100) % 3), 32, shuffle_with=generator())
    first, second = ([batch for batch in loader] for _ in range(2))
    assert [len(y) for _, y in first] == [32, 32, 32, 4] and len(loader) == 4
    assert len(datasets.batches(loader.images, 25)) == 4
    orders = [torch.cat([x for x, _ in one]).flatten().mul(255).round().int() for one in (first, second)]
    assert not torch.equal(*orders)
    for order, one in zip(orders, (first, second), strict=True):
        assert torch.equal(order.sort().values, torch.arange(100, dtype=torch.int32))
        assert torch.equal(torch.cat([y for _, y in one]), order.long() % 3)


def test_batches_without_shuffling_are_the_stored_images_in_the_unit_range():
    images = labelled(list(range(256)))
    x = torch.cat([x for x, _ in datasets.batches(images, 100)])
    assert x.dtype == torch.float32 and x.shape == (256, 1, 1, 1)
    torch.testing.assert_close(x.flatten(), torch.linspace(0, 1, 256))
    assert torch.equal(torch.cat([y for _, y in datasets.batches(images, 100)]), images.labels)


def test_batches_are_augmented_from_their_own_generator():
    images = datasets.Images(torch.from_numpy(pixels(6).transpose(0, 3, 1, 2).copy()), torch.zeros(6).long(), ("a",))
    (x, _), = datasets.batches(images, 6, augmentation="crop_flip", augment_with=generator(2))
    torch.testing.assert_close(x, datasets.augment(images.images, "crop_flip", generator(2)) / 255)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", list(AUGMENTATIONS))
def test_batches_on_the_gpu_stay_there_and_hold_every_image_once(kind):
    constant = torch.arange(50, dtype=torch.uint8).view(-1, 1, 1, 1).expand(50, 3, 16, 16)
    images = Images(constant, torch.arange(50), ("a",) * 50)
    own = torch.Generator("cuda").manual_seed(0)
    loader = datasets.batches(
        images.to("cuda"), 20, shuffle_with=generator(), augmentation=kind, augment_with=own)
    batches = list(loader)
    assert all(x.is_cuda and y.is_cuda and x.dtype == torch.float32 for x, y in batches)
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    assert torch.equal(y.sort().values.cpu(), torch.arange(50))
    torch.testing.assert_close(x[:, 0, 8, 8] * 255, y.float())


@pytest.mark.parametrize("args, options, message", [
    (("mnist", "train"), {}, "dataset must be one of digits, cifar10, stl10, imagenet143, folder, npz, got 'mnist'"),
    (("digits", "val"), {}, "split must be one of train, test, got 'val'"),
    (("folder", "train", "x"), {"loading": "disk"}, "loading must be one of auto, memory, stream, got 'disk'"),
    (("digits", "train"), {"image_size": 8}, "--image_size is only for dataset folder, not for digits"),
    (("digits", "train", "x"), {}, "--data_dir means nothing for dataset digits"),
    (("folder", "train"), {}, "dataset folder needs --data_dir, the folder that holds train/<class>/ and test/<class>/"),
    (("npz", "train"), {}, "dataset npz needs --data_dir, the file that holds x_train, y_train, x_test and y_test"),
    (("imagenet143", "train"), {}, "dataset imagenet143 needs --data_dir, the folder that holds train/<wnid>/ and val/<wnid>/; "
     "docs/data.md tells how to make them from ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"),
])
def test_wrong_arguments_of_load_are_refused(args, options, message):
    assert message in refusal(*args, **options)


def test_digits_are_split_without_overlap_and_the_test_split_is_balanced():
    train, test = load("digits", "train"), load("digits", "test")
    assert train.images.shape == (1437, 1, 8, 8) and test.images.shape == (360, 1, 8, 8)
    assert train.images.dtype == torch.uint8 and train.labels.dtype == torch.int64
    assert test.labels.bincount().tolist() == [36] * 10
    together = torch.cat([torch.cat([part.images.flatten(1), part.labels[:, None]], dim=1) for part in (train, test)])
    digits = load_digits()
    original = np.column_stack([np.round(digits.data * 255 / 16), digits.target])
    assert sorted(together.tolist()) == sorted(original.tolist())
    assert train.images.max() == 255 and train.class_names == tuple("0123456789")
    assert hashlib.md5(test.images.numpy().tobytes()).hexdigest() == "2413c53d551dc0970e4b71559fa1e219"


@pytest.fixture
def cifar10_dir(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    return tmp_path


def test_cifar10_batches_are_joined_in_order_and_stay_images(cifar10_dir):
    train, test = load("cifar10", "train", cifar10_dir), load("cifar10", "test", str(cifar10_dir))
    expected = torch.from_numpy(pixels(24, size=32)).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat([train.images, test.images]), expected)
    assert train.labels[::4].tolist() == [0, 1, 2, 3, 4] and test.labels.tolist() == [5, 1, 2, 9]
    assert train.class_names[5] == "dog" and train.num_classes == 10


def test_a_cifar10_split_reads_its_own_files_only(cifar10_dir):
    folder = cifar10_dir / CIFAR10.base_folder
    (folder / "test_batch").rename(folder / "elsewhere")
    assert len(load("cifar10", "train", cifar10_dir)) == 20
    assert refusal("cifar10", "test", cifar10_dir) == f"{folder / 'test_batch'} cannot be read: No such file or directory"


@pytest.mark.filterwarnings("error")
def test_the_published_cifar10_files_are_read_as_torchvision_reads_them(tmp_path):
    if not (SHARED / "unpack.py").exists():
        pytest.skip(f"there is no {SHARED}")
    spec = importlib.util.spec_from_file_location("unpack", SHARED / "unpack.py")
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    unpack.cifar10(tmp_path)
    ours = load("cifar10", "test", tmp_path)
    with np.load(SHARED / "fixture_small.npz") as fixture:
        train = fixture["cifar10_train_images"], fixture["cifar10_train_labels"]
    assert np.array_equal(load("cifar10", "train", tmp_path).images[:200].permute(0, 2, 3, 1), train[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's own unpickling warns under NumPy 2.4
        theirs = CIFAR10(tmp_path, train=False)
    assert np.array_equal(ours.images.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert ours.labels.tolist() == theirs.targets and list(ours.class_names) == theirs.classes


@pytest.mark.parametrize("name, url", [("cifar10", "cifar-10-python.tar.gz"), ("stl10", "stl10_binary.tar.gz")])
def test_a_named_folder_without_the_data_set_is_refused_and_nothing_is_downloaded(tmp_path, monkeypatch, name, url):
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", lambda *a, **k: pytest.fail("downloaded"))
    for folder in (tmp_path, tmp_path / "absent"):
        message = refusal(name, "train", folder)
        assert url in message and str(folder) in message and "--data_dir" in message


@pytest.mark.parametrize("error", [
    urllib.error.URLError("no route"), RuntimeError("File not found\nor corrupted."), http.client.IncompleteRead(b"")])
def test_a_failed_download_says_where_to_get_the_data_set(tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fail)
    message = refusal("cifar10", "train")
    assert "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz" in message and "the download failed" in message


def test_a_data_set_is_downloaded_to_the_default_folder_unless_it_is_there(
        cifar10_dir, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("working")
    monkeypatch.chdir(elsewhere)
    calls = []

    def download(url, root, **kwargs):
        calls.append((url, root))
        (elsewhere / "data").symlink_to(cifar10_dir)

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", download)
    assert len(load("cifar10", "test")) == len(load("cifar10", "test")) == 4
    assert calls == [(CIFAR10.url, Path("data"))]


@pytest.mark.parametrize("split", SPLITS)
def test_stl10_is_the_same_from_the_published_files_and_from_an_npz(tmp_path, split):
    images, labels = pixels(3, size=96), np.array([0, 9, 4])
    write_npz(tmp_path / "stl10.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    from_npz = load("stl10", split, tmp_path)
    (tmp_path / "stl10.npz").unlink()
    write_stl10(tmp_path)
    from_binary = load("stl10", split, tmp_path)
    assert torch.equal(from_npz.images, from_binary.images) and torch.equal(from_npz.labels, from_binary.labels)
    assert np.array_equal(from_binary.images.permute(0, 2, 3, 1), images)
    assert from_binary.labels.tolist() == [0, 9, 4]
    assert from_binary.class_names == (
        "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def test_a_wrong_stl10_label_is_refused_in_the_numbers_of_the_file(tmp_path):
    write_stl10(tmp_path, labels=(2, 11, 6))
    assert "labels must be from 1 to 10, got 12 for image 1" in refusal("stl10", "train", tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_npz_is_read_by_split_and_its_classes_are_those_of_train(tmp_path, channels):
    train, test = (pixels(num, channels=channels) for num in (5, 2))
    path = write_npz(tmp_path / "mine.npz", x_train=train, y_train=np.array([0, 1, 2, 3, 1]), x_test=test)
    images = load("npz", "test", path)
    assert images.images.shape == (2, channels, 8, 8) and images.class_names == ("0", "1", "2", "3")
    assert np.array_equal(images.images.permute(0, 2, 3, 1), test) and images.labels.tolist() == [1, 0]
    assert len(load("npz", "train", str(path))) == 5


@pytest.mark.parametrize("split, changes, message", [
    ("train", {"x_train": None}, "lacks x_train; it holds y_train, x_test, y_test"),
    ("test", {"y_train": None}, "lacks y_train"),
    ("test", {"x_test": None, "y_test": None}, "lacks x_test, y_test"),
    ("train", {"x_train": pixels(4).astype(np.float32)},
     "x_train must be uint8 of shape (N, H, W, C) with C 1 or 3, got float32 (4, 8, 8, 3)"),
    ("train", {"x_train": pixels(4).transpose(0, 3, 1, 2)}, "got uint8 (4, 3, 8, 8)"),
    ("train", {"x_train": pixels(0), "y_train": np.array([], dtype=int)}, "y_train: there are no labels in it"),
    ("train", {"x_train": pixels(4)[:, :0]}, "got uint8 (4, 0, 8, 3)"),
    ("train", {"x_train": np.uint8(3)}, "x_train must be uint8 of shape (N, H, W, C) with C 1 or 3, got uint8 ()"),
    ("train", {"y_train": np.array([0.0, 1, 2, 1])}, "labels must be integers of shape (N,), got float64"),
    ("train", {"y_train": np.array([[0, 1, 2, 1]])}, "got int64 (1, 4)"),
    ("train", {"y_train": np.array([0, 1, 2])}, "expected one label for each of 4 images, got 3 labels"),
    ("train", {"y_train": np.array([0, -1, 2, 0])}, "got -1 for image 1"),
    ("train", {"y_train": np.array([0, 1, 2, 10**5])}, "labels must be from 0 to 99999, got 100000 for image 3"),
    ("train", {"y_train": np.array([1, 2, 3, 2])}, "y_train: classes count from 0, but the smallest label is 1"),
    ("train", {"y_train": np.array([0, 1, 2, None], dtype=object)}, "cannot be read"),
    ("test", {"y_test": np.array([0, 3])}, "y_test: labels must be from 0 to 2, got 3 for image 1"),
])
def test_a_wrong_npz_is_refused_and_the_array_is_named(tmp_path, split, changes, message):
    path = write_npz(tmp_path / "mine.npz", **changes)
    told = refusal("npz", split, path)
    assert told.startswith(str(path)) and message in told


def test_an_npz_that_is_missing_or_a_folder_or_a_single_array_is_refused(tmp_path):
    path, array = tmp_path / "absent.npz", tmp_path / "mine.npy"
    np.save(array, pixels(4))
    assert refusal("npz", "train", path) == f"{path}: no such file"
    for other in (tmp_path, array):
        assert refusal("npz", "train", other) == f"{other}: not an npz file, or a truncated one"


def test_who_has_no_test_images_may_train_all_the_same(tmp_path):
    path = write_npz(tmp_path / "mine.npz", x_test=None, y_test=None)
    assert len(load("npz", "train", path)) == 4


def test_images_that_train_nothing_may_have_labels_from_1(tmp_path):
    path = write_npz(tmp_path / "mine.npz", y_train=np.array([1, 2, 3, 2]), y_test=np.array([1, 3]))
    assert load("npz", "test", path).num_classes == 4


def test_where_there_are_test_images_those_for_validation_are_no_test_images(tmp_path):
    write_folder(tmp_path, {f"{split}/{name}": count for split, count in (("train", 2), ("val", 3), ("test", 5))
                            for name in ("cat", "dog")})
    assert len(load("folder", "test", tmp_path)) == 10


@pytest.mark.parametrize("test_name", ["val", "test"])
def test_a_folder_is_read_class_by_class_in_sorted_order(tmp_path, test_name):
    write_folder(tmp_path, {"train/dog": 2, "train/cat": 1, f"{test_name}/cat": 1, f"{test_name}/dog": 3})
    (tmp_path / "train/cat/.hidden").write_text("x")
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/notes.txt").write_text("x")
    train, test = load("folder", "train", tmp_path), load("folder", "test", tmp_path)
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.labels.tolist() == [0, 1, 1] and test.labels.tolist() == [0, 1, 1, 1]
    for image, name in zip(train.images, ["cat/0", "dog/0", "dog/1"], strict=True):
        assert np.array_equal(image.permute(1, 2, 0), np.asarray(Image.open(tmp_path / f"train/{name}.png")))


def test_reading_the_test_split_opens_no_train_image(tmp_path):
    write_folder(tmp_path, {"train/a": 1, "val/a": 1})
    (tmp_path / "train/a/0.png").write_text("broken")
    assert len(load("folder", "test", tmp_path)) == 1


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_images_of_every_mode_become_rgb(tmp_path, mode):
    (tmp_path / "train/a").mkdir(parents=True)
    grey = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    grey.save(tmp_path / "train/a" / ("0.jpg" if mode == "CMYK" else "0.png"))
    assert load("folder", "train", tmp_path).images.tolist() == [[[[255] * 4] * 4] * 3]


def test_an_image_of_sixteen_bits_is_refused_instead_of_clipped(tmp_path):
    (tmp_path / "train/a").mkdir(parents=True)
    Image.fromarray(np.full((4, 4), 30000, dtype=np.uint16)).save(tmp_path / "train/a/0.png")
    assert "has more than 8 bits per channel" in refusal("folder", "train", tmp_path)


def test_postscript_is_not_even_tried_because_pillow_would_run_it(tmp_path):
    (tmp_path / "train/a").mkdir(parents=True)
    (tmp_path / "train/a/0.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n")
    assert "cannot identify image file" in refusal("folder", "train", tmp_path)


@pytest.mark.parametrize("size", [(50, 50), (121, 67), (30, 211), (7, 5), (3, 1000)])
@pytest.mark.parametrize("image_size", [1, 16, 30])
def test_image_size_scales_the_shorter_side_and_cuts_out_the_centre(tmp_path, size, image_size):
    write_folder(tmp_path, {"train/a": 1}, size)
    image = load("folder", "train", tmp_path, image_size=image_size).images[0]
    original = Image.open(tmp_path / "train/a/0.png")
    expected = np.asarray(center_crop(resize(original, image_size, InterpolationMode.BICUBIC), image_size)).astype(int)
    assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_images_of_different_sizes_are_refused_with_the_first_two_that_differ(tmp_path):
    write_folder(tmp_path, {"train/a": 2})
    write_folder(tmp_path, {"train/b": 2}, size=(9, 7))
    message = refusal("folder", "train", tmp_path)
    first, other = tmp_path / "train/a/0.png", tmp_path / "train/b/0.png"
    assert message.startswith(f"{first} is 8x8 but {other} is 9x7") and "--image_size" in message
    assert load("folder", "train", tmp_path, image_size=5).images.shape == (4, 3, 5, 5)


@pytest.mark.parametrize("layout, split, message", [
    ({"val/a": 1}, "train", "{root}: there is no train/ in it"),
    ({"train/a": 1}, "test", "{root}: there is no test/ or val/ in it"),
    ({"train": 1}, "train", "{root}/train: there are no class folders in it"),
    ({"train/a": 1, "train/b": 0}, "train", "{root}/train/b: there are no images in this class folder"),
    ({"train/a": 1, "val/a": 1, "train/b": 1}, "test",
     "{root}/val: there is no class folder 'b', but {root}/train has one"),
    ({"train/a": 1, "val/a": 1, "val/b": 1}, "test",
     "{root}/train: there is no class folder 'b', but {root}/val has one"),
    ({"train/a": 1, "train/a/b": 1}, "train", "{root}/train/a/b: not a readable image"),
])
def test_a_wrong_folder_layout_is_refused_and_the_place_is_named(tmp_path, layout, split, message):
    write_folder(tmp_path, layout)
    assert message.format(root=tmp_path) in refusal("folder", split, tmp_path)


@pytest.fixture
def imagenet_dir(tmp_path):
    """One image in each of the 143 classes, 80x70 in train and 70x90 in val, and a class that is no dog or cat."""
    for split, size in (("train", (80, 70)), ("val", (70, 90))):
        write_folder(tmp_path, {f"{split}/{wnid}": 1 for wnid in folders._imagenet143_wnids()}, size)
        write_folder(tmp_path, {f"{split}/n01440764": 1})
    return tmp_path


def test_the_list_of_wnids_is_the_143_dog_and_cat_classes():
    wnids = folders._imagenet143_wnids()
    assert len(set(wnids)) == 143 and list(wnids) == sorted(wnids)
    assert (wnids[0], wnids[-1]) == ("n02085620", "n02130308")
    if not (SHARED / "imagenet143_one_per_class_64.npz").exists():
        pytest.skip(f"there is no {SHARED}")
    with np.load(SHARED / "imagenet143_one_per_class_64.npz") as shared:
        assert list(wnids) == shared["wnids"].tolist()


def test_imagenet143_picks_its_classes_and_scales_them(imagenet_dir):
    images = load("imagenet143", "test", imagenet_dir)
    assert images.images.shape == (143, 3, 64, 64) and images.labels.tolist() == list(range(143))
    original = Image.open(imagenet_dir / "val" / images.class_names[77] / "0.png")
    expected = np.asarray(center_crop(resize(original, 64, InterpolationMode.BICUBIC), 64)).astype(int)
    assert np.abs(images.images[77].permute(1, 2, 0).numpy() - expected).max() <= 1


def test_missing_imagenet_classes_are_listed(imagenet_dir):
    absent, wnids = imagenet_dir / "absent", folders._imagenet143_wnids()
    assert refusal("imagenet143", "train", absent).startswith(f"there is no folder {absent}; --data_dir must hold train/")
    for wnid in wnids[3:15]:
        (imagenet_dir / "train" / wnid).rename(imagenet_dir / f"gone-{wnid}")
    message = refusal("imagenet143", "train", imagenet_dir)
    assert "lacks 12 of the 143" in message and message.endswith(f"{', '.join(wnids[3:13])} and 2 more")


def test_the_cache_serves_the_second_load_and_is_rebuilt_after_a_change(imagenet_dir, monkeypatch):
    first = load("imagenet143", "train", imagenet_dir)
    assert (imagenet_dir / "imagenet143-64-train.npy").is_file() and not list(imagenet_dir.glob(".*"))
    with monkeypatch.context() as patch:
        patch.setattr(cache, "decode_to", lambda *args: pytest.fail("decoded again"))
        second = load("imagenet143", "train", imagenet_dir)
    assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)
    path = imagenet_dir / "train" / first.class_names[5] / "0.png"
    Image.new("RGB", (64, 64), (9, 9, 9)).save(path)
    third = load("imagenet143", "train", imagenet_dir)
    assert (third.images[5] == 9).all() and torch.equal(third.images[6], first.images[6])
    path.with_name("1.png").write_bytes(path.read_bytes())
    assert len(load("imagenet143", "train", imagenet_dir)) == 144


def times_decoded(folder):
    decoded = []
    cache.decode_to = lambda store, paths, *how: (decoded.append(len(paths)), decoding.decode_to(store, paths, *how))
    configuration.configure({"dataset": "imagenet143", "data_dir": folder, "defense": "none"})
    return decoded


def test_one_of_several_processes_makes_the_cache(imagenet_dir):
    assert group(times_decoded, imagenet_dir) == [[143], []]


def mapped_bytes(path):
    """What of the file is in this process's memory, and what of that it has written to, in bytes."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    next(line for line in lines if line.endswith(str(path)))
    fields = dict(line.split(":") for line, _ in zip(lines, range(12)))
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("Size", "Private_Dirty"))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's list of mapped files")
def test_parts_of_the_cache_stay_in_the_mapped_file(imagenet_dir):
    load("imagenet143", "train", imagenet_dir)
    images = load("imagenet143", "train", imagenet_dir)
    subset = datasets.balanced_subset(images, 100, 0)
    cache = imagenet_dir / "imagenet143-64-train.npy"
    assert all(part.to("cpu").stored is images.stored for part in (subset, subset.view(range(20))))
    x, y = next(iter(datasets.batches(subset, 10)))
    assert x.shape == (10, 3, 64, 64) and torch.equal((x * 255).round().byte(), images.images[y])
    size, written = mapped_bytes(cache)
    assert size >= 143 * 3 * 64 * 64 and written == 0


def test_a_damaged_cache_is_rebuilt(imagenet_dir):
    first = load("imagenet143", "train", imagenet_dir).in_memory()
    cache = imagenet_dir / "imagenet143-64-train.npy"
    whole = cache.read_bytes()
    for damaged in (b"", whole[:1000], whole[:-1], b"\xff" + whole[1:], whole[:80] + b"9" + whole[81:],
                    whole[:60] + b"\xff" * 40 + whole[100:]):
        cache.write_bytes(damaged)
        assert torch.equal(load("imagenet143", "train", imagenet_dir).images, first.images)
        assert cache.read_bytes() == whole


@pytest.mark.parametrize("function", ["replace", "pwrite", "posix_fallocate"])
def test_a_folder_that_cannot_be_written_is_read_into_memory_as_a_cache_would_hold_it(imagenet_dir, monkeypatch, function):
    def refuse(*args):
        raise PermissionError("read-only")

    mapped = load("imagenet143", "test", imagenet_dir)
    stored = np.load(imagenet_dir / "imagenet143-64-test.npy")
    (imagenet_dir / "imagenet143-64-test.npy").unlink()
    monkeypatch.setattr(os, function, refuse)
    images = load("imagenet143", "test", imagenet_dir)
    assert isinstance(mapped, image_sets.ImageView) and isinstance(images, Images) and len(images) == 143
    assert torch.equal(images.images, mapped.images) and np.array_equal(stored, images.images)
    assert not list(imagenet_dir.glob("*.np*")) and not list(imagenet_dir.glob(".*"))


def test_a_broken_imagenet_image_is_named_and_nothing_is_cached(imagenet_dir):
    path = imagenet_dir / "train" / "n02130308" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    assert refusal("imagenet143", "train", imagenet_dir).startswith(f"{path}: not a readable image")
    assert not list(imagenet_dir.glob("*.np*")) and not list(imagenet_dir.glob(".*"))


def test_views_are_the_same_images_as_copies():
    images = labelled(torch.arange(50) % 3)
    order = torch.randperm(50, generator=generator())[:20]
    view, copy = images.view(order), images.take(order)
    assert view.stored is images.images
    for part, whole in ((view, copy), (view.take([3, 1]), copy.take([3, 1])), (view.view([2]), copy.view([2]))):
        assert torch.equal(part.images, whole.images) and torch.equal(part.labels, whole.labels)
    for (x, y), (x_copy, y_copy) in zip(datasets.batches(view, 7), datasets.batches(copy, 7)):
        assert torch.equal(x, x_copy) and torch.equal(y, y_copy)
    assert (view.image_shape, view.device, view.num_classes) == (copy.image_shape, copy.device, copy.num_classes)


def test_a_view_moves_to_another_device_part_by_part(monkeypatch):
    monkeypatch.setattr(image_sets, "ROWS_AT_ONCE", 3)
    view = labelled(torch.arange(50) % 3).view([7, 1, 9, 30, 31, 2, 8])
    assert view.to("cpu") is view
    moved = view.to("meta")
    assert isinstance(moved, Images) and moved.images.shape == (7, 1, 1, 1) and moved.labels.device.type == "meta"


@pytest.mark.parametrize("rows_at_once", [3, 1024])
def test_the_hash_of_a_view_is_that_of_its_pixels(monkeypatch, rows_at_once):
    monkeypatch.setattr(image_sets, "ROWS_AT_ONCE", rows_at_once)
    images = labelled(torch.arange(50) % 3)
    hashes = [hashlib.sha256() for _ in range(2)]
    images.take([7, 1, 9, 30]).update_hash(hashes[0])
    images.view([7, 1, 9, 30]).update_hash(hashes[1])
    expected = hashlib.sha256(bytes([7, 1, 9, 30])).hexdigest()
    assert [found.hexdigest() for found in hashes] == [expected] * 2


def test_the_digest_in_rows_is_that_of_pixels_and_labels():
    images = labelled(torch.arange(50) % 3)
    state = {"images": images.images, "labels": images.labels, "_extra_state": {"version": 1}}       # the last is no tensor
    expected = experiment_images.digest(state)
    assert experiment_images.image_digest(images) == experiment_images.image_digest(images.view(range(50))) == expected


@pytest.mark.parametrize(("most", "told"), [(1, True), (0, False), (2, False)])
def test_floats_that_were_cast_to_bytes_are_told(most, told):
    x = np.zeros((4, 8, 8, 1), np.uint8)
    x[0, 0, 0, 0] = most
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        datasets.from_arrays(x, [0, 1, 0, 1])
    assert ["x reaches from 0 to 1 of 255" in str(note.message) for note in notes] == [True] * told
