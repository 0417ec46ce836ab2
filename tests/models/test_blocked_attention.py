"""Attention in blocks equals the one whose scores are all formed, forward and backward."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from springroll import compat
from springroll.models import attention
from springroll.models.attention_scores import Sight
from springroll.models.blocked_attention import attend_blocks
from springroll.models.decoder_config import llama
from tests.compiling import temporary_bytes

CONFIG = llama(8, 8, 4, 1, vocab=5, head_dim=4)


@st.composite
def cases(draw):
    """(size of a block, times, heads, config, window, sinks, documents)."""
    size = draw(st.sampled_from([4, 8]))
    time, before = draw(st.sampled_from([(7, 0), (16, 0), (21, 0), (5, 9)]))
    config = dataclasses.replace(CONFIG, score_cap=draw(st.sampled_from([0.0, 2.0])))
    window = draw(st.sampled_from([None, 1, 5, 40]))
    return size, time, before, draw(st.sampled_from([1, 2, 4])), config, window


def inputs(time, before, kv_heads, sinks, packed, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
    keys = (2, before + time, kv_heads, 4)
    documents = jnp.asarray(np.sort(rng.integers(0, 3, keys[:2]), axis=1), jnp.int32)
    qkvs = normal(2, time, 4, 4), normal(*keys), normal(*keys), normal(4) if sinks else None
    return qkvs, documents if packed else None


def with_gradient(attend, qkvs, sight):
    """What it returns, and the gradients of a sum of it with fixed weights."""

    @jax.jit
    def both(qkvs, sight):
        y, pull = jax.vjp(lambda qkvs: attend(qkvs, sight), qkvs)
        weight = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return y, pull(weight.astype(y.dtype))

    return both(qkvs, sight)


def formed(config, qkvs, sight):
    return attention._formed(config, *qkvs, sight)


def compare(case, sinks, packed):
    size, time, before, kv_heads, config, window = case
    qkvs, documents = inputs(time, before, kv_heads, sinks, packed)
    sight = Sight(None if window is None else jnp.int32(window), documents)
    expected = with_gradient(functools.partial(formed, config), qkvs, sight)
    got = with_gradient(functools.partial(attend_blocks, config, size), qkvs, sight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)


@pytest.mark.parametrize("examples", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_blocks_equal_the_formed_scores(examples):
    property_of = settings(max_examples=examples, deadline=None, derandomize=True)
    property_of(given(cases(), st.booleans(), st.booleans())(compare))()


def test_in_bfloat16_blocks_are_as_near_to_float32_as_formed_scores():
    qkvs, _ = inputs(21, 0, 2, True, False)
    exact = with_gradient(functools.partial(formed, CONFIG), qkvs, Sight())
    short = jax.tree.map(lambda x: x.astype(jnp.bfloat16), qkvs)
    error = lambda attend: [
        float(jnp.linalg.norm(x.astype(jnp.float32) - y) / jnp.linalg.norm(y))
        for x, y in zip(
            jax.tree.leaves(with_gradient(attend, short, Sight())),
            jax.tree.leaves(exact),
            strict=True,
        )
    ]
    blocks = error(functools.partial(attend_blocks, CONFIG, 8))
    whole = error(functools.partial(formed, CONFIG))
    assert all(x < 1.2 * y + 1e-3 for x, y in zip(blocks, whole, strict=True))


def test_the_layer_takes_blocks_where_scores_would_be_many(monkeypatch):
    qkvs, _ = inputs(300, 0, 2, False, False)
    whole = attention.attend(CONFIG, *qkvs)
    monkeypatch.setitem(attention.FORMED, "cpu", 1 << 10)
    parts = jax.jit(lambda *qkvs: attention.attend(CONFIG, *qkvs))
    assert "while" in str(jax.make_jaxpr(parts)(*qkvs))
    np.testing.assert_allclose(parts(*qkvs), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "time", "size"),
    [
        (64, 64, None),
        (1, 1024, None),
        (64, 128, None),
        (64, 130, 80),
        (8, 4096, 256),
        (8, 3841, 256),
    ],
)
def test_blocks_are_even_and_none_is_larger_than_the_text(rows, time, size):
    assert attention.block_size(rows, time, time) == size
    assert attention.keys_per_query(rows, time) == (
        time if size is None else size * (-(-time // size) + 1) / 2
    )


@pytest.mark.slow
def test_memory_grows_with_the_time_and_not_with_its_square():
    def bytes_of(time):
        shape = lambda heads: jax.ShapeDtypeStruct((1, time, heads, 32), jnp.bfloat16)
        loss = lambda *qkv: jnp.sum(attention.attend(CONFIG, *qkv).astype(jnp.float32))
        learn = jax.jit(jax.grad(loss, (0, 1, 2)))
        return temporary_bytes(learn.lower(shape(8), shape(2), shape(2)).compile())

    assert bytes_of(32_768) < 2.2 * bytes_of(16_384)


def test_cudnn_is_asked_for_what_it_has(monkeypatch):
    """Plain causal attention in short floats, on a device that has cuDNN."""
    config = llama(16, 24, 4, 1, vocab=5)
    x = jnp.zeros((2, 9, 4, 4), jnp.bfloat16)
    asked = []
    cudnns = lambda q, k, v, scale: asked.append(scale) or q
    attend = lambda x, *others, of=config: attention.attend(of, x, x[:, -9:], x, *others)
    monkeypatch.setattr(compat, "cudnn_attention", cudnns)
    attend(x)
    assert not asked and not compat.has_cudnn_attention(8)  # there is none here
    monkeypatch.setattr(compat, "has_cudnn_attention", lambda width: True)
    attend(x)
    assert asked == [0.5]
    attend(x.astype(jnp.float32))
    attend(x, jnp.zeros(4, jnp.bfloat16))
    attend(x, None, Sight(window=jnp.int32(3)))
    attend(x, of=dataclasses.replace(config, score_cap=3.0))
    attention.attend(config, x[:, :3], x, x)  # a prompt that is read on
    assert len(asked) == 1
