"""Fresh RWKV-7s: types, spreads, channels and layers that differ, and nothing left to the last."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.models.rwkv7.config import RWKV7_CONFIGS, shapes
from springroll.models.rwkv7.model import RWKV7
from tests.compiling import quick_jit

CONFIG = RWKV7_CONFIGS["rwkv7-tiny"]
MODEL = RWKV7(CONFIG)


@pytest.fixture(scope="module")
def fresh():
    init = quick_jit(MODEL.init)
    return [init(jax.random.key(seed)) for seed in (0, 1)]


def test_the_tree_is_that_of_the_shapes_and_a_key_decides_the_matrices(fresh):
    one, other = fresh
    expected = shapes(CONFIG)
    is_shape = lambda node: isinstance(node, tuple)
    assert jax.tree.structure(one) == jax.tree.structure(expected, is_leaf=is_shape)
    assert jax.tree.map(jnp.shape, one) == expected
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(one))
    assert CONFIG.parameters == sum(x.size for x in jax.tree.leaves(one))
    attn, again = one["layers"]["attn"], other["layers"]["attn"]
    assert not np.array_equal(attn["r_proj"], again["r_proj"])
    assert not np.array_equal(attn["r_proj"], attn["v_proj"])
    np.testing.assert_array_equal(attn["w_bias"], again["w_bias"])


def test_layers_begin_as_the_identity_and_matrices_keep_the_size_of_what_they_are_given(fresh):
    layers = fresh[0]["layers"]
    assert not np.any(layers["attn"]["o_proj"]) and not np.any(layers["ffn"]["value"])
    for matrix, gain, axis in (
        (layers["attn"]["r_proj"], 1.0, -1),
        (layers["attn"]["k_proj"], 0.1, -1),
        (layers["attn"]["g_up"], 0.1, -2),
        (layers["ffn"]["key"], 1.0, -1),
        (fresh[0]["lm_head"], 0.5, -1),
    ):
        assert np.std(matrix) == pytest.approx(gain * matrix.shape[axis] ** -0.5, rel=0.1)


def test_channels_differ_in_what_they_mix_in_and_how_fast_they_forget(fresh):
    attn = fresh[0]["layers"]["attn"]
    for name in "rwkvag":
        assert np.all((attn[f"x_{name}"] >= 0) & (attn[f"x_{name}"] <= 1))
        assert np.all(np.diff(attn[f"x_{name}"], axis=1) < 0)
    decay = np.exp(-np.exp(-0.5) / (1 + np.exp(-attn["w_bias"])))
    assert decay.min() < 0.75 and decay.max() > 0.99
    assert np.all(attn["g_norm"][0] < attn["g_norm"][1])


def test_types_follow_the_parameters_but_for_recurrence_logits_and_loss():
    short = jax.eval_shape(lambda key: MODEL.init(key, jnp.bfloat16), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(short)} == {jnp.dtype(jnp.bfloat16)}
    tokens = jax.ShapeDtypeStruct((2, 9), jnp.int32)
    start = jax.eval_shape(lambda: MODEL.start(2, jnp.bfloat16))
    logits, state = jax.eval_shape(MODEL.proceed, short, tokens, start)
    assert logits.dtype == jnp.float32 and state.wkv.dtype == jnp.float32
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), start
    )
    learn = jax.value_and_grad(MODEL.loss, has_aux=True)
    (loss, metrics), gradient = jax.eval_shape(learn, short, tokens)
    assert {leaf.dtype for leaf in (loss, *metrics.values())} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}


def test_the_program_does_not_grow_with_depth():
    def lines(layers):
        config = RWKV7_CONFIGS["rwkv7-0.1b"]
        model = RWKV7(type(config)(**(vars(config) | {"layers": layers})))
        short = jax.eval_shape(model.init, jax.random.key(0))
        tokens = jax.ShapeDtypeStruct((1, 33), jnp.int32)
        return len(jax.jit(model.apply).lower(short, tokens).as_text().splitlines())

    assert lines(3) == lines(30)
