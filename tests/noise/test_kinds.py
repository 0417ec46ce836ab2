"""The counted noise is as random as it claims, and a function of its address alone."""

import functools
import math
import statistics
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.noise import counter
from springroll.noise.kinds import (
    NOISE,
    int8_table,
    noise_named,
    normal_from_bits,
    normal_thresholds,
)

SEED = jnp.array([11, 22], jnp.uint32)
P, SIZE = 512, 2048


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def sample(kind, path, size, seed, epoch, pairs):
    return NOISE[kind].sample(counter.stream(seed, epoch, path), pairs, size)


@functools.partial(jax.jit, static_argnums=(0,))
def words_of(size, pairs):
    return counter.bits(counter.stream(SEED, 0, "w"), pairs, size)


def draw(kind, *, seed=SEED, epoch=0, path="w", pairs: int | jax.Array = P, size=SIZE):
    numbers = jnp.arange(pairs, dtype=jnp.uint32) if isinstance(pairs, int) else pairs
    x = sample(kind, path, size, seed, jnp.int32(epoch), numbers)
    return np.asarray(x, np.float64) * NOISE[kind].scale


@pytest.fixture(scope="module", params=sorted(NOISE))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def base(kind):
    return draw(kind)


def correlation(a, b):
    """Correlation of two arrays in units of its standard error."""
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    return (a * b).mean() / (a.std() * b.std()) * math.sqrt(a.size)


def test_moments(kind, base):
    n = base.size
    kurtosis = {"gaussian": 3.0, "rademacher": 1.0, "int8": 3.0}[kind]
    # The table holds only 2**22 numbers, so its own sampling error is the larger one.
    n_effective = min(n, 1 << 20)
    assert abs(base.mean()) < 5 / math.sqrt(n_effective)
    assert abs(base.var() - 1) < 5 * math.sqrt(2 / n_effective)
    assert abs((base**4).mean() - kurtosis) < 5 * math.sqrt(96 / n_effective)
    assert abs((base**3).mean()) < 5 * math.sqrt(15 / n_effective)


def test_neighbours_do_not_correlate(kind, base):
    elsewhere = {
        "next element": (base[:, :-1], base[:, 1:]),
        "two elements on": (base[:, :-2], base[:, 2:]),
        "32 elements on": (base[:, :-32], base[:, 32:]),
        "next pair": (base[:-1], base[1:]),
        "diagonal": (base[:-1, :-1], base[1:, 1:]),
        "64 pairs on": (base[:-64], base[64:]),
        "next epoch": (base, draw(kind, epoch=1)),
        "another path": (base, draw(kind, path="v")),
        "another first seed word": (base, draw(kind, seed=jnp.array([12, 22], jnp.uint32))),
        "swapped seed words": (base, draw(kind, seed=jnp.array([22, 11], jnp.uint32))),
    }
    for name, (a, b) in elsewhere.items():
        assert abs(correlation(a, b)) < 5, name
        if kind != "rademacher":
            assert abs(correlation(a**2, b**2)) < 5, f"squares, {name}"


def test_means_of_rows_and_columns_spread_as_they_should(kind, base):
    """Pairs and elements have no bias of their own: means have variance 1/n."""
    for axis, n in ((0, P), (1, SIZE)):
        scaled = base.mean(axis=axis) * math.sqrt(n)
        spread = scaled.var()
        assert abs(spread - 1) < 5 * math.sqrt(2 / scaled.size) + 0.02, axis


def test_a_draw_depends_on_its_address_only(kind, base):
    """Not on how many pairs, which pairs, or how many elements are drawn with it."""
    some = jnp.array([300, 7, 7, 511], jnp.uint32)
    np.testing.assert_array_equal(draw(kind, pairs=some), base[[300, 7, 7, 511]])
    np.testing.assert_array_equal(draw(kind, pairs=some, size=100), base[[300, 7, 7, 511], :100])


def test_bits_are_balanced_and_avalanche():
    words = np.asarray(words_of(4096, jnp.arange(64, dtype=jnp.uint32)))
    n = words.size
    for bit in range(32):
        assert abs(((words >> bit) & 1).mean() - 0.5) < 5 * 0.5 / math.sqrt(n)
    for a, b in ((words[:, :-1], words[:, 1:]), (words[:-1], words[1:])):
        flipped = a ^ b
        for bit in range(32):
            assert abs(((flipped >> bit) & 1).mean() - 0.5) < 5 * 0.5 / math.sqrt(flipped.size)


