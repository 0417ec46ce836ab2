"""A population of RWKV-7s on one set of weights: thin terms all through, generation included."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import springroll as sr
from springroll.evolve.members import each_member
from springroll.models.rwkv7.config import rwkv7, shapes
from springroll.models.rwkv7.model import RWKV7
from tests.compiling import quick_jit
from tests.evolve.dense_population import all_params

# Widths that differ all: an array of a member's weight is known by its shape.
CONFIG = rwkv7(24, 2, (3, 5, 6, 7), vocab=40, ffn=44, head_dim=12)
MODEL = RWKV7(CONFIG, chunk=4)
TOKENS = jnp.array([[3, 9, 1, 39, 0, 7], [5, 5, 30, 2, 8, 8]], jnp.int32)
LENGTHS = jnp.array([6, 4], jnp.int32)


def generated(params, tokens, lengths):
    """Prompts read into rows in another order, one more token: all a member computes for a text."""
    logits, found = MODEL.read(params, tokens, lengths)
    rows, clock = jnp.array([1, 0], jnp.int32), jnp.int32(0)
    memory = MODEL.admit(MODEL.memory(2, 8, jnp.float32), found, rows, clock)
    chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    more, found = MODEL.step(params, chosen[::-1], memory, lengths[::-1], clock)
    return jnp.stack([logits, more[::-1]]), MODEL.keep(memory, found, clock)


@pytest.fixture(scope="module")
def population():
    rng = np.random.default_rng(0)
    draw = lambda shape: jnp.asarray(rng.normal(0.3, 0.3, shape), jnp.float32)
    params = jax.tree.map(draw, shapes(CONFIG), is_leaf=lambda x: isinstance(x, tuple))
    roles = sr.discover(lambda p, t: MODEL.loss(p, t)[0], params, TOKENS)
    es = sr.eggroll(pop_size=4, sigma=0.05, rank=2, roles=roles)
    asked = jax.eval_shape(es.ask, es.init(jax.random.key(2), params))
    # Factors drawn here: compiling the draws of 39 parameters takes longer than all else.
    factors = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), asked.factors)
    members = dataclasses.replace(
        asked,
        pairs=jnp.arange(2, dtype=jnp.uint32),
        factors=factors,
        seed=jnp.zeros(2, jnp.uint32),
        epoch=jnp.int32(0),
        sigma=jnp.float32(0.05),
    )
    return params, members, roles


def test_a_member_is_the_model_with_its_weights_formed(population):
    params, members, _ = population
    found = quick_jit(lambda m: each_member(generated, params, m, TOKENS, LENGTHS))(members)
    one = quick_jit(generated)
    for i, weights in enumerate(all_params(params, members)):
        expected = one(jax.tree.map(jnp.asarray, weights), TOKENS, LENGTHS)
        for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(x[i], y, atol=1e-5 * max(1, float(np.max(np.abs(y)))))
    assert np.std(found[0], axis=0).max() > 0.05  # the members differ


def test_every_matrix_is_perturbed_as_one(population):
    _, _, roles = population
    for path, leaf in roles.items():
        name = path.split("/")[-1]
        matrix = name.endswith(("_proj", "_down", "_up")) or name in ("key", "value")
        matrix |= name in ("embed_tokens", "lm_head")
        assert (leaf.kind == "low-rank") == matrix, (path, leaf)


def test_no_weight_is_formed_and_products_are_outside_of_the_scan_over_time(population):
    """The base products of reading have all members, prompts and tokens as their rows."""
    params, members, _ = population
    read = lambda p, t, n: MODEL.read(p, t, n)[0]
    call = jax.jit(lambda m: each_member(read, params, m, TOKENS, LENGTHS))
    text = call.lower(members).as_text()
    found = [tuple(map(int, s.split("x"))) for s in re.findall(r"tensor<([\dx]+)xf32>", text)]
    widths = {(c, CONFIG.hidden) for c in (3, 5, 6, 7, 24, 44, 40)}
    assert (2, 44, 24) in found
    for shape in found:
        formed = len(shape) > 2 and {shape[-2:], shape[:-3:-1]} & widths
        assert not (formed and shape[:1] == (4,)), shape
    wide = re.findall(r"dot_general.*tensor<44x24xf32>\) -> tensor<([\dx]+)xf32>", text)
    assert wide and all(np.prod([int(n) for n in s.split("x")]) == 4 * 2 * 6 * 44 for s in wide)
