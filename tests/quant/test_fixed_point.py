"""Integers in sixteenths: exact products in every register, rounding that keeps signs symmetric."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from springroll.quant import fixed_point as fp


def half_away(x, bits):
    exact = abs(Fraction(int(x), 2**bits)) + Fraction(1, 2)
    return (1 if x >= 0 else -1) * (exact.numerator // exact.denominator)


@given(st.lists(st.integers(-(2**30), 2**30), min_size=16, max_size=16), st.integers(0, 8))
@settings(max_examples=50, deadline=None)
def test_shifts_against_fractions(values, bits):
    x = jnp.asarray(values, jnp.int32)
    nearest = fp.shift_right(x, bits)
    assert nearest.tolist() == [half_away(v, bits) for v in values]
    assert fp.shift_right(-x, bits).tolist() == (-nearest).tolist()
    assert fp.shift_right(x, bits, "floor").tolist() == [v // 2**bits for v in values]


def test_halves_go_away_from_zero():
    x = jnp.array([-24, -8, -7, 0, 7, 8, 24], jnp.int32)
    assert fp.shift_right(x, 4).tolist() == [-2, -1, 0, 0, 0, 1, 2]


def test_saturation_never_reaches_minus_128():
    x = jnp.array([-1000, -128, -127, 0, 127, 128, 1000], jnp.int32)
    assert fp.saturate(x).tolist() == [-127, -127, -127, 0, 127, 127, 127]
    stored = fp.store(x)
    assert stored.dtype == jnp.int8 and (-stored).tolist() == fp.saturate(-x).tolist()


@pytest.mark.parametrize("n", [1, 48, 1040, 1041, 3000])
def test_products_are_exact_in_every_register(n):
    """Also where all entries are as large as they can be, on both sides of 2**24."""
    rng = np.random.default_rng(n)
    x, w = (rng.integers(-127, 128, (k, n)).astype(np.int8) for k in (4, 5))
    x[0], w[0] = 127, 127
    w[1] = -127
    want = x.astype(np.int64) @ w.T.astype(np.int64)
    for registers in ("int8", "float32"):
        held = fp.in_fastest_registers(jnp.asarray(w), registers)
        got = fp.dot(jnp.asarray(x), held)
        assert got.dtype == jnp.int32
        np.testing.assert_array_equal(got, want)


def test_float_registers_only_where_sums_are_exact():
    held = lambda n: fp.in_fastest_registers(jnp.zeros((2, n), jnp.int8), "float32").dtype
    assert held(1040) == jnp.float32 and held(1041) == jnp.int8
    assert fp.in_fastest_registers(jnp.zeros((2, 4), jnp.int8), "int8").dtype == jnp.int8
