"""Every pair of types: a thin weight gives the type and the value of the formed one, or one line.

The formed weight is `dense()`, which adds base and thin term in at least float32 and rounds once.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import springroll as sr
from springroll.errors import InputError
from springroll.thin import Factored, Lattice, factored, product
from springroll.thin.factored_array import common_type, is_tiny

REAL = ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"]
FLOATS = [*REAL, "complex64"]
INTEGERS = ["int8", "int4", "int32"]
WIDE = ["float64", "complex128", "int64", "float32", "complex64", "bfloat16", "int8"]
SHAPE = (4, 3)

property_of = lambda n: settings(max_examples=n, deadline=None, derandomize=True)
kernel = product("mn")(lambda x, w: x @ w)


def conv(x, w):
    """x (rows, m) as one signal of m channels, w (m, n) as a kernel of one tap."""
    return jax.lax.conv_general_dilated(x.T[None], w.T[:, :, None], (1,), "SAME")


def scanned(x, w):
    layers = lambda carry, layer: (carry, x @ layer)
    return jax.lax.scan(layers, 0, jnp.stack([w, w]))[1]


PRODUCTS = {
    "dot": lambda x, w: x @ w,
    "dot, weight first": lambda x, w: w.T @ x.T,
    "einsum": lambda x, w: jnp.einsum("bi,io->ob", x, w),
    "ragged dot": lambda x, w: jax.lax.ragged_dot(x, w[None], jnp.array([5], jnp.int32)),
    "product": kernel,
    "conv": conv,
    "two weights": lambda x, w: x @ (w @ w.T),
    "scan": scanned,
    "while": lambda x, w: jax.lax.fori_loop(0, 2, lambda i, y: y + x @ w, x @ w),
    "cond": lambda x, w: jax.lax.cond(x.shape[0] > 1, lambda: x @ w, lambda: -(x @ w)),
    "remat": lambda x, w: jax.checkpoint(lambda x: x @ w)(x),
    "scaled": lambda x, w: x @ (w * jnp.asarray(0.5, w.dtype)),
    "scaled channels": lambda x, w: x @ (w / jnp.asarray([1, 2, 4], w.dtype)[None]),
    "negative": lambda x, w: x @ -w,
    "sum": lambda x, w: x @ (w + w),
    "difference": lambda x, w: x @ (jnp.ones_like(w) - w),
    "shifted": lambda x, w: x @ (w + jnp.ones_like(w)),
    "concatenated": lambda x, w: x @ jnp.concatenate([w, w], 1),
    "stacked": lambda x, w: jnp.einsum("bi,sio->sbo", x, jnp.stack([w, w])),
    "tiled": lambda x, w: jnp.tile(x, (1, 2)) @ jnp.tile(w, (2, 1)),
    "padded": lambda x, w: jnp.pad(x, ((0, 0), (1, 0))) @ jnp.pad(w, ((1, 0), (0, 0))),
    "reversed": lambda x, w: x @ w[::-1],
    "reshaped": lambda x, w: x.reshape(5, 2, 2)[:, 0] @ w.reshape(2, 2, 3)[0],
    "cut": lambda x, w: x[:, :2] @ jax.lax.dynamic_slice(w, (1, 0), (2, 3)),
    "fft": lambda x, w: jnp.fft.fft(x) @ w,
    "fft, weight first": lambda x, w: w.T @ jnp.fft.fft(x.T, axis=0),
    "imaginary x": lambda x, w: (x * 1j) @ w,
    "imaginary w": lambda x, w: x @ (1j * w),
    "to complex": lambda x, w: x @ w.astype(jnp.complex64),
    "to float32": lambda x, w: x.astype(jnp.float32) @ w.astype(jnp.float32),
    "to bfloat16": lambda x, w: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16),
    "to float16": lambda x, w: x.astype(jnp.float16) @ w.astype(jnp.float16),
}
WEIGHTS = {
    "itself": lambda w: w,
    "lookup": lambda w: jnp.take(w, jnp.array([0, 2, 1, 9]), axis=0),
    "row": lambda w: w[1],
    "rows summed": lambda w: w.sum(0),
    "to integers": lambda w: w.astype(jnp.int8),
    "to float8": lambda w: w.astype(jnp.float8_e5m2),
    "to float32": lambda w: w.astype(jnp.float32),
    "nonlinear": lambda w: jnp.exp(w),
}


def numbers(rng, shape, dtype):
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.asarray(rng.integers(-2, 3, shape)).astype(dtype)
    values = rng.normal(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * rng.normal(size=shape)
    return jnp.asarray(values).astype(dtype)


def unit(dtype):
    """How far apart numbers near 1 are."""
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.inexact) else 0.0


def same(got, want, *dtypes):
    """Equal types; equal values to 1e-6, or to what the shortest of the types can tell apart."""
    assert got.dtype == want.dtype and got.shape == want.shape
    wide = common_type(got.dtype, jnp.complex64)
    got, want = (np.asarray(x.astype(wide)) for x in (got, want))
    size = max(1.0, np.abs(want[np.isfinite(want)]).max(initial=0.0))
    step = max([unit(dtype) for dtype in dtypes])
    atol = size * max(4 * step, 2e-6 if np.dtype(wide) == np.complex64 else 1e-13)
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def compare(names, data):
    """One function on one thin weight of any types, and on that weight formed."""
    pick = lambda options: data.draw(st.sampled_from(options))
    base, factor, other, gain, at = (pick(names) for _ in range(5))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    rank = pick([1, 2, 9])
    left, right = numbers(rng, (4, rank), factor), numbers(rng, (3, rank), other)
    gain = pick([None, jnp.asarray(0.5 if unit(gain) else 2).astype(gain)])
    w = Factored(numbers(rng, SHAPE, base), left, right, gain)
    try:
        factored(lambda w: None)(w)
    except InputError as error:
        assert "\n" not in str(error) and base in str(error)
        return
    real = any(unit(part.dtype) for part in (left, right))
    codes = real and jnp.issubdtype(w.dtype, jnp.integer)  # no formed weight is as exact as they
    formed = w.dense(jnp.float32) if codes else w.dense()
    if jnp.issubdtype(w.dtype, jnp.integer) and not codes:  # exact as long as it fits
        total = (
            np.asarray(w.base, np.int64)
            + np.asarray(w.left, np.int64)
            * (1 if w.gain is None else np.int64(w.gain))
            @ np.asarray(w.right, np.int64).T
        )
        assume(np.abs(total).max() <= jnp.iinfo(w.dtype).max)
    if is_tiny(w.dtype):  # so with the smallest floats, of which some have no infinity
        assume(jnp.abs(w.dense(jnp.float32)).max() <= float(jnp.finfo(w.dtype).max))
    x = numbers(rng, (5, 4), at)
    if data.draw(st.booleans()):
        name = pick(sorted(PRODUCTS))
        fn = lambda w: PRODUCTS[name](x, w)
    else:
        name = pick(sorted(WEIGHTS))
        fn = WEIGHTS[name]
    assume(not codes or name.startswith("to float32"))
    try:
        with jax.numpy_dtype_promotion("standard"):
            want = fn(formed)
    except (TypeError, ValueError, DeprecationWarning):
        return  # JAX does not do that with plain arrays either
    with jax.numpy_dtype_promotion("standard"):
        got = factored(fn, densify_limit=None)(w)
    same(got, want, want.dtype, w.dtype, *(["float32"] if name.startswith("to ") else []))


@pytest.mark.filterwarnings("ignore:.*cannot stay low-rank")
@property_of(20)
@given(st.data())
def test_any_types_give_what_the_formed_weight_gives(data):
    compare([*FLOATS, *INTEGERS], data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*cannot stay low-rank")
@property_of(10_000)
@given(st.data())
def test_many_types_give_what_the_formed_weight_gives(data):
    compare([*FLOATS, *INTEGERS], data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*cannot stay low-rank")
@property_of(3_000)
@given(st.data())
def test_types_of_64_bits_give_what_the_formed_weight_gives(data):
    with jax.enable_x64(True):
        compare(WIDE, data)


def spectrum(params, x):
    """A loss that a lost imaginary part changes."""
    with jax.numpy_dtype_promotion("standard"):
        y = jnp.fft.fft(x) @ params["w"]
        return jnp.sum(jnp.abs(y) ** 2) + jnp.sum(jnp.imag(x @ (1j * params["w"])))


PARAMS = {"w": jax.random.normal(jax.random.key(0), (4, 8))}
X = jax.random.normal(jax.random.key(1), (3, 4))


def test_complex_activations_in_evaluate():
    es = sr.eggroll(pop_size=4, sigma=0.3)
    state = es.init(jax.random.key(2), PARAMS)
    members = es.ask(state)
    fitness = sr.evaluate(spectrum, state, members, X)
    formed = [spectrum(sr.member(state, members, i), X) for i in range(4)]
    np.testing.assert_allclose(fitness, formed, rtol=1e-5)


def test_complex_activations_in_lowgrad():
    """In a subspace of full rank a step of SGD is that of the whole gradient."""
    options = {"rank": 4, "select": "w", "scale": 1.0}
    trainer = sr.lowgrad(spectrum, PARAMS, optax.sgd(1e-2), X, **options)
    state, _ = trainer.update(trainer.init(jax.tree.map(jnp.copy, PARAMS)), X)
    moved = PARAMS["w"] - 1e-2 * jax.grad(spectrum)(PARAMS, X)["w"]
    np.testing.assert_allclose(state.params["w"], moved, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise", [pytest.param("rademacher", marks=pytest.mark.slow), "int8"])
def test_integer_noise_survives_scales_stacks_and_high_ranks(noise):
    """Its factors are int8: a scale or gain in that type would be zero."""

    def fn(params, x):
        w = params["w"] * 0.5 / jnp.arange(1.0, 11)[None]
        return jnp.sum((x @ jnp.stack([w, 2 * w])[1]) ** 2)

    x = jax.random.normal(jax.random.key(1), (3, 12))
    for rank in (1, 9):
        es = sr.eggroll(pop_size=4, sigma=0.3, noise=noise, rank=rank)
        state = es.init(jax.random.key(2), {"w": jnp.ones((12, 10))})
        members = es.ask(state)
        fitness = sr.evaluate(fn, state, members, x)
        formed = [fn(sr.member(state, members, i), x) for i in range(4)]
        np.testing.assert_allclose(fitness, formed, rtol=1e-5)
        assert np.ptp(fitness) > 0


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"left": jnp.ones((4, 2), jnp.complex64)}, "left is complex64 and base float32"),
        ({"gain": jnp.ones((), jnp.complex64)}, "gain is complex64 and base float32"),
        ({"base": jnp.ones((4, 3), jnp.uint8)}, "base is uint8; expected floats"),
        ({"base": jnp.ones((4, 3), bool)}, "base is bool; expected floats"),
        ({"right": jnp.ones((3, 2), jnp.uint8)}, "right is uint8; expected floats"),
        ({"base": jnp.ones((4, 3), jnp.float8_e8m0fnu)}, "base is float8_e8m0fnu; expected"),
        ({"base": jnp.ones((4, 3), jnp.int16)}, "an int16 base with a left in float32 needs a"),
        (
            {
                "base": jnp.ones((4, 3), jnp.int8),
                "left": jnp.ones((4, 2), jnp.int8),
                "right": jnp.ones((3, 2), jnp.int8),
            },
            "an int8 base with a gain in float32 needs a lattice",
        ),
        (
            {"base": jnp.ones((4, 3), jnp.complex64), "lattice": Lattice(0.5)},
            "base is complex64; a lattice rounds real numbers only",
        ),
    ],
)
def test_types_without_a_meaning_are_refused(changed, says):
    parts = {"base": jnp.ones((4, 3)), "left": jnp.ones((4, 2)), "right": jnp.ones((3, 2))}
    weight = Factored(**{**parts, "gain": jnp.float32(0.5), **changed})
    with pytest.raises(InputError, match=says) as error:
        factored(lambda p: p["w"])({"w": weight})
    assert "\n" not in str(error.value) and str(error.value).startswith("w: ")
