"""A layer taken in slices of its width equals the whole one, forward and backward."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.models import slices
from springroll.models.decoder import decoder
from springroll.models.decoder_config import llama
from springroll.planner import working_set
from springroll.quant.int8_weights import int8_of
from springroll.stream.step_programs import StepPrograms
from tests.compiling import temporary_bytes

PLAIN = dataclasses.replace(llama(16, 24, 4, 1, vocab=5), kv_heads=2)
RICH = dataclasses.replace(
    PLAIN, qkv_bias=True, o_bias=True, sinks=True, qk_norm="head", score_cap=3.0
)


def layer_of(config, seed=0):
    """One layer, none of whose leaves is zero."""
    params = decoder(config).init(jax.random.key(seed))["layers"]
    keys = iter(jax.random.split(jax.random.key(1), 99))
    return jax.tree.map(lambda w: w[0] + 0.1 * jax.random.normal(next(keys), w.shape[1:]), params)


def learned(config, layer, x):
    """What the layer returns, and the gradients of its weights and its input."""

    def both(layer, x):
        y, pull = jax.vjp(
            lambda layer, x: decoder(config).block(layer, x, jnp.int32(0))[0], layer, x
        )
        return y, pull(jnp.cos(y))

    return jax.jit(both)(layer, x)


@pytest.mark.parametrize(
    "config", [pytest.param(PLAIN, marks=pytest.mark.slow), RICH], ids=["plain", "rich"]
)
def test_slices_equal_the_whole_layer(config, monkeypatch):
    layer, x = layer_of(config), jax.random.normal(jax.random.key(2), (2, 9, 16))
    whole = learned(config, layer, x)
    monkeypatch.setattr(slices, "WIDE", 18 * 16)
    parts = learned(config, layer, x)
    block = lambda layer, x: decoder(config).block(layer, x, jnp.int32(0))
    text = str(jax.make_jaxpr(block)(layer, x))
    assert text.count("scan[") == 2  # the heads and the hidden units
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), parts, whole)


def test_int8_weights_are_sliced_with_their_scales(monkeypatch):
    layer, x = layer_of(PLAIN), jax.random.normal(jax.random.key(2), (2, 9, 16))
    layer = jax.tree.map(lambda w: int8_of(w) if w.ndim == 2 else w, layer)
    see = lambda: decoder(PLAIN).block(layer, x, jnp.int32(0))[0]
    whole = see()
    monkeypatch.setattr(slices, "WIDE", 18 * 16)
    np.testing.assert_allclose(see(), whole, rtol=1e-4, atol=1e-5)


def test_a_number_of_slices_divides_the_parts(monkeypatch):
    monkeypatch.setattr(slices, "WIDE", 100)
    found = [slices.slices_for(10, width, 12) for width in (1, 10, 11, 45, 70, 1000)]
    assert found == [1, 1, 2, 6, 12, 12]


@pytest.mark.slow
def test_a_large_layer_learns_from_a_long_text_in_half_the_memory(monkeypatch):
    config = llama(4096, 11008, 32, 1)
    given = working_set.arguments(config, 1, 32_768, "float32")

    def temporary():
        back = StepPrograms(decoder(config)).backward.lower(
            given.layer, None, given.x, working_set.INDEX, given.x, given.stats, None
        )
        return temporary_bytes(back.compile())

    parts = temporary()
    monkeypatch.setattr(slices, "WIDE", 1 << 40)
    assert parts < 0.55 * temporary()
