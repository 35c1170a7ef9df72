"""Tests of foreign images: of the shape and number of the run's, chosen by the seed alone."""
import numpy as np
import pytest
import torch

from pyro_advbnn.datasets import Images
from pyro_advbnn.evaluation import ood_images
from pyro_advbnn.system.errors import InputError


@pytest.fixture
def like():
    images = torch.arange(6 * 3 * 4 * 4, dtype=torch.int64).remainder(256).to(torch.uint8).view(6, 3, 4, 4)
    return Images(images, torch.arange(6) % 2, ("a", "b"))


def npz(path, images):
    labels = np.arange(len(images)) % 2
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return path


def test_noise_has_every_brightness_and_is_the_seeds(like):
    found = ood_images.foreign_images("noise", like, 0)
    assert found.images.shape == like.images.shape and found.images.dtype == torch.uint8
    many = Images(like.images.repeat(50, 1, 1, 1), like.labels.repeat(50), like.class_names)
    assert len(ood_images.foreign_images("noise", many, 0).images.unique()) == 256
    assert torch.equal(found.images, ood_images.foreign_images("noise", like, 0).images)
    assert not torch.equal(found.images, ood_images.foreign_images("noise", like, 1).images)


def test_permuted_images_keep_their_colours_in_one_other_order(like):
    found = ood_images.foreign_images("permuted", like, 0)
    assert not torch.equal(found.images, like.images) and found.labels.tolist() == [0] * 6
    pixels, before = found.images.flatten(2), like.images.flatten(2)
    order = [(before[0, 0] == value).nonzero().item() for value in pixels[0, 0]]
    assert sorted(order) == list(range(16)) and torch.equal(pixels, before[:, :, order])
    assert not torch.equal(found.images, ood_images.foreign_images("permuted", like, 1).images)


def test_another_data_set_takes_the_size_and_the_colours(like, tmp_path):
    grey = npz(tmp_path / "grey.npz", np.full((4, 8, 8, 1), 77, np.uint8))
    found = ood_images.foreign_images("npz", like, 0, grey)
    assert found.images.shape == (4, 3, 4, 4) and (found.images == 77).all()
    colours = npz(tmp_path / "colours.npz", np.full((9, 2, 2, 3), (250, 101, 50), np.uint8))
    found = ood_images.foreign_images("npz", Images(like.images[:, :1], like.labels, ("a", "b")), 0, colours)
    assert found.images.shape == (6, 1, 4, 4) and found.images.unique().tolist() == [140]       # 139.74, rounded
    assert len(ood_images.foreign_images("digits", like, 0, colours)) == 6           # the folder is the other data set's


@pytest.mark.parametrize(("names", "data_dir", "message"), [
    (["cifar10"], None, "is the data set of the run itself"), (["noise"], "x", "exactly one"),
    (["stl10", "npz"], "x", "exactly one"), (["digits"], "x", "exactly one"),
])
def test_what_makes_no_sense_is_refused(names, data_dir, message):
    with pytest.raises(InputError, match=message):
        ood_images.check(names, "cifar10", data_dir)
    ood_images.check(["noise", "digits", "stl10"], "cifar10", "x")
    ood_images.check(["npz"], "npz", "other.npz")
    with pytest.raises(InputError, match="of the run itself; --ood_dir names another"):
        ood_images.check(["npz"], "npz", None)


def test_a_data_set_that_is_not_there_is_asked_for_by_the_flag_that_names_it(like, tmp_path):
    with pytest.raises(InputError, match="--ood_dir"):
        ood_images.foreign_images("stl10", like, 0, tmp_path)
