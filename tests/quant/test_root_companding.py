"""Codes of 8 and 4 bits: how far off, how many bytes, at any shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.quant import root_companding
from springroll.quant.root_companding import rounded
from tests.thin.against_dense import FAST_TO_COMPILE

quantize = jax.jit(
    root_companding.quantize,
    static_argnames=("bits", "block", "signed", "stochastic", "seed"),
    compiler_options=FAST_TO_COMPILE,
)
dequantize = jax.jit(root_companding.dequantize, compiler_options=FAST_TO_COMPILE)
requantize = jax.jit(root_companding.requantize, compiler_options=FAST_TO_COMPILE)
BLOCK = {8: 256, 4: 128}


def heavy_tailed(shape=(64, 1024), seed=0):
    return np.random.default_rng(seed).standard_t(3, shape).astype(np.float32)


def slow(x, bits, block, signed):
    """One block at a time, as the formula stands."""
    k, power = (2 ** (bits - 1) - 1, 2) if signed else (2**bits - 1, 4)
    out = np.zeros(x.size)
    flat = x.reshape(-1).astype(np.float64)
    for start in range(0, x.size, block):
        part = flat[start : start + block]
        scale = np.abs(part).max()
        codes = np.round(k * (np.abs(part) / scale) ** (1 / power))
        if not signed:
            codes = np.maximum(1, codes)
        out[start : start + block] = np.sign(part if signed else 1) * scale * (codes / k) ** power
    return out.reshape(x.shape)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("signed", [True, False])
def test_equals_the_formula(bits, signed):
    x = heavy_tailed((4, 1024))
    x = x if signed else x * x
    q = quantize(jnp.asarray(x), bits=bits, block=BLOCK[bits], signed=signed)
    near = np.isclose(dequantize(q), slow(x, bits, BLOCK[bits], signed), rtol=1e-5)
    assert near.mean() > 0.999  # a tie may fall either way


@pytest.mark.parametrize(("bits", "first", "second"), [(8, 0.01, 0.012), (4, 0.15, 0.16)])
def test_errors_on_heavy_tails(bits, first, second):
    x = heavy_tailed((16, 1024))
    m = dequantize(quantize(jnp.asarray(x), bits=bits, block=BLOCK[bits], signed=True))
    assert np.sqrt(np.mean((m - x) ** 2) / np.mean(x**2)) < first
    v = dequantize(quantize(jnp.asarray(x * x), bits=bits, block=BLOCK[bits], signed=False))
    assert np.median(np.abs(np.abs(x) / np.sqrt(v) - 1)) < second


@pytest.mark.parametrize(("bits", "bytes_each"), [(8, 1 + 4 / 256), (4, 0.5 + 4 / 128)])
def test_bytes(bits, bytes_each):
    q = quantize(jnp.ones((3, 64, 512)), bits=bits, block=BLOCK[bits], signed=True)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(q)) == bytes_each * 3 * 64 * 512


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "shape",
    [
        (1,),
        (7,),
        (5, 301),
        (3, 40, 9),
        *(pytest.param(x, marks=pytest.mark.slow) for x in [(300,), (2, 3, 1, 33)]),
    ],
)
def test_any_shape_comes_back_and_coding_again_changes_nothing(shape, bits):
    """Decoded operation by operation: in one program the last place of a scale may move."""
    x = jnp.asarray(heavy_tailed(shape))
    for signed in (True, False):
        q = quantize(x if signed else x * x, bits=bits, block=BLOCK[bits], signed=signed)
        y = root_companding.dequantize(q)
        assert y.shape == q.shape == shape and y.dtype == jnp.float32
        again = requantize(q, y)
        jax.tree.map(np.testing.assert_array_equal, again, q)


def test_blocks_share_no_layer_and_cost_no_padding():
    wide = quantize(jnp.ones((4, 64, 300)), bits=8, block=256, signed=True)
    assert wide.codes.shape == (4, 64, 300) and wide.scales.shape == (4, 64, 2)
    narrow = quantize(jnp.ones((4, 512, 8)), bits=8, block=256, signed=True)
    assert narrow.codes.shape == (4, 4096) and narrow.scales.shape == (4, 16)
    layer = jax.tree.map(lambda a: a[1], narrow)
    assert dequantize(layer).shape == (512, 8)


def test_no_second_moment_becomes_zero():
    x = jnp.full((256,), 1e-12).at[0].set(1.0)
    v = dequantize(quantize(x, bits=8, block=256, signed=False))
    assert v.min() > 1e-10 * 0.9 and v[0] == 1.0


def test_zeros_tiny_numbers_and_infinities():
    zeros = dequantize(quantize(jnp.zeros(512), bits=8, block=256, signed=False))
    assert not zeros.any()
    tiny = dequantize(quantize(jnp.full(256, 1e-41), bits=8, block=256, signed=True))
    assert not tiny.any()
    x = jnp.ones(512).at[3].set(jnp.inf)
    y = dequantize(quantize(x, bits=8, block=256, signed=True))
    assert jnp.isnan(y[:256]).all() and (y[256:] == 1).all()


def test_bfloat16_moments_stay_bfloat16():
    x = jnp.asarray(heavy_tailed((512,))).astype(jnp.bfloat16)
    y = dequantize(quantize(x, bits=8, block=256, signed=True))
    assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize("power", [2, 4])
def test_random_rounding_keeps_the_mean_of_what_is_stored(power):
    place = jnp.full((40_000,), 3.3)
    codes = rounded(place, power, jax.random.uniform(jax.random.key(0), place.shape))
    values = np.asarray(codes, np.float64) ** power
    assert set(np.unique(codes)) == {3.0, 4.0}
    error = (4**power - 3**power) / np.sqrt(4 * place.size)
    assert abs(values.mean() - 3.3**power) < 5 * error


def test_random_rounding_draws_anew_each_time_and_repeats_itself():
    x = jnp.asarray(heavy_tailed((1024,)))
    first = quantize(x, bits=4, block=128, signed=True, stochastic=True, seed=5)
    assert int(first.draws) == 1
    second = requantize(first, x)
    assert (first.codes != second.codes).any()
    jax.tree.map(np.testing.assert_array_equal, second, requantize(first, x))
    other = quantize(x, bits=4, block=128, signed=True, stochastic=True, seed=6)
    assert (first.codes != other.codes).any()
