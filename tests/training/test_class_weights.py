import numpy as np
import pytest
import torch
from tiny_runs import build, refusal, run, words

from pyro_advbnn.bayes.classifier import Classifier
from pyro_advbnn.training import loop


def few_of_class_1(folder, per_class=(30, 10, 20)):
    random, labels = np.random.RandomState(0), np.repeat(range(len(per_class)), per_class)
    np.savez(folder / "images.npz", **{f"x_{split}": random.randint(0, 256, (len(labels), 8, 8, 1)).astype(np.uint8)
                                       for split in ("train", "test")}, y_train=labels, y_test=labels)
    return {"dataset": "npz", "data_dir": folder / "images.npz", "validation": 0, "num_train": None}


@pytest.mark.parametrize(("given", "expected"), [
    ("balanced", [2 / 3, 2, 1]),                         # N / (C n_c)
    ([1.0, 4.0, 1.0], [2 / 3, 8 / 3, 2 / 3]), ([5.0, 5.0, 5.0], [1, 1, 1])])
@pytest.mark.parametrize("defense", ["adv", "advbnn"])
def test_class_weights_have_a_mean_of_1_over_the_training_set_and_are_recorded(tmp_path, given, expected, defense):
    config, training, _ = build(**few_of_class_1(tmp_path), class_weights=given, defense=defense)
    assert config["settings"]["class_weights"] == given
    assert config["flags"]["class_weights"] == (given if given == "balanced" else ",".join(map(str, given)))
    assert config["classifier"]["class_weights"] == pytest.approx(expected)
    assert training.classifier.class_weights[training.images.labels].mean().item() == pytest.approx(1)


def test_they_count_the_images_that_are_left_to_train_on(tmp_path):
    flags = few_of_class_1(tmp_path) | {"validation": 12}
    config, training, _ = build(**flags, class_weights="balanced", defense="adv")
    assert len(training.images) == 48
    counts = torch.bincount(training.images.labels)
    assert config["classifier"]["class_weights"] == pytest.approx((48 / (3 * counts)).tolist())


class Constant(torch.nn.Module):
    """Every image is of class 0."""

    def __init__(self, num_classes):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.eye(num_classes)[0])

    def forward(self, x):
        return x.flatten(1).sum(1, keepdim=True) * 0 + self.bias


@pytest.mark.parametrize(("given", "share"), [(None, 1 / 2), ("balanced", 1 / 3), ([1.0, 2.0, 1.0], 30 / 70)])
def test_the_accuracies_of_a_training_are_weighted_too(tmp_path, given, share):
    config, training, _ = build(**few_of_class_1(tmp_path), class_weights=given, defense="adv", epochs=1, batch_size=16)
    classifier = Classifier(Constant(3), class_weights=config["classifier"]["class_weights"])
    measured = loop.accuracies(classifier, training.images, training.settings, seed=0, batch_size=7)
    assert measured == pytest.approx((share, share))
    training.classifier = classifier
    training.optimizer = torch.optim.SGD(classifier.parameters(), 0.0)
    list(training.epoch())
    assert training.averages()["batch_accuracy"] == pytest.approx(share)


@pytest.mark.parametrize(("given", "message"), [
    ("1,2", "--class_weights must be balanced, or 3 numbers, one for each class, got 2"), ("1,0,1", "numbers in (0, 1000000]"),
    ("even", "balanced")])
def test_others_are_refused_before_any_work(tmp_path, capsys, given, message):
    flags = few_of_class_1(tmp_path) | {"class_weights": given, "out": tmp_path / "run"}
    del flags["num_train"]
    assert message in refusal(capsys, *words(flags))
    assert not (tmp_path / "run").exists()


def test_training_images_are_measured_in_the_shares_of_their_classes_with_another_seed_in_each_epoch(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "accuracies", lambda classifier, images, settings, *, seed, **_: (
        seen.append((torch.bincount(images.labels).tolist(), seed)), (0.0, 0.0))[1])
    run(tmp_path / "run", **few_of_class_1(tmp_path) | {"validation": 12}, defense="adv")
    assert seen == [([6, 2, 4], 1), ([6, 2, 4], 1), ([6, 2, 4], 2), ([6, 2, 4], 2)]
