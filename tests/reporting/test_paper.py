"""Tests of paper: the published numbers, copied from the papers once more, and what the paper's own text says."""
from pathlib import Path

import pytest

from pyro_advbnn.reporting import paper

TEXT = Path(__file__).parents[3] / "shared" / "paper" / "adv-bnn-iclr2019.txt"
RADII = {"cifar10": (0, 0.015, 0.035, 0.055, 0.07), "stl10": (0, 0.015, 0.035, 0.055, 0.07),
         "imagenet143": (0, 0.004, 0.01, 0.016, 0.02)}
TABLE_1 = {  # in percent
    ("cifar10", "adv"): (80.3, 58.3, 31.1, 15.5, 10.3), ("cifar10", "advbnn"): (79.7, 68.7, 45.4, 26.9, 18.6),
    ("stl10", "adv"): (63.2, 46.7, 27.4, 12.8, 7.0), ("stl10", "advbnn"): (59.9, 51.8, 37.6, 27.2, 21.1),
    ("imagenet143", "adv"): (48.7, 37.6, 23.0, 12.4, 7.5), ("imagenet143", "advbnn"): (47.3, 43.8, 39.3, 30.2, 24.6),
}
MANY_DRAWS = {  # arXiv 2212.02003, Table 2, in percent
    ("cifar10", "advbnn"): (79.7, 64.2, 37.7, 16.3, 8.1),
    ("stl10", "advbnn"): (59.9, 47.9, 31.4, 16.7, 9.1),
}


def test_known_numbers_of_table_1_and_of_the_many_draw_attack():
    assert paper.accuracy("cifar10", "advbnn", 0.07) == 0.186
    assert paper.accuracy("cifar10", "advbnn", 0.07, many_draws=True) == 0.081
    assert paper.accuracy("imagenet143", "adv", 0.004) == 0.376
    assert (paper.TABLE_1, paper.MANY_DRAWS_TABLE) == ("paper, Table 1", "arXiv 2212.02003, Table 2")
    assert (paper.ENOUGH_DRAWS, paper.ENOUGH_STEPS) == ((10, 20), 20)


def test_the_radii_are_those_of_table_1():
    assert {dataset: paper.epsilons(dataset) for dataset in RADII} == RADII and paper.epsilons("digits") == ()


@pytest.mark.parametrize("many_draws", [False, True])
def test_every_number_is_the_published_one_and_there_are_no_others(many_draws):
    published = MANY_DRAWS if many_draws else TABLE_1
    for (dataset, defense), percents in published.items():
        found = [paper.accuracy(dataset, defense, radius, many_draws) for radius in RADII[dataset]]
        assert found == pytest.approx([percent / 100 for percent in percents], abs=1e-9)
    assert set(published) == set(paper._MANY_DRAWS if many_draws else paper._ONE_DRAW)


@pytest.mark.skipif(not TEXT.exists(), reason="the paper's text is not beside this checkout")
def test_what_the_paper_claims_is_in_its_text():
    text = " ".join(TEXT.read_text().split())
    for words in (r"\rho \approx 0.85", r"\rho \approx 0.5 \sim 0.6", "only 10~20 forward operations are sufficient",
                  "number of iteration to 1000, the accuracy does not change", "(not sensitive)", "choose a smaller $\\alpha$",
                  "the posterior has two modes", "prune the weights which have large deviation"):
        assert words in text, words


@pytest.mark.parametrize("asked", [
    ("cifar10", "advbnn", 0.01), ("cifar10", "rse", 0.0), ("digits", "advbnn", 0.0), ("cifar10:held_out", "adv", 0.0),
    ("stl10", "igbnn", 0.0, True), ("imagenet143", "advbnn", 0.02, True), ("cifar10", "adv", 0.0, True),
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
