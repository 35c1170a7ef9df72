"""Tests of verdicts: known answers for intervals of differences, modes, and what pruning begins with."""
import math

import pytest
from result_tables import measured

from pyro_advbnn.reporting import agreement


def test_the_interval_of_a_difference_is_newcombes():
    change, low, high = agreement.difference(measured(48, 80), measured(56, 70))    # Newcombe 1998, Table II, example (a)
    assert (change, low, high) == pytest.approx((20.0, 5.24, 33.39), abs=0.005)
    assert agreement.difference(measured(56, 70), measured(48, 80)) == pytest.approx((-20.0, -33.39, -5.24), abs=0.005)


def test_the_prior_is_judged_by_an_interval_for_all_pairs_at_once():
    rows = [{"prior_std": str(number)} | measured(correct) for number, correct in enumerate((500, 510, 505, 557))]
    assert agreement.check_prior_std(rows)[1] == "yes"   # of four pairs it would be "no"


@pytest.mark.parametrize(("modes", "expected"), [(((0, 1),), 1), (((0, 1), (4, 0.5)), 2), (((0, 1), (1.2, 0.5)), 1),
                                                 (((0, 1), (4, 0.05)), 1), (((0, 1), (4, 1), (8, 1)), 3)])
def test_modes_are_counted_where_they_stand_out(modes, expected):
    heights = [sum(height * math.exp(-0.5 * (0.2 * i - 4 - centre) ** 2) for centre, height in modes) for i in range(90)]
    assert agreement.count_modes(heights) == expected
    assert agreement.count_modes(heights[::-1]) == expected


@pytest.mark.parametrize(("heights", "window", "expected"), [
    ([1.0], 5, 1), ([0, 1, 0.05, 0.13, 0], 1, 1), ([0, 1, 0.05, 0.16, 0], 1, 2), ([1, 0, 1], 1, 2),
    ([0.5 + 0.1 * (-1) ** i for i in range(30)], 5, 1), ([0.5 + 0.1 * (-1) ** i for i in range(30)], 1, 15),
])
def test_neither_a_small_bump_nor_noise_between_bins_is_a_mode(heights, window, expected):
    assert agreement.count_modes(heights, window=window) == expected


@pytest.mark.parametrize(("test", "verdict"), [(1.29, "yes"), (1.27, "no"), (0.5, "no")])
def test_gradients_differ_beyond_the_interval_of_their_difference(test, verdict):
    """Half widths 0.2 and 0.2: that of the difference is 0.2828, although the two intervals overlap up to 0.4."""
    rows = [{"l1_norm": mean, "l1_norm_low": mean - 0.2, "l1_norm_high": mean + 0.2} for mean in (1.0, test)]
    assert agreement.check_gradients(*rows) == verdict
