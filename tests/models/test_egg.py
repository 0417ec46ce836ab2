"""The minGRU as a model: size, state, documents, units, and equal bits in every register."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.models.egg import MATRICES, EggConfig, egg, in_registers
from springroll.thin.discovery import discover
from tests.compiling import quick_jit

PRECISIONS = ["int8", "compat", "float32", "bfloat16"]
KEY, T = jax.random.key(0), 24
precisions = pytest.mark.parametrize("precision", PRECISIONS)


def model_of(precision: Any = "int8", n_layers=2, hidden=16, **options: Any):
    return egg(EggConfig(n_layers=n_layers, hidden=hidden, precision=precision, **options))


def text(length, zeros=()):
    tokens = np.random.default_rng(1).integers(1, 256, length)
    tokens[list(zeros)] = 0
    return jnp.asarray(tokens, jnp.uint8)


@pytest.mark.parametrize(("n_layers", "hidden"), [(1, 16), (3, 48), (6, 256)])
def test_parameter_count(n_layers, hidden):
    model = model_of(n_layers=n_layers, hidden=hidden)
    shapes = jax.eval_shape(model.init, KEY)
    counted = sum(x.size for x in jax.tree.leaves(shapes))
    assert counted == model.config.parameters
    assert counted == 513 * hidden + n_layers * (4 * hidden + 12 * hidden**2)
    if hidden == 256:
        assert counted == 4_856_064


@functools.cache
def ready(precision):
    """(model, params, compiled apply): all tests that can share the compilation."""
    model = model_of(precision, hidden=32)
    return model, quick_jit(model.init)(KEY), quick_jit(model.apply)


@precisions
def test_init(precision):
    model, params, _ = ready(precision)
    one = 16 if model.config.integer else 1
    for leaf in jax.tree.leaves(params):
        assert leaf.dtype == (jnp.int8 if model.config.integer else jnp.dtype(precision))
    for name in MATRICES:
        values = np.asarray(params["blocks"][name], np.float64)
        assert abs(values.std() / one - 1) < 0.06 and abs(values.mean() / one) < 0.06, name
    np.testing.assert_array_equal(params["norm_out"], np.full(32, one))
    np.testing.assert_array_equal(params["blocks"]["bias_h"], np.zeros((2, 32)))


@precisions
def test_whole_equals_piece_by_piece(precision):
    """State is all that is carried; a document begins inside of the second piece."""
    model, params, apply = ready(precision)
    tokens = text(T, zeros=[15])
    whole, last = apply(params, tokens, model.state())
    assert whole.shape == (T, 256) and whole.dtype == jnp.float32
    state, parts = model.state(), []
    for piece in jnp.split(tokens, 4):
        logits, state = apply(params, piece, state)
        parts.append(logits)
    tolerance = 0 if model.config.integer else 2e-2 if precision == "bfloat16" else 1e-4
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=tolerance, rtol=0)
    np.testing.assert_allclose(state, last, atol=tolerance, rtol=0)


@precisions
def test_a_document_starts_afresh(precision):
    """Nothing before a byte of zero is remembered behind it; without it, state is."""
    model, params, apply = ready(precision)
    full = jnp.full_like(model.state(), 100 if model.config.integer else 5.0)
    begun, other = text(T, zeros=[0]), text(T)
    outputs = lambda tokens, state: np.asarray(apply(params, tokens, state)[0])
    np.testing.assert_array_equal(outputs(begun, full), outputs(begun, model.state()))
    assert np.any(outputs(other, full) != outputs(other, model.state()))


@precisions
def test_score_is_the_code_length(precision):
    """-score / bits_scale is the length in bits that the model's distribution gives the text."""
    model, params, apply = ready(precision)
    tokens = text(T + 1)
    fitness, state = quick_jit(model.score)(params, tokens, model.state())
    assert fitness.shape == () and state.shape == (2, 32)
    assert fitness.dtype == (jnp.int32 if model.config.integer else jnp.float32)
    logits, same = apply(params, tokens[:-1], model.state())
    exact = 0 if model.config.integer else 1e-2
    np.testing.assert_allclose(state, same, atol=exact, rtol=0)
    labels = tokens[1:, None].astype(jnp.int32)
    chosen = quick_jit(lambda x, at: jnp.take_along_axis(jax.nn.log_softmax(x), at, axis=-1))(
        logits, labels
    )
    bits = -float(chosen.sum()) / math.log(2)
    got = -float(fitness) / model.bits_scale
    # The published length is cut to whole sixteenths, byte by byte.
    assert bits - T / 8 < got < bits if precision == "compat" else abs(got - bits) < T / 200