def test_one_changed_input_bit_flips_half_of_the_stream():
    stream = jax.jit(counter.stream, static_argnums=2)
    seed = np.array([11, 22], np.uint32)
    one = np.asarray(stream(seed, 3, "blocks/0/w"))
    changed = [stream(seed, 2, "blocks/0/w"), stream(seed, 3, "blocks/1/w")]
    for k in (0, 1):
        for bit in range(32):
            other = seed.copy()
            other[k] ^= np.uint32(1 << bit)
            changed.append(stream(other, 3, "blocks/0/w"))
    flips = [np.bitwise_count(one ^ np.asarray(other)).sum() for other in changed]
    assert all(12 <= f <= 52 for f in flips), flips  # 32 +- 5 standard deviations
    assert 30 <= np.mean(flips) <= 34


def test_bytes_of_words_are_uniform():
    words = np.asarray(words_of(4096, jnp.arange(256, dtype=jnp.uint32)))
    for shift in (0, 8, 16, 24):
        counts = np.bincount(((words >> shift) & 255).ravel(), minlength=256)
        expected = words.size / 256
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi2 - 255) < 5 * math.sqrt(2 * 255), shift


def test_normal_is_the_inverse_distribution_function():
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, 2000, dtype=np.uint32)
    words = np.concatenate([words, np.array([0, 1, 2, 3, 2**32 - 1, 2**32 - 2], np.uint32)])
    exact = statistics.NormalDist()
    tail = ((words >> 1).astype(np.float64) + 0.5) / 2**32
    sign = np.where(words & 1, -1.0, 1.0)
    want = np.array([-exact.inv_cdf(p) if p < 0.5 else 0.0 for p in tail]) * sign
    got = np.asarray(normal_from_bits(jnp.asarray(words)))
    np.testing.assert_allclose(got, want, rtol=3e-5, atol=1e-6)
    assert np.abs(got).max() > 6


def test_gaussian_tails():
    x = np.abs(draw("gaussian", pairs=1024, size=4096)).ravel()
    for edge in (2.0, 3.0, 4.0):
        expected = math.erfc(edge / math.sqrt(2)) * x.size
        assert abs((x > edge).sum() - expected) < 5 * math.sqrt(expected), edge


def test_gaussian_distribution():
    """Kolmogorov-Smirnov distance to the normal distribution."""
    x = np.sort(draw("gaussian").ravel())
    cdf = np.asarray(jax.scipy.stats.norm.cdf(jnp.asarray(x, jnp.float32)))
    distance = np.abs(cdf - (np.arange(x.size) + 0.5) / x.size).max()
    assert distance < 1.95 / math.sqrt(x.size)  # exceeded once in 1000 draws


def test_table_is_the_rounded_normal_on_any_hardware():
    table = int8_table()
    assert table.dtype == np.int8 and table.min() >= -127 and table.max() <= 127
    assert zlib.crc32(table.tobytes()) == 95792376
    counts = np.bincount(table[: 1 << 22].astype(int) + 127, minlength=255)
    edges = np.concatenate([[0], normal_thresholds().astype(np.float64) / 2**32, [1]])
    expected = np.diff(edges) * (1 << 22)
    common = expected > 20
    chi2 = ((counts - expected) ** 2 / np.where(common, expected, 1))[common].sum()
    assert abs(chi2 - common.sum()) < 5 * math.sqrt(2 * common.sum())
    # No threshold is so near a half that a libm of 1e-12 accuracy could round it otherwise.
    exact = [2**32 * 0.5 * math.erfc(-(v + 0.5) / 16 / math.sqrt(2)) for v in range(-127, 127)]
    assert min(abs(x % 1 - 0.5) for x in exact) > 2**32 * 1e-12


def test_long_draws_of_the_table_go_on_in_other_slices():
    x = draw("int8", pairs=2, size=150_000)
    assert x.shape == (2, 150_000)
    assert abs(correlation(x[:, :65536], x[:, 65536:131072])) < 5
    assert abs(x.var() - 1) < 0.02


def test_unknown_noise():
    with pytest.raises(InputError, match="'gauss' is unknown; expected one of gaussian, int8"):
        noise_named("gauss")
