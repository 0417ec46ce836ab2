"""Losses under `jax.shard_map` with its checks on: rows dealt out, weights on every device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.models.cross_entropy import cross_entropy
from springroll.models.decoder import decoder
from springroll.models.decoder_config import named
from springroll.models.rwkv7 import model as rwkv7
from springroll.models.rwkv7.config import RWKV7Config
from tests.compiling import normal, quick_jit

SMALL = dict(vocab=64, layers=2, hidden=32, head_dim=16, ffn=32)
RANKS = dict(decay_rank=4, a_rank=4, v_rank=4, gate_rank=4)
RWKV = rwkv7.RWKV7(RWKV7Config(**SMALL, **RANKS), chunk=4)


def shared(fn):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.P("d"), jax.P()
    return jax.shard_map(fn, mesh=mesh, in_specs=(whole, rows), out_specs=(whole))


@pytest.mark.parametrize("name", ["llama-tiny", "moe-tiny", "rwkv7"])
def test_models_have_gradients(name):
    model = RWKV if name == "rwkv7" else decoder(named(name))
    init = functools.partial(rwkv7.init, RWKV.config) if name == "rwkv7" else model.init
    params = jax.eval_shape(init, jax.random.key(0))
    loss = lambda params, tokens: model.loss(params, tokens)[0]
    tokens = jnp.zeros((4, 17), jnp.int32)
    found = jax.eval_shape(shared(jax.grad(loss)), params, tokens)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, params)


def test_a_chunked_cross_entropy_is_that_of_all_rows():
    x, head = normal(0, 4, 8, 6), normal(1, 10, 6)
    targets = jnp.asarray(np.arange(32).reshape(4, 8) % 10, jnp.int32)
    loss = lambda head, rows: cross_entropy(rows[0], head, rows[1], chunk=40)
    expected = quick_jit(jax.grad(loss))(head, (x, targets))
    found = quick_jit(shared(jax.grad(loss)))(head, (x, targets))
    np.testing.assert_allclose(np.asarray(found) / 2, expected, atol=1e-6)  # summed over devices
