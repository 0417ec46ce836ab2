"""Frozen weights of every kind with a thin term: the values and gradients of formed floats."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.models import slices
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS, llama, named
from springroll.models.layers import linear
from springroll.models.rwkv7 import RWKV7, RWKV7_CONFIGS
from springroll.quant.int8_weights import int8_of, real
from springroll.quant.nf4_weights import nf4_of, nf4_real
from springroll.subspace.adapters import first_adapters, with_adapters
from springroll.subspace.optimizers import is_block_matrix
from springroll.thin.factored_array import Factored
from springroll.trees import map_named, tree_bytes
from tests.compiling import normal, temporary_bytes

CODES = {"float": (lambda w: w, lambda w: w), "int8": (int8_of, real), "nf4": (nf4_of, nf4_real)}
RANK = 3


def thin_terms(params):
    """(left, right) of every matrix of a block, none of them zero."""

    def of(path, w):
        if not is_block_matrix(path):
            return None
        *stack, rows, columns = w.shape
        draw = lambda size, seed: 0.1 * normal(seed, *stack, size, RANK)
        return draw(rows, len(path)), draw(columns, 99)

    return map_named(of, params)


def joined(params, thin, make):
    one = lambda w, factors: w if factors is None else make(w, *factors)
    return jax.tree.map(one, params, thin)


def check(loss, params, code, floats, rtol=2e-5):
    """The loss, and the gradients of both factors."""
    thin = thin_terms(params)
    coded = lambda w, left, right: Factored(code(w), left, right)
    formed = lambda w, left, right: (
        floats(code(w)) + jnp.einsum("...or,...ir->...oi", left, right, precision="highest")
    )
    value = lambda make: jax.jit(jax.value_and_grad(lambda thin: loss(joined(params, thin, make))))
    ours, expected = value(coded)(thin), value(formed)(thin)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max()),
        ours,
        expected,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", CODES)
def test_a_product_and_its_gradients_are_those_of_formed_floats(kind, dtype):
    code, floats = CODES[kind]
    w, x = code(normal(0, 5, 70)), normal(1, 2, 3, 70)
    left, right, dy = normal(2, 5, RANK), normal(3, 70, RANK), normal(4, 2, 3, 5)
    wide = lambda y: y.astype(jnp.float32)

    def see(x, left, right):
        base = w if kind != "float" else w.astype(dtype)
        return jnp.sum(wide(linear(x.astype(dtype), Factored(base, left, right))) * dy)

    form = lambda x, left, right: jnp.sum(x @ (floats(w) + left @ right.T).T * dy)
    grads = lambda loss: jax.grad(loss, argnums=(0, 1, 2))(x, left, right)
    near = 2e-6 if dtype == "float32" else 2e-2
    for ours, expected in zip(grads(see), grads(form), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=near * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("llama-tiny", kind) for kind in CODES],
        *[("moe-tiny", kind) for kind in CODES],
    ],
)
def test_a_decoder_learns_factors_as_if_weights_were_formed(name, kind):
    model = decoder(named(name, CONFIGS))
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, model.config.vocab)
    check(lambda params: model.loss(params, tokens)[0], model.init(jax.random.key(0)), *CODES[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", CODES)
def test_so_does_an_rwkv7(kind):
    model = RWKV7(RWKV7_CONFIGS["rwkv7-tiny"])
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, model.config.vocab)
    params = model.init(jax.random.key(0))
    check(lambda params: model.loss(params, tokens)[0], params, *CODES[kind], rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_slices_of_a_layer_are_those_of_its_codes_and_factors(kind, monkeypatch):
    config = dataclasses.replace(llama(16, 24, 4, 1, vocab=5), kv_heads=2)
    layer = decoder(config).init(jax.random.key(0))["layers"]
    x = normal(2, 2, 9, 16)
    code = CODES[kind][0]
    thin = map_named(
        lambda path, w: (
            Factored(code(w[0]), normal(1, w.shape[1], RANK), normal(2, w.shape[2], RANK))
            if path.endswith("_proj")
            else w[0]
        ),
        layer,
    )
    see = lambda: decoder(config).block(thin, x, jnp.int32(0))[0]
    whole = see()
    monkeypatch.setattr(slices, "WIDE", 18 * 16)
    np.testing.assert_allclose(see(), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_codes_of_no_two_layers_are_floats_at_once(kind):
    """Forward and backward: no array of floats has the shape of a stack of weights."""
    config = llama(32, 96, 2, 5, vocab=16)
    model, code = decoder(config), CODES[kind][0]
    params = model.init(jax.random.key(0))
    thin = thin_terms(params)
    held = map_named(lambda path, w: code(w) if is_block_matrix(path) else w, params)

    def loss(thin, held, tokens):
        weigh = lambda w, factors: w if factors is None else Factored(w, *factors)
        whole = jax.tree.map(weigh, held, thin, is_leaf=lambda x: not isinstance(x, dict))
        return model.loss(whole, tokens)[0]

    tokens = jnp.zeros((2, 8), jnp.int32)
    text = jax.jit(jax.grad(loss)).lower(thin, held, tokens).compile().as_text() or ""
    for shape in ("5,32,32", "5,96,32", "5,32,96"):
        assert f"f32[{shape}]" not in text


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_no_gradient_of_embedding_or_head_is_held():
    model = decoder(llama(64, 96, 2, 1, vocab=1 << 20))
    params = jax.eval_shape(model.init, jax.random.key(0))
    thin = jax.eval_shape(lambda: first_adapters(jax.random.key(0), params, RANK))
    loss = lambda thin, base, tokens: model.loss(with_adapters(base, thin, 1.0), tokens)[0]
    tokens = jax.ShapeDtypeStruct((2, 9), jnp.int32)
    compiled = jax.jit(jax.grad(loss)).lower(thin, params, tokens).compile()
    assert temporary_bytes(compiled) < tree_bytes(params["lm_head"]) / 2
