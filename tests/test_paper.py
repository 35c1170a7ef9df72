"""Tests of paper: the published numbers are those of the facts file and of the paper's own text."""
import re
from pathlib import Path

import pytest

from pyro_advbnn import paper

PAPER = Path(__file__).parents[2] / "shared" / "paper"
needs_facts = pytest.mark.skipif(not (PAPER / "facts.md").exists(), reason="the facts file is not beside this checkout")
DATASETS = {"CIFAR-10": "cifar10", "STL-10": "stl10", "ImageNet-143": "imagenet143"}
DEFENSES = {"Adv. training": "adv", "Adv-BNN": "advbnn", "IG-BNN": "igbnn"}


def test_known_numbers_of_table_1_and_of_the_many_draw_attack():
    assert paper.accuracy("cifar10", "advbnn", 0.07) == 0.186
    assert paper.accuracy("cifar10", "advbnn", 0.07, many_draws=True) == 0.081
    assert paper.accuracy("imagenet143", "adv", 0.004) == 0.376
    assert (paper.accuracy_source(), paper.accuracy_source(many_draws=True)) == ("paper, Table 1", "arXiv 2212.02003, Table 2")


@needs_facts
def test_table_1_is_that_of_the_facts_file():
    radii, seen = [], {}
    for line in (PAPER / "facts.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[:2] == ["data", "defence"]:
            radii = [float(cell) for cell in cells[2:]]
        elif cells[0] in DATASETS:
            key = DATASETS[cells[0]], DEFENSES[cells[1]]
            seen[key] = [round(float(cell) / 100, 4) for cell in cells[2:]]
            assert [paper.accuracy(*key, radius) for radius in radii] == seen[key]
            assert paper.epsilons(key[0]) == tuple(radii)
    assert len(seen) == 6 and set(seen) == set(paper._ONE_DRAW)


@needs_facts
def test_the_many_draw_figures_are_those_of_the_facts_file():
    text = (PAPER / "facts.md").read_text()
    text = text[text.index("2212.02003"):]
    middle = text.index("STL-10 Adv-BNN")
    parts = {"cifar10": text[text.index("CIFAR-10 Adv-BNN"):middle], "stl10": text[middle:]}
    for dataset, part in parts.items():
        for name in ("Adv-BNN", "IG-BNN"):
            numbers = re.search(rf"{name} (\d+\.\d(?: / \d+\.\d){{4}})", part).group(1).split(" / ")
            published = [paper.accuracy(dataset, DEFENSES[name], radius, many_draws=True) for radius in paper.epsilons(dataset)]
            assert published == [round(float(number) / 100, 4) for number in numbers]
    assert len(paper._MANY_DRAWS) == 4


@needs_facts
def test_what_the_paper_claims_is_in_its_text():
    text = " ".join((PAPER / "adv-bnn-iclr2019.txt").read_text().split())
    for words in (r"\rho \approx 0.85", r"\rho \approx 0.5 \sim 0.6", "only 10~20 forward operations are sufficient",
                  "number of iteration to 1000, the accuracy does not change", "(not sensitive)", "choose a smaller $\\alpha$",
                  "the posterior has two modes", "prune the weights which have large deviation"):
        assert words in text, words
    assert (paper.ENOUGH_DRAWS, paper.ENOUGH_STEPS) == ((10, 20), 20)


@pytest.mark.parametrize("asked", [
    ("cifar10", "advbnn", 0.01), ("cifar10", "rse", 0.0), ("digits", "advbnn", 0.0), ("cifar10:held_out", "adv", 0.0),
    ("stl10", "igbnn", 0.0), ("imagenet143", "advbnn", 0.02, True), ("cifar10", "adv", 0.0, True),
])
def test_what_was_not_published_is_none(asked):
    assert paper.accuracy(*asked) is None


def test_the_correlations_stand_in_both_directions_and_only_where_they_were_stated():
    assert paper.correlation("none", "bnn") == paper.correlation("bnn", "none") == (0.85, 0.85)
    for source in ("rse", "adv", "advbnn"):
        for target in {"rse", "adv", "advbnn"} - {source}:
            assert paper.correlation(source, target) == (0.5, 0.6)
        assert paper.correlation(source, "none") is None and paper.correlation(source, source) is None
    assert paper.correlation(None, "bnn") is None


def test_every_number_is_a_share_and_falls_with_the_radius():
    for table in (paper._ONE_DRAW, paper._MANY_DRAWS):
        for values in table.values():
            assert all(0 < value < 1 for value in values) and list(values) == sorted(values, reverse=True)


def test_every_claim_has_a_source():
    assert all(claim.text and claim.source for claim in paper.CLAIMS.values())
