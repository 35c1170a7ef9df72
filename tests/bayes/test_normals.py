"""The compiled generator; skipped where it was not compiled."""
import math

import pytest
import torch
from scipy import stats

from pyro_advbnn.bayes.kernels import vectors
from pyro_advbnn.bayes.kernels.vectors import normal_, standard_normal_

normals = pytest.importorskip("pyro_advbnn.bayes.kernels._normals", reason="no C compiler at installation")


def numbers(size, key, block=0):
    out = torch.full((size + 8,), 77.0)
    normals.fill(out.data_ptr(), size, key, block, 0, 0)
    assert (out[size:] == 77).all()
    return out[:size]


@pytest.mark.parametrize(("counter", "key", "words"), [      # Random123's kat_vectors, as far as the counter has 64 bits
    (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
])
def test_words_are_the_published_ones(counter, key, words):
    assert normals.words(counter, key) == words


def philox(counter, key):
    """Philox4x32-10 in plain integers, after the paper."""
    x = [counter & 0xFFFFFFFF, counter >> 32, 0, 0]
    k = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(b >> 32) ^ x[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ x[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return tuple(x)


@pytest.mark.parametrize("key", [1, 0xFEDCBA9876543210])
@pytest.mark.parametrize("counter", [1, 31, 32, 1000, (1 << 32) - 1, 1 << 32, (1 << 40) + 5])
def test_words_are_those_of_the_reference_for_every_counter_and_key(counter, key):
    assert normals.words(counter, key) == philox(counter, key)


def test_normals_are_box_muller_of_the_words():
    got = numbers(128, key=5).double().view(4, 32)
    for lane in range(32):
        a, b, c, d = philox(lane, 5)
        for (radius, angle), pair in (((a, b), got[:2, lane]), ((c, d), got[2:, lane])):
            r = math.sqrt(-2 * math.log(((radius >> 1) + 0.5) / 2**31))
            turn = 2 * math.pi * angle / 2**32
            torch.testing.assert_close(pair, torch.tensor([r * math.cos(turn), r * math.sin(turn)], dtype=torch.float64),
                                       rtol=2e-6, atol=2e-6)


def test_numbers_depend_on_key_and_position_alone():
    whole = numbers(1000, key=9)
    assert torch.equal(numbers(1000 - 256, key=9, block=2), whole[256:])
    assert torch.equal(numbers(130, key=9), whole[:130])
    assert (numbers(1000, key=10) != whole).float().mean() > 0.99


def test_they_are_standard_normal_and_independent():
    x = numbers(1 << 22, key=3).double()
    n = len(x)
    assert stats.kstest(x[: 1 << 20], "norm").pvalue > 1e-3
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 4 * math.sqrt(variance / n)
    assert abs((x.abs() > 4).sum() - n * 2 * stats.norm.sf(4)) < 5 * math.sqrt(n * 2 * stats.norm.sf(4))
    for lag in (1, 16, 32, 64, 128):
        assert abs((x[lag:] * x[:-lag]).mean()) < 4 / math.sqrt(n)
        assert abs(((x[lag:]**2 - 1) * (x[:-lag]**2 - 1)).mean()) < 4 * 2 / math.sqrt(n)


def test_extreme_words_give_finite_numbers():
    assert torch.isfinite(numbers(1 << 24, key=4)).all()
    assert numbers(1 << 24, key=4).abs().max() < math.sqrt(2 * math.log(2**32)) + 1e-3


@pytest.mark.parametrize("compiled", [True, False])
def test_a_long_draw_is_the_same_for_any_number_of_threads(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(vectors, "_normals", None)
    draws, threads = [], torch.get_num_threads()
    for num in (1, 3):
        torch.set_num_threads(num)
        torch.manual_seed(0)
        draws.append(standard_normal_(torch.empty((1 << 21) + 12345)))
    torch.set_num_threads(threads)
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], standard_normal_(torch.empty_like(draws[0])))


@pytest.mark.parametrize("compiled", [True, False])
def test_a_draw_is_mean_plus_std_times_the_standard_normals_of_the_same_seed(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(vectors, "_normals", None)
    size = (1 << 21) + 77
    mean, std = torch.linspace(-1, 1, size), torch.linspace(0.1, 2, size)
    draws = []
    for how in (std, lambda part: std[part]):
        torch.manual_seed(0)
        draws.append(normal_(torch.empty(size), mean, how))
    torch.manual_seed(0)
    expected = mean + std * standard_normal_(torch.empty(size))
    for draw in draws:
        torch.testing.assert_close(draw, expected, rtol=1e-6, atol=1e-7)


def test_double_precision_draws_do_without_it():
    assert standard_normal_(torch.empty((1 << 20) + 1, dtype=torch.float64)).std().item() == pytest.approx(1, abs=0.01)
