"""The three arithmetics: laws of rounding, code lengths, and published tables without tables."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.models import egg_arithmetic as ea
from springroll.models.egg_arithmetic import arithmetic
from springroll.quant import fixed_point as fp
from tests.compiling import quick_jit
from tests.reference import egg_numpy as slow

# Every operation is one program.
PRECISIONS: tuple[ea.Precision, ...] = ("int8", "compat", "float32")
OURS, COMPAT, REAL = (ea.Arithmetic(*map(quick_jit, arithmetic(name))) for name in PRECISIONS)
NORMS = {
    numbers: quick_jit(jax.vmap(arithmetic(name).norm, (0, None)))
    for numbers, name in zip((OURS, COMPAT, REAL), PRECISIONS, strict=True)
}
RNG = np.random.default_rng(0)


def int8(*shape, top=127):
    return jnp.asarray(RNG.integers(-top, top + 1, shape), jnp.int8)


def norm(numbers, x, weight):
    """Row after row, as the model takes it."""
    return NORMS[numbers](x, weight)


def thin_free(w):
    """A matrix for the slow model without perturbation."""
    w = np.asarray(w, np.int64)
    return slow.Matrix(w, np.zeros((w.shape[0], 1), int), np.zeros((w.shape[1], 1), int), 1)


# --- the slow model, operation by operation ------------------------------------------------------


@pytest.mark.parametrize("n_in", [16, 24, 48, 64, 80, 128])
def test_matmul(n_in):
    x, w = int8(5, n_in), int8(7, n_in)
    ours, compat = OURS.matmul(x, w), COMPAT.matmul(x, w)
    assert ours.dtype == compat.dtype == jnp.int32
    for row in range(5):
        slow_x = np.asarray(x[row], np.int64)
        np.testing.assert_array_equal(ours[row], slow.Ours().matmul(slow_x, thin_free(w)))
        np.testing.assert_array_equal(compat[row], slow.Published().matmul(slow_x, thin_free(w)))


@pytest.mark.parametrize("top", [127, 40, 1])
def test_norm_and_gate(top):
    """With entries of at most 1 in size most means are 0, the published lookup's odd row."""
    x, weight, f, v = int8(40, 24, top=top), int8(24), int8(40, 24), int8(40, 24)
    for fast, reference in ((OURS, slow.Ours()), (COMPAT, slow.Published())):
        normed = norm(fast, x, weight)
        assert normed.dtype == jnp.int8
        wide = np.asarray(x, np.int64), np.asarray(weight, np.int64)
        np.testing.assert_array_equal(normed, [reference.norm(row, wide[1]) for row in wide[0]])
        got = fast.gate(f, fp.wide(v))
        np.testing.assert_array_equal(got, reference.gate(np.int64(f), np.int64(v)))


def test_a_norm_of_nothing():
    x, weight = jnp.zeros(8, jnp.int8), jnp.full(8, 16, jnp.int8)
    np.testing.assert_array_equal(COMPAT.norm(x, weight), np.full(8, -1))
    np.testing.assert_array_equal(OURS.norm(x, weight), np.zeros(8))
    one = x.at[3].set(1)  # a mean below one step
    np.testing.assert_array_equal(COMPAT.norm(one, weight), [-1, -1, -1, -2, -1, -1, -1, -1])
    np.testing.assert_array_equal(OURS.norm(one, weight), 16 * np.asarray(one))


def test_code_lengths():
    logits, labels = int8(20, 256), jnp.asarray(RNG.integers(0, 256, 20), jnp.int32)
    logits = logits.at[0].set(-127).at[1].set(127).at[2].set(0)
    for fast, reference in ((OURS, slow.Ours()), (COMPAT, slow.Published())):
        want = [
            reference.loss(np.asarray(row, np.int64), int(label))
            for row, label in zip(logits, labels, strict=True)
        ]
        np.testing.assert_array_equal(fast.bits(logits, labels), want)


# --- tables that are not stored ------------------------------------------------------------------


