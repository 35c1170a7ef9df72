"""Tests of intervals: the published ones, and the equations that they solve."""
import pytest
from scipy import stats

from pyro_advbnn.evaluation.intervals import (
    auroc_interval,
    difference_interval,
    paired_difference_interval,
    transfer_rate,
    widening,
    wilson_interval,
)


@pytest.mark.parametrize(("correct", "total", "low", "high"), [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
    (20, 20, 0.8389, 1.0),                               # the first four: Newcombe 1998, Table I
])
def test_wilsons_interval_is_the_published_one(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_wilsons_interval_solves_its_quadratic_and_mirrors():
    low, high = wilson_interval(7, 30)
    for bound in (low, high):
        assert (7 / 30 - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / 30)
    assert wilson_interval(23, 30) == pytest.approx((1 - high, 1 - low))


def share(correct, total):
    return correct / total, *wilson_interval(correct, total)


def test_the_interval_of_a_difference_is_the_published_one_and_mirrors():
    low, high = difference_interval(share(56, 70), share(48, 80))                  # Newcombe 1998, Table II, example (a)
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference_interval(share(48, 80), share(56, 70)) == pytest.approx((-high, -low))


def test_a_paired_difference_is_as_uncertain_as_its_images_differ():
    low, high = paired_difference_interval(30, 10, 200)
    assert high + low == pytest.approx(2 * 20 / 202)
    assert (high - low) / 2 == pytest.approx(1.959964 * (42 / 202 - (20 / 202) ** 2) ** 0.5 / 202 ** 0.5)
    assert paired_difference_interval(10, 30, 200) == pytest.approx((-high, -low))
    low, high = paired_difference_interval(4, 0, 360)
    assert low < 0 < high                                # McNemar's exact test has p = 0.125


@pytest.mark.parametrize(("n", "lost", "won"), [(40, 0.02, 0.02), (40, 0.1, 0.02), (100, 0.01, 0.0), (60, 0.4, 0.3)])
def test_an_interval_of_a_paired_difference_holds_it_in_about_95_of_100_cases(n, lost, won):
    cases = [(i, j) for i in range(n + 1) for j in range(n + 1 - i)]
    likely = stats.multinomial.pmf([(i, j, n - i - j) for i, j in cases], n, [lost, won, 1 - lost - won])
    held = [low <= lost - won <= high for low, high in (paired_difference_interval(*case, n) for case in cases)]
    assert 0.94 <= sum(likely[held]) and (lost < 0.3 or sum(likely[held]) <= 0.97)       # more where few images differ


def test_the_most_extreme_of_several_differences_has_the_interval_that_holds_for_all():
    assert widening(1) == pytest.approx(1, abs=1e-6)
    assert [1.959964 * widening(k) for k in (3, 5, 10)] == pytest.approx([2.3940, 2.5758, 2.8070], abs=1e-4)   # t tables
    low, high = paired_difference_interval(30, 10, 200)
    wide_low, wide_high = paired_difference_interval(30, 10, 200, comparisons=5)
    assert (wide_high - wide_low) / (high - low) == pytest.approx(widening(5))
    assert wide_low + wide_high == pytest.approx(low + high)
    (low, high), (wide_low, wide_high) = (difference_interval(share(56, 70), share(48, 80), n) for n in (1, 5))
    assert (wide_high - 0.2) / (high - 0.2) == pytest.approx(widening(5)) == pytest.approx((0.2 - wide_low) / (0.2 - low))


def test_an_auroc_of_1_or_0_has_an_interval_as_wide_as_its_images_are_few():
    low, high = auroc_interval(1.0, 20, 20)
    assert high == 1 and low == pytest.approx(0.898, abs=2e-3)
    assert auroc_interval(0.0, 20, 20) == (0, pytest.approx(1 - low))
    widths = [1 - auroc_interval(1.0, num, num)[0] for num in (1, 5, 20, 100, 1000)]
    assert widths == sorted(widths, reverse=True) and widths[-1] > 0
    assert auroc_interval(1.0, 1, 1) == pytest.approx(wilson_interval(1, 1))
    low, high = auroc_interval(0.8, 40, 25)
    for end in (low, high):                              # the ends solve the equation of the score
        t, spread = end, (40 + 25) / 2 - 1
        variance = t * (1 - t) * (1 + spread * (1 - t) / (2 - t) + spread * t / (1 + t)) / 1000
        assert abs(0.8 - t) == pytest.approx(1.959964 * variance**0.5)
    assert low < 0.8 < high


@pytest.mark.parametrize(("clean", "transferred", "white_box", "rho"), [
    (0.9, 0.5, 0.1, 0.5), (0.9, 0.1, 0.1, 1.0), (0.9, 0.9, 0.1, 0.0), (0.8, 0.85, 0.3, -0.1),
])
def test_rho_is_that_of_equation_14(clean, transferred, white_box, rho):
    assert transfer_rate(clean, transferred, white_box, 1000) == (pytest.approx(rho), "")


def test_rho_is_left_out_where_the_drop_is_no_larger_than_its_error():
    # the drop's standard error for n = 100: sqrt((0.5 * 0.5 + 0.4 * 0.6) / 100) = 0.07, times 1.96 = 0.1372
    assert transfer_rate(0.5, 0.45, 0.4, 100) == (None, "drop 10.0 ± 13.7 points")
    assert transfer_rate(0.5, 0.45, 0.4, 400)[0] == pytest.approx(0.5)
    assert transfer_rate(0.5, 0.4, 0.5, 10**9)[0] is None
    assert transfer_rate(0.4, 0.4, 0.5, 100)[0] is None
    assert transfer_rate(1.0, 1.0, 1.0, 100) == (None, "drop 0.0 ± 0.0 points")
