"""Tests of examples: what a row says of an image is what the classifier says, and the pictures are the images."""
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.datasets import Images
from pyro_advbnn.evaluation import examples
from pyro_advbnn.reporting.csv_tables import TABLES


class Alternating(nn.Module):
    """Of two classes: the answer of every second call, counted from the first, is the other one."""

    def __init__(self, *logits):
        super().__init__()
        self.logits, self.calls = [torch.tensor(values) for values in logits], 0

    def forward(self, x):
        self.calls += 1
        return self.logits[(self.calls - 1) % len(self.logits)].expand(len(x), 2) + 0 * x.sum()


def images(channels=1, number=2):
    torch.manual_seed(0)
    return Images(torch.randint(256, (number, channels, 4, 4), dtype=torch.uint8), torch.tensor([0, 1] * (number // 2)),
                  ("cat", "dog"))


def test_probability_spread_and_agreement_are_those_over_the_draws(tmp_path):
    logits = [3.0, 0.0], [0.0, 1.0], [3.0, 0.0]
    p = torch.tensor(logits).softmax(-1)[:, 0]
    cat, dog = examples.make(Alternating(*logits), images(), lambda classifier, x, y: x, 3, tmp_path, "run")
    assert (cat["label"], cat["clean_prediction"], dog["label"], dog["clean_prediction"]) == ("cat", "cat", "dog", "cat")
    assert cat["clean_probability"] == pytest.approx(p.mean().item()) == pytest.approx(1 - dog["clean_probability"])
    assert cat["clean_probability_std"] == pytest.approx(p.std(correction=0).item())
    assert cat["clean_agreement"] == pytest.approx(2 / 3) == cat["adversarial_agreement"] == dog["clean_agreement"]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_pictures_are_the_image_ten_times_the_change_and_the_sum(tmp_path, channels):
    def attack(classifier, x, y):
        return (x + 0.02).clamp(0, 1)

    taken = images(channels)
    rows = examples.make(ab.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16 * channels, 2))), taken, attack, 1,
                         tmp_path, "examples/run")
    for i, row in enumerate(rows):
        clean, change, adversarial = (picture(tmp_path / row[f"{name}_image"])
                                      for name in ("clean", "perturbation", "adversarial"))
        assert np.array_equal(clean, taken.images[i].permute(1, 2, 0).numpy())
        assert np.abs(adversarial - np.minimum(clean + 0.02 * 255, 255)).max() <= 0.5 + 1e-6
        moved = clean < 249
        assert np.abs(change[moved] - (0.5 + 10 * 0.02) * 255).max() <= 1
        assert row["clean_image"] == f"examples/run-{i}-clean.png"


def picture(path):
    with Image.open(path) as image:
        pixels = np.asarray(image, float)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def test_the_settings_are_those_of_the_attack_in_columns_of_the_table():
    settings = examples.settings(ab.PGD(0.1, 0.02, 7, 3))
    assert settings == {"attack": "pgd", "epsilon": 0.1, "num_steps": 7, "step_size": 0.02, "attack_samples": 3}
    assert set(settings) <= set(TABLES["examples"])