@pytest.mark.parametrize(("precision", "hidden"), [("int8", 48), ("compat", 16)])
def test_registers_never_change_a_bit(precision, hidden):
    rng = np.random.default_rng(0)
    narrow = model_of(precision, hidden=hidden, registers="int8")
    wide = model_of(precision, hidden=hidden, registers="float32")
    shapes = jax.eval_shape(narrow.init, KEY)
    params = jax.tree.map(lambda x: jnp.asarray(rng.integers(-127, 128, x.shape), jnp.int8), shapes)
    state = jnp.asarray(rng.integers(-127, 128, (2, hidden)), jnp.int8)
    got = jax.jit(wide.score)(params, text(9), state)
    want = jax.jit(narrow.score)(params, text(9), state)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_registers_fall_back_where_float32_is_not_exact():
    """A sum over 1,041 or more can pass 2**24: W_down of a model 512 wide stays int8."""
    model = model_of(hidden=512, n_layers=1, registers="float32")
    blocks = jax.eval_shape(model.init, KEY)["blocks"]
    moved = jax.eval_shape(lambda p: in_registers(model.config, p), blocks)
    assert {name: moved[name].dtype.name for name in MATRICES} == {
        name: "int8" if name == "w_down" else "float32" for name in MATRICES
    }
    assert moved["bias_f"].dtype == jnp.int8


def test_real_precision_is_close_to_the_integers():
    """The same weights, a sixteenth each: the distributions differ by rounding alone."""
    (integer, params, apply), (real, _, apply_real) = ready("int8"), ready("float32")
    sixteenths = jax.tree.map(lambda x: x.astype(jnp.float32) / 16, params)
    a = np.asarray(apply(params, text(T), integer.state())[0])
    b = np.asarray(apply_real(sixteenths, text(T), real.state())[0])
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99
    assert np.sqrt(np.mean((a - b) ** 2)) < 0.15 * b.std()


def test_the_roles_keep_every_matrix_thin():
    model = model_of(hidden=32)
    params = jax.eval_shape(model.init, KEY)
    roles = discover(model.score, params, jnp.zeros(5, jnp.uint8), model.state())
    vectors = {"norm_out", *(f"blocks/{n}" for n in ("norm_gru", "norm_ffn", "bias_f", "bias_h"))}
    assert {p for p, leaf in roles.items() if leaf.kind == "dense"} == vectors
    for name in MATRICES:
        letters = roles[f"blocks/{name}"].roles
        assert letters and letters[0] == "s" and set(letters[1:]) == {"m", "n"}
    assert roles["embed"].kind == roles["head"].kind == "low-rank"


@pytest.mark.parametrize("options", [{"n_layers": 0}, {"hidden": 0}])
def test_sizes_that_cannot_be(options):
    with pytest.raises(InputError, match="both must be at least 1"):
        model_of(**options)


def test_a_width_whose_norms_32_bits_do_not_hold():
    with pytest.raises(InputError, match="count in 32 bits, so that it is 32,767"):
        EggConfig(hidden=2**15)
    widest, published = EggConfig(hidden=2**15 - 1), EggConfig(hidden=2**15, precision="compat")
    assert widest.hidden + 1 == published.hidden
