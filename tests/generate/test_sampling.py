"""Tokens are drawn from the model's distribution, by keys of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.generate.sampling import (
    Draw,
    Sampling,
    bounded,
    choose,
    likeliest,
    log_probability,
    row_keys,
)

DRAW = Draw(jax.random.key(0), jnp.float32(2.0))
LOGITS = jnp.array([2.0, -1.0, 0.5, 2.0])


def test_the_likeliest_is_the_first_of_equals():
    zero = jnp.zeros(1, jnp.int32)
    assert choose(DRAW, LOGITS[None], zero, zero, zero, False).tolist() == [0]


@pytest.mark.parametrize("vocabulary", [5, 300, 512])
def test_the_likeliest_is_where_argmax_finds_it(vocabulary):
    logits = np.random.default_rng(0).integers(-3, 4, (50, vocabulary)).astype(np.float32)
    logits[:10, ::3], logits[10], logits[11, 4:] = -np.inf, -np.inf, np.nan
    np.testing.assert_array_equal(likeliest(jnp.asarray(logits)), np.argmax(logits, axis=-1))


def test_tokens_come_as_often_as_their_probability_says():
    rows = 20_000
    ids = jnp.arange(rows, dtype=jnp.int32)
    logits = jnp.broadcast_to(LOGITS, (rows, 4))
    got = choose(DRAW, logits, ids % 10, ids // 10, jnp.zeros_like(ids), True)
    share = np.bincount(np.asarray(got), minlength=4) / rows
    np.testing.assert_allclose(share, jax.nn.softmax(LOGITS / 2), atol=0.015)


def test_every_row_and_position_has_a_key_of_its_own():
    places = jnp.stack(jnp.meshgrid(*(jnp.arange(4),) * 3), -1).reshape(-1, 3).astype(jnp.int32)
    keys = jax.random.key_data(row_keys(DRAW.key, *places.T))
    assert len({tuple(key) for key in keys.tolist()}) == len(places)
    part = jax.random.key_data(row_keys(DRAW.key, *places[5:7].T))
    np.testing.assert_array_equal(part, keys[5:7])


def test_log_probabilities_are_at_the_temperature_of_drawing():
    tokens = jnp.array([3, 1])
    logits = jnp.stack([LOGITS, LOGITS])
    for sampled, temperature in ((True, 2.0), (False, 1.0)):
        expected = jax.nn.log_softmax(logits / temperature)[jnp.arange(2), tokens]
        got = log_probability(DRAW, logits, tokens, sampled)
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def kept_by_numpy(scaled, top_k, top_p, min_p):
    """Which tokens are kept, by sorting."""
    kept = np.isfinite(scaled)
    if top_k is not None and top_k < len(scaled):
        kept &= scaled >= np.sort(scaled)[-top_k]
    if top_p is not None:
        p = np.where(kept, np.exp(scaled - scaled.max()), 0)
        p = p / p.sum()
        order = np.sort(p)[::-1]
        reached = np.flatnonzero(np.cumsum(order) >= top_p)
        kept &= p >= (order[reached[0]] if reached.size else 0)
    if min_p is not None:
        kept &= np.exp(scaled - scaled.max()) >= min_p
    return kept


@pytest.mark.parametrize(
    "top_k, top_p, min_p",
    [(5, None, None), (None, 0.7, None), (None, None, 0.1), (20, 0.9, 0.05), (1, 1e-6, 1.0)],
)
def test_tokens_are_kept_as_a_sort_keeps_them(top_k, top_p, min_p):
    scaled = 2 * np.random.default_rng(0).standard_normal((16, 300)).astype(np.float32)
    scaled[0, :9] = scaled[0].max()  # equal ones
    scaled[1, :] = 0.0
    scaled[1, 7] = -0.0
    draw = Sampling(1.0, top_k, top_p, min_p).check().draw(0)
    got = jax.jit(bounded)(draw, jnp.asarray(scaled))
    for row, found in zip(scaled, np.asarray(got), strict=True):
        kept = kept_by_numpy(row.astype(np.float64), top_k, top_p, min_p)
        np.testing.assert_array_equal(found > -np.inf, kept)
        np.testing.assert_array_equal(found[kept], row[kept])


def test_more_tokens_than_there_are_keeps_all():
    scaled = jnp.asarray(np.random.default_rng(1).standard_normal((2, 50)), jnp.float32)
    for bounds in (Sampling(1.0, 99), Sampling(1.0, top_p=1.0), Sampling(1.0, min_p=0.0)):
        got = bounded(bounds.draw(0), scaled)
        np.testing.assert_array_equal(got, scaled)


@pytest.mark.parametrize(
    "bounds, message",
    [
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"min_p": 1.5}, "min_p is 1.5; it must be from 0 to 1"),
    ],
)
def test_bounds_out_of_range_are_one_line(bounds, message):
    with pytest.raises(InputError, match=message):
        Sampling(1.0, **bounds).check()