def test_the_published_quotient_is_a_floor_everywhere():
    products = np.arange(-127 * 127, 127 * 127 + 1)[:, None]
    means = np.arange(1, 128)[None]
    got = jax.jit(ea.floor_quotient)(
        jnp.asarray(products, jnp.int32), jnp.asarray(means, jnp.int32)
    )
    np.testing.assert_array_equal(got, products // means)


def test_the_published_logarithm_is_a_search():
    """At every sum where it changes, on both sides, and at 100,000 others."""
    edges = [math.ceil(16 * 2 ** (k / 16)) for k in range(128, 385)]
    sums = np.array([e + d for e in edges for d in (-2, -1, 0, 1, 2)])
    sums = np.concatenate([sums, RNG.integers(4096, 2**28, 50_000)])
    sums = np.concatenate([sums, np.exp2(RNG.uniform(12, 28, 50_000)).astype(np.int64)])
    sums = sums[(sums >= 4096) & (sums < 2**28)]
    want = [int(16 * math.log2(((s - 1) + 1) / 16)) for s in sums.tolist()]
    np.testing.assert_array_equal(ea.published_log2(jnp.asarray(sums, jnp.int32)), want)


def test_the_power_and_the_logarithm_in_fixed_point():
    y = np.arange(256)
    power = np.asarray(ea._exp2_fixed(jnp.asarray(y, jnp.int32)))
    np.testing.assert_array_equal(power, [slow.Ours.exp2(int(v)) for v in y])
    np.testing.assert_allclose(power, 64 * 2 ** (y / 16), rtol=2e-4, atol=1)
    sums = np.unique(np.exp2(RNG.uniform(0, 31, 20_000)).astype(np.int64))
    log = np.asarray(ea._log2_fixed(jnp.asarray(sums, jnp.int32)))
    np.testing.assert_array_equal(log, [slow.Ours.log2(int(s)) for s in sums])
    assert np.abs(log - 256 * np.log2(sums)).max() <= 1


# --- laws ----------------------------------------------------------------------------------------


def test_code_lengths_are_those_of_the_softmax():
    """Ours to a two-hundredth of a bit, the published ones within an eighth and never longer."""
    for spread in (10, 60, 127):
        logits, labels = int8(200, 256, top=spread), jnp.asarray(RNG.integers(0, 256, 200))
        nats = np.asarray(logits, np.float64) * math.log(2) / 16
        chosen = np.take_along_axis(nats, np.asarray(labels)[:, None], 1)[:, 0]
        exact = (np.log(np.exp(nats).sum(axis=1)) - chosen) / math.log(2)
        ours = np.asarray(OURS.bits(logits, labels)) / ea.BITS_SCALE
        assert np.abs(ours - exact).max() < 1 / 200
        published = np.asarray(COMPAT.bits(logits, labels)) / ea.COMPAT_BITS_SCALE
        assert (published - exact).min() > -1 / 8 and (published - exact).max() <= 1e-9
        real = np.asarray(REAL.bits(jnp.asarray(logits, jnp.float32) / 16, labels)) / ea.BITS_SCALE
        np.testing.assert_allclose(real, exact, rtol=1e-5)


@pytest.mark.parametrize("n_in", [48, 64])
def test_our_rounding_is_antithetic(n_in):
    """A sign before an operation is the same as one behind it; the floors are half a step off."""
    x, w, f, weight = int8(50, n_in), int8(9, n_in), int8(50, n_in), int8(n_in)
    np.testing.assert_array_equal(OURS.matmul(-x, w), -OURS.matmul(x, w))
    np.testing.assert_array_equal(OURS.matmul(x, -w), -OURS.matmul(x, w))
    np.testing.assert_array_equal(norm(OURS, -x, weight), -norm(OURS, x, weight))
    np.testing.assert_array_equal(OURS.gate(f, fp.wide(-x)), -OURS.gate(f, fp.wide(x)))
    bias = lambda n: float(jnp.mean((n.matmul(-x, w) + n.matmul(x, w)).astype(jnp.float32)))
    assert bias(OURS) == 0 and bias(COMPAT) < -0.2


def test_real_numbers_mean_the_same():
    """Every operation in sixteenths is within a step of the real one."""
    x, w, f, weight = int8(50, 64), int8(64, 64), int8(50, 64), int8(64)
    real = lambda a: a.astype(jnp.float32) / 16
    pairs = {
        "matmul": (OURS.matmul(x, w), REAL.matmul(real(x), real(w))),
        "norm": (norm(OURS, x, weight), norm(REAL, real(x), real(weight))),
        "gate": (OURS.gate(f, fp.wide(x)), REAL.gate(real(f), real(x))),
    }
    for name, (integer, number) in pairs.items():
        assert np.abs(np.asarray(integer) - 16 * np.asarray(number)).max() <= 0.65, name


def test_shift_of_a_power_of_four():
    assert [ea.matmul_shift(4**d) for d in range(1, 6)] == [5, 6, 7, 8, 9]
