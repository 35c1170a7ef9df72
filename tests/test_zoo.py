"""The trained networks in runs/zoo/: their sizes, their cards, and that they withstand what the cards say."""
import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_advbnn as ab
from pyro_advbnn.experiments.images import digest

ROOT = Path(__file__).resolve().parents[1]
ZOO, FIXTURE = ROOT / "runs" / "zoo", ROOT.parent / "shared" / "data" / "fixture_small.npz"
NAMES = sorted(path.stem for path in ZOO.glob("*.pt"))


def records(name, table):
    """The rows of `table` about the run that the network's card names."""
    folder, run = re.search(r"Records: `(runs/[\w-]+)/runs/([\w-]+)/`", (ZOO / f"{name}.md").read_text()).groups()
    with open(ROOT / folder / "evaluation" / f"{table}.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["checkpoint"] == f"{run}/best.pt"]


def test_each_network_has_a_card_and_all_are_small():
    assert NAMES and NAMES == sorted(path.stem for path in ZOO.glob("*.md"))
    sizes = [(ZOO / f"{name}.pt").stat().st_size for name in NAMES]
    assert max(sizes) <= 9e6 and sum(sizes) <= 20e6


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_the_records_say_and_how_to_load_the_network(name):
    card = (ZOO / f"{name}.md").read_text()
    rows = re.findall(r"^\| ([\d./]+) \| (\d+) \| ([\d,]+) \| ([\d.]+) \|$", card, re.MULTILINE)
    assert len(rows) >= 3
    for radius, draws, images, accuracy in rows:
        found = [row for row in records(name, "accuracy") if row["attack_samples"] == draws and float(row["epsilon"]) ==
                 pytest.approx(eval(radius), rel=1e-6) and row["num_examples"] == images.replace(",", "")]
        assert [f"{100 * float(row['accuracy']):.1f}" for row in found] == [accuracy], (radius, draws)
    loading, = re.findall(r"^    (ab\.load\(.*)$", card, re.MULTILINE)
    classifier = eval(loading.replace("runs/zoo", str(ZOO)))
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["cifar10-advbnn", "stl10-advbnn"])
def test_the_records_of_adv_bnn_are_of_the_network_that_is_here(name):
    rows = [row for table in ("accuracy", "robust", "pruning") for row in records(name, table)]
    assert {row["weights"] for row in rows} == {digest(ab.load(ZOO / f"{name}.pt").state_dict())}


@pytest.mark.slow
@pytest.mark.skipif(not FIXTURE.exists(), reason=f"{FIXTURE} with real images is absent")
@pytest.mark.parametrize("name, draws, num_samples", [("cifar10-adv", 1, 1), ("cifar10-advbnn", 4, 10)])
def test_what_is_left_in_the_worst_case_is_what_the_records_say(name, draws, num_samples, one_thread):
    images = np.load(FIXTURE)
    x = torch.from_numpy(images["cifar10_test_images"]).permute(0, 3, 1, 2).float() / 255
    y = torch.from_numpy(images["cifar10_test_labels"]).long()
    attacks = {"apgd-ce": ab.APGD(8 / 255, 10, attack_samples=draws)}
    torch.manual_seed(0)
    left = ab.worst_case_accuracy(ab.load(ZOO / f"{name}.pt"), [(x, y)], attacks, num_samples=num_samples)
    recorded, = (float(row["accuracy"]) for row in records(name, "robust") if row["attacks"] == "apgd-ce")
    assert left["accuracy_low"] <= recorded <= left["accuracy_high"]
