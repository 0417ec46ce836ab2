"""int8 weights: how far they are from the floats, what a residual keeps, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.models.decoder_config import CONFIGS, shapes
from springroll.models.layers import linear
from springroll.models.rwkv7.config import RWKV7_CONFIGS
from springroll.models.rwkv7.config import shapes as rwkv7_shapes
from springroll.quant import int8_weights
from springroll.quant.int8_weights import (
    Int8,
    dequantize_weights,
    nearest,
    no_residual,
    packed,
    quantize_weights,
    real,
    rounded,
    unpacked,
)
from springroll.trees import named_leaves

int8_of = jax.jit(int8_weights.int8_of)
values_and_residual = jax.jit(int8_weights.values_and_residual, static_argnums=2)
RNG = np.random.default_rng(0)
EVEN = (np.arange(256, dtype=np.uint64) * 2**24 + 2**23).astype(np.uint32)  # all of [0, 1), evenly


def by_row(w):
    """Row by row, in float64: the obvious version of `int8_of` for rows that are not zero."""
    values, scale = np.zeros(w.shape, np.int8), np.zeros(w.shape[:-1])
    for at in np.ndindex(*w.shape[:-1]):
        row = w[at].astype(np.float64)
        scale[at] = np.abs(row).max() / 127
        values[at] = np.rint(row / scale[at])
    return values, scale


@pytest.mark.parametrize("tails", [0, 3])  # normal weights, and ones with outliers
def test_the_error_of_a_product_is_bounded_and_small(tails):
    w = RNG.standard_normal((2, 48, 96)).astype(np.float32)
    if tails:
        w = w * np.exp(tails * RNG.standard_normal(w.shape)).astype(np.float32)
    q = int8_of(jnp.asarray(w))
    values, scale = by_row(w)
    np.testing.assert_allclose(q.scale, scale, rtol=1e-6)
    assert (np.abs(q.values - values) <= 1).all() and (q.values != values).mean() < 1e-3
    x = RNG.standard_normal((50, 96))
    for layer in range(2):
        found = np.asarray(
            linear(jnp.asarray(x, jnp.float32), Int8(q.values[layer], q.scale[layer]))
        )
        exact = x @ w[layer].astype(np.float64).T
        bound = np.abs(x).sum(-1, keepdims=True) * scale[layer] / 2
        assert (np.abs(found - exact) <= bound * (1 + 1e-5)).all()
        if not tails:  # steps of about 2.6 / 127, off by 1 / sqrt(12) of one
            assert 0.004 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.009


def test_weights_on_the_grid_come_back():
    values = RNG.integers(-127, 128, (7, 30)).astype(np.int8)
    values[:, 3] = 127
    on_grid = real(Int8(jnp.asarray(values), jnp.asarray(RNG.uniform(1e-3, 1, 7), jnp.float32)))
    np.testing.assert_array_equal(int8_of(on_grid).values, values)
    np.testing.assert_array_equal(int8_of(on_grid.astype(jnp.float16)).values[:, 3], 127)


def test_rows_of_zeros_have_a_scale_to_learn_with():
    w = np.zeros((3, 4, 9), np.float32)
    w[0, 1], w[0, 2], w[1, 0] = 2.54, -1.27, 1e-40  # a row of subnormal numbers is one of zeros
    q = int8_of(jnp.asarray(w))
    assert (q.scale > 0).all() and np.isfinite(q.scale).all()
    np.testing.assert_allclose(q.scale[0], [0.0075, 0.02, 0.01, 0.0075], rtol=1e-6)
    np.testing.assert_allclose(q.scale[1:] * 127, 1 / 3, rtol=1e-6)  # 1 / sqrt(9)
    np.testing.assert_array_equal(real(q), np.where(np.abs(w) < 1e-30, 0, real(q)))
    np.testing.assert_array_equal(q.values[0, :3, 0], [0, 127, -127])


@pytest.mark.parametrize("width", [8, 4])
def test_values_and_residual_are_the_two_parts_of_one_number(width):
    """Every number they can hold comes back whatever is drawn."""
    size = 1 << width
    fine = np.arange(-127 * size, 127 * size + 1)
    bits = jnp.asarray(RNG.integers(0, 2**32, fine.size, np.uint64).astype(np.uint32))
    values, residual = values_and_residual(jnp.asarray(fine / size, jnp.float32), bits, width)
    assert values.dtype == residual.dtype == jnp.int8
    both = real(Int8(values[None], jnp.asarray([0.5])), packed(residual, width)[None])
    np.testing.assert_array_equal(both[0], fine / size * 0.5)
    values, residual = (np.asarray(x, np.int32) for x in (values, residual))
    np.testing.assert_array_equal(values * size + residual, fine)
    off = np.abs(fine / size - values)
    assert off.max() == 0.5
    plain = nearest(jnp.asarray(fine / size, jnp.float32))
    np.testing.assert_array_equal(values[off < 0.5], plain[off < 0.5])


@pytest.mark.parametrize("n", [1, 2, 7, 16])
def test_two_residuals_of_4_bits_are_in_a_byte(n):
    residual = RNG.integers(-8, 8, (3, 2, n)).astype(np.int8)
    kept = packed(jnp.asarray(residual), 4)
    assert kept.dtype == jnp.uint8 and kept.shape == (3, 2, (n + 1) // 2)
    np.testing.assert_array_equal(unpacked(kept, n), residual)
    assert no_residual(jnp.asarray(residual), 4).shape == kept.shape


@pytest.mark.parametrize("width", [8, 4])
def test_a_step_of_zero_moves_nothing(width):
    """Weights with their residual come back from float32, also where division is not exact."""
    q = int8_of(jnp.asarray(RNG.standard_normal((20, 999)), jnp.float32))
    half = 1 << (width - 1)
    residual = jnp.asarray(RNG.integers(-half, half, q.values.shape), jnp.int8)
    residual = jnp.where(jnp.abs(q.values) == 127, 0, residual)
    bits = jnp.asarray(RNG.integers(0, 2**32, q.values.shape, np.uint64).astype(np.uint32))
    steps = real(q, packed(residual, width)) / q.scale[:, None]
    values, rest = values_and_residual(steps, bits, width)
    np.testing.assert_array_equal(values, q.values)
    np.testing.assert_array_equal(rest, residual)


@pytest.mark.parametrize("width", [8, 4])
def test_values_and_residual_keep_the_average(width):
    size = 1 << width
    steps = RNG.uniform(-126, 126, 300).astype(np.float32)
    repeated = jnp.asarray(steps)[:, None].repeat(256, 1)
    values, residual = values_and_residual(repeated, EVEN[None].repeat(300, 0), width)
    total = np.asarray(values, np.float64) + np.asarray(residual, np.float64) / size
    assert (np.abs(total - steps[:, None]) < 1 / size).all()
    # 256 draws that are spread evenly find the probability to 1 / 512; what is within 2^-15 of a
    # number that can be held is taken for it
    error = np.abs(total.mean(1) - steps) * size
    assert error.max() < 1 / 128 and np.median(error) < 1 / 512
    integers = rounded(repeated, jnp.asarray(EVEN)[None].repeat(300, 0))
    np.testing.assert_allclose(integers.mean(1), steps, atol=1 / 256)


def test_beyond_the_grid_weights_stay_at_its_end():
    steps = jnp.asarray([127.3, 500.0, -127.6, -1e9, 126.9], jnp.float32)
    values, residual = values_and_residual(steps, jnp.zeros(5, jnp.uint32))
    np.testing.assert_array_equal(values, [127, 127, -127, -127, 127])
    assert residual[:4].tolist() == [0, 0, 0, 0] and residual[4] < 0
    np.testing.assert_array_equal(nearest(steps), values)


@pytest.mark.parametrize("dtype, slack", [(jnp.bfloat16, 2**-8), (jnp.float16, 2**-11)])
def test_short_activations_are_rounded_once(dtype, slack):
    """Sums and the scale are float32; what comes out has the type of what goes in."""
    q = int8_of(jnp.asarray(RNG.standard_normal((20, 64)), jnp.float32))
    x = jnp.asarray(RNG.standard_normal((3, 64)), dtype)
    exact = np.asarray(x, np.float64) @ np.asarray(real(q), np.float64).T
    found = linear(x, q)
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=slack, atol=1e-4)


def test_only_the_big_matrices_of_blocks_are_held_in_int8():
    def held(tree):
        arrays = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s, jnp.bfloat16),
            tree,
            is_leaf=lambda s: type(s) is tuple,
        )
        named = named_leaves(jax.eval_shape(quantize_weights, arrays))
        for path, x in named_leaves(arrays).items():  # nothing is lost, floats stay as they are
            assert named[path if path in named else f"{path}/values"].shape == x.shape
            assert path not in named or named[path] == x
        return {p.split("/")[-2] for p, x in named.items() if x.dtype == jnp.int8}

    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert held(shapes(CONFIGS["qwen2.5-0.5b"])) == attention | {
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert held(shapes(CONFIGS["moe-tiny"])) == attention  # not the router, not the experts
    rwkv = rwkv7_shapes(RWKV7_CONFIGS["rwkv7-tiny"])
    assert held(rwkv) == {"r_proj", "k_proj", "v_proj", "o_proj", "key", "value"}


def test_dequantize_gives_floats_of_one_type():
    a_proj = jnp.asarray(RNG.standard_normal((2, 4, 8)), jnp.float32)
    params = {"layers": {"a_proj": a_proj}, "norm": jnp.ones(3)}
    back = dequantize_weights(quantize_weights(params), jnp.bfloat16)
    assert back["norm"].dtype == jnp.float32 and back["layers"]["a_proj"].dtype == jnp.bfloat16
    np.testing.assert_allclose(back["layers"]["a_proj"], a_proj, atol=0.03)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_damaged_weights_are_refused_by_name(bad):
    w = np.ones((2, 3, 4), np.float32)
    w[1, 2, 3] = bad
    with pytest.raises(
        InputError, match="layers/o_proj holds NaN or infinite weights; expected fin"
    ):
        quantize_weights({"layers": {"o_proj": jnp.asarray(w)}})


def test_what_cannot_be_held_is_refused():
    with pytest.raises(InputError, match="no parameter can be held in codes: expected matrices"):
        quantize_weights({"w": jnp.ones((3, 3))})
    with pytest.raises(InputError, match=r"b is float32\[3\]; coded weights are made of floating"):
        quantize_weights({"b": jnp.ones(3)}, lambda path, x: True)
    with pytest.raises(InputError, match=r"w is int8\[3, 3\]; coded weights are made of floating"):
        quantize_weights({"w": jnp.ones((3, 3), jnp.int8)}, lambda path, x: path == "w")
