"""The compiled generator; skipped where it was not compiled."""
import itertools
import math

import pytest
import torch
from scipy import stats

from pyro_advbnn.bayes.kernels import vectors
from pyro_advbnn.bayes.kernels.vectors import normal_, standard_normal_

normals = pytest.importorskip("pyro_advbnn.bayes.kernels._normals", reason="no C compiler at installation")


STREAM, LANES = 1 << 14, 32


def numbers(size, key, stream=0):
    out = torch.full((size + 8,), 77.0)
    normals.fill(out.data_ptr(), size, key, stream, 0, 0)
    assert (out[size:] == 77).all()
    return out[:size]


def mixed(z):
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def splitmix(counter):
    """The words of SplitMix64 in plain integers."""
    while True:
        counter = (counter + 0x9E3779B97F4A7C15) % 2**64
        yield mixed(counter)


def xoshiro(state):
    """The words of xoshiro128++ in plain integers."""
    def rotated(x, bits):
        return (x << bits | x >> 32 - bits) % 2**32

    a, b, c, d = state
    while True:
        yield (rotated((a + d) % 2**32, 7) + a) % 2**32
        c, d, shifted = c ^ a, d ^ b, (b << 9) % 2**32
        b, a = b ^ c, a ^ d
        c, d = c ^ shifted, rotated(d, 11)


def first(count, generator):
    return list(itertools.islice(generator, count))


def test_the_reference_gives_the_published_words():
    assert first(3, splitmix(1234567)) == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert first(6, xoshiro((1, 2, 3, 4))) == [641, 1573767, 3222811527, 3517856514, 836907274, 4247214768]


@pytest.mark.parametrize(("key", "stream"), [(5, 0), (2**63 - 2, 3)])
def test_normals_are_box_muller_of_the_words(key, stream):
    got = numbers(3 * 128, key, stream).double().view(3, 4, LANES)
    seeds = [word >> 32 for word in first(4 * LANES, splitmix(mixed((key + stream) % 2**64)))]
    for lane in range(LANES):
        words = xoshiro(seeds[lane::LANES])
        for block, half in itertools.product(range(3), range(2)):
            radius, angle = next(words), next(words)
            r = math.sqrt(-2 * math.log(((radius >> 1) + 0.5) / 2**31))
            turn = 2 * math.pi * angle / 2**32
            torch.testing.assert_close(got[block, 2 * half:2 * half + 2, lane], torch.tensor(
                [r * math.cos(turn), r * math.sin(turn)], dtype=torch.float64), rtol=2e-6, atol=2e-6)


def test_numbers_depend_on_key_and_position_alone():
    whole = numbers(3 * STREAM + 1000, key=9)
    assert torch.equal(numbers(STREAM + 1000, key=9, stream=2), whole[2 * STREAM:])
    assert torch.equal(numbers(130, key=9), whole[:130])
    assert (numbers(len(whole), key=17) != whole).float().mean() > 0.99
    assert (whole[:STREAM] != whole[STREAM:2 * STREAM]).float().mean() > 0.99


def test_they_are_standard_normal_and_independent():
    x = numbers(1 << 22, key=3).double()
    n = len(x)
    assert stats.kstest(x[: 1 << 20], "norm").pvalue > 1e-3
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 4 * math.sqrt(variance / n)
    assert abs((x.abs() > 4).sum() - n * 2 * stats.norm.sf(4)) < 5 * math.sqrt(n * 2 * stats.norm.sf(4))
    for lag in (1, 16, 32, 64, 128, STREAM):
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
    torch.manual_seed(0)
    drawn = normal_(torch.empty(size), mean, std)
    torch.manual_seed(0)
    torch.testing.assert_close(drawn, mean + std * standard_normal_(torch.empty(size)), rtol=1e-6, atol=1e-7)


def test_draws_as_long_as_a_narrow_vgg16_come_from_it():
    torch.manual_seed(0)
    drawn = standard_normal_(torch.empty(924_186))
    torch.manual_seed(0)
    assert torch.equal(drawn, numbers(924_186, key=int(torch.randint(2**63 - 1, ()))))


def test_double_precision_draws_do_without_it():
    assert standard_normal_(torch.empty((1 << 20) + 1, dtype=torch.float64)).std().item() == pytest.approx(1, abs=0.01)
