"""Tokens are drawn from the model's distribution, by keys of their own."""

import jax
import jax.numpy as jnp
import numpy as np

from springroll.generate.sampling import Draw, choose, log_probability, row_keys

DRAW = Draw(jax.random.key(0), jnp.float32(2.0))
LOGITS = jnp.array([2.0, -1.0, 0.5, 2.0])


def test_the_likeliest_is_the_first_of_equals():
    zero = jnp.zeros(1, jnp.int32)
    assert choose(DRAW, LOGITS[None], zero, zero, zero, False).tolist() == [0]


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
