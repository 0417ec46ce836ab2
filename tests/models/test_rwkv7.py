"""RWKV-7: what the package `rwkv` computes; scan, chunks, pieces and padding change nothing."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.models import slices
from springroll.models.hf.rwkv7 import blinkdl, blinkdl_config
from springroll.models.rwkv7.config import shapes
from springroll.models.rwkv7.model import RWKV7, State
from tests.compiling import normal, quick_jit
from tests.golden.rwkv7_by_formula import HEAD, rwkv7_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "rwkv7.npz"
LAYERS = 3
jitted = functools.partial(quick_jit, static_argnums=0)


@functools.cache
def case():
    """(model, parameters, golden results) of the checkpoint that the package `rwkv` computed."""
    tensors = rwkv7_checkpoint(LAYERS)
    config = blinkdl_config(tensors, "by formula")

    def leaf(path, shape):
        spelt = "/".join(key.key for key in path)
        found = np.zeros(shape, np.float32)
        for stored in blinkdl.stored(config, spelt, shape, None):
            found[stored.place] = stored.to_leaf(tensors[stored.name], found[stored.place].shape)
        return jnp.asarray(found)

    tree = shapes(config)
    params = jax.tree_util.tree_map_with_path(leaf, tree, is_leaf=lambda x: isinstance(x, tuple))
    return RWKV7(config, chunk=8), params, dict(np.load(GOLDEN))


@jitted
def proceed(model, params, tokens, state):
    return model.proceed(params, tokens, state)


@jitted
def learn(model, params, tokens):
    return jax.value_and_grad(model.loss, has_aux=True)(params, tokens)


read, step = jitted(RWKV7.read), jitted(RWKV7.step)


def close(a, b, atol=1e-5):
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_allclose(x, y, atol=atol)


def one_call(chunk):
    model, params, golden = case()
    model = RWKV7(model.config, chunk=chunk)
    return proceed(model, params, jnp.asarray(golden["tokens"])[None], model.start(1))


@pytest.mark.parametrize("chunk", [0, 8], ids=["token by token", "in chunks"])
def test_logits_and_state_are_those_of_the_package_rwkv(chunk):
    _, _, golden = case()
    assert case()[0].config.head_dim == HEAD
    logits, state = one_call(chunk)
    assert np.std(golden["logits"]) > 0.9
    np.testing.assert_allclose(logits[0], golden["logits"], atol=1e-5)
    for name in State._fields:
        np.testing.assert_allclose(getattr(state, name)[:, 0], golden[name], atol=2e-5)


def test_a_state_carried_across_calls_is_one_call():
    model, params, golden = case()
    tokens, state, found = jnp.asarray(golden["tokens"])[None], model.start(1), []
    for piece in (*jnp.split(tokens[:, :30], 3, axis=1), *jnp.split(tokens[:, 30:], 10, axis=1)):
        logits, state = proceed(model, params, piece, state)
        found.append(logits)
    close((jnp.concatenate(found, axis=1), state), one_call(8))


def test_steps_of_rows_are_one_call():
    """What generation calls: prompts read into some rows, the others left as they are, a step."""
    model, params, golden = case()
    tokens = jnp.asarray(golden["tokens"])[None]
    rows, clock = jnp.array([2, 7, 8, 9], jnp.int32), jnp.int32(0)  # there is no row 7, 8, 9
    _, found = read(model, params, jnp.tile(tokens[:, :10], (4, 1)), jnp.full(4, 10, jnp.int32))
    memory = model.admit(model.memory(3, 16, jnp.float32), found, rows, clock)
    assert not any(np.any(x[:, :2]) for x in jax.tree.leaves(memory))
    layers = [jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(LAYERS)]
    token, seen = jnp.tile(tokens[0, 10], 3), jnp.array([0, 0, 10], jnp.int32)
    logits, found = step(model, params | {"layers": layers}, token, memory, seen, clock)
    np.testing.assert_allclose(logits[2], golden["logits"][10], atol=1e-5)
    alone, _ = proceed(model, params, tokens[:, 10:11], model.start(1))
    np.testing.assert_allclose(logits[0], alone[0, 0], atol=1e-5)
    assert jax.tree.structure(model.keep(memory, found, clock)) == jax.tree.structure(memory)


def test_the_loss_is_the_mean_code_length_and_its_gradient_is_finite():
    model, params, golden = case()
    tokens = jnp.asarray(golden["tokens"])[None]
    (loss, metrics), gradient = learn(model, params, tokens)
    logits = jax.nn.log_softmax(golden["logits"][None, :-1])
    picked = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)
    np.testing.assert_allclose(loss, -jnp.mean(picked), rtol=1e-5)
    np.testing.assert_array_equal(loss, metrics["nats"])
    unread = {"v_down", "v_up", "v_bias"}  # of layer 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.all(np.isfinite(leaf)), path
        learnt = np.any(leaf, axis=tuple(range(1, leaf.ndim)))
        stacked = path[0].key == "layers"
        assert np.all(learnt[path[-1].key in unread :]) if stacked else np.any(learnt), path


def test_padding_on_the_left_changes_nothing():
    """Each row of `read` is what the row alone gives; what stands in the padding is not seen."""
    model, params, golden = case()
    tokens = jnp.asarray(golden["tokens"]).reshape(4, 10)
    lengths = [10, 1, 1, 10]
    logits, state = read(model, params, tokens, jnp.array(lengths, jnp.int32))
    for row, length in enumerate(lengths):
        expected, after = proceed(model, params, tokens[row : row + 1, -length:], model.start(1))
        close(logits[row], expected[0, -1])
        close([x[:, row] for x in state], [x[:, 0] for x in after])
    padding = np.arange(10)[None] < 10 - np.array(lengths)[:, None]
    again = read(model, params, jnp.where(padding, 7, tokens), jnp.array(lengths, jnp.int32))
    for x, y in zip(jax.tree.leaves(again), (logits, *state), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("chunk", [-1, 129])
def test_a_chunk_that_would_overflow_is_refused(chunk):
    with pytest.raises(InputError, match=rf"chunk is {chunk}; expected at most 128, or 0"):
        RWKV7(case()[0].config, chunk=chunk)


@pytest.mark.slow
def test_segments_of_a_long_text_equal_the_whole(monkeypatch):
    """Two segments of 128 tokens and one of 9, forward and backward, with padding at the front."""
    model, params = RWKV7(case()[0].config, chunk=0), case()[1]
    layer = jax.tree.map(lambda x: x[1], params["layers"])
    x, v = normal(0, 2, 265, model.config.hidden), normal(1, 2, 265, model.config.hidden)
    real = jnp.arange(265)[None] >= jnp.array([[0], [130]])
    before = jax.tree.map(lambda x: x[0], model.start(2))
    seen = lambda y: jnp.where(real[..., None], y, np.float32(0))

    def learned():
        """A program of its own each time it is called: `WIDE` is read when it is traced."""
        block = lambda layer, x, v: model.block(layer, x, v, before, np.bool_(False), real, True)

        def run(layer, x, v):
            (y, _, state), pull = jax.vjp(block, layer, x, v)
            zeros = (jnp.zeros_like(v), jax.tree.map(jnp.zeros_like, state))
            return y, state, pull((seen(jnp.cos(y)), *zeros))

        return jax.make_jaxpr(run)(layer, x, v).pretty_print(), quick_jit(run)(layer, x, v)

    text, whole = learned()
    monkeypatch.setattr(slices, "WIDE", 1)
    cut, parts = learned()
    assert "f32[2,128,64]" in cut and "f32[2,128,64]" not in text
    close(seen(parts[0]), seen(whole[0]))
    close(parts[1], whole[1])
    for a, b in zip(*map(jax.tree.leaves, (parts[2], whole[2])), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1, float(jnp.abs(b).max())))


def test_segments_sum_the_gradients_of_short_weights_in_float32():
    w, x = jnp.full((1, 1, 1), 1, jnp.bfloat16), jnp.full((1, 600, 1), 1, jnp.bfloat16)

    def total(w):
        step = lambda w, state, x: (state + jnp.sum(x * w, dtype=jnp.float32), x)
        return slices.in_segments(step, w, jnp.float32(0), x, 1)[0]

    gradient = jax.grad(total)(w)
    assert gradient.dtype == jnp.bfloat16
    assert float(gradient.ravel()[0]) == 600  # a bfloat16 sum of ones ends at 256
