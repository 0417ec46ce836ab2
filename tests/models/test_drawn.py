"""Parts of random arrays, drawn by themselves, have the bits of the whole."""

import dataclasses

import jax
import numpy as np
import pytest

from springroll.models.decoder_config import named
from springroll.models.decoder_weights import drawn_leaves, leaves
from springroll.models.drawn import Drawn, drawn_apart


def test_parts_have_the_bits_of_the_whole():
    key = jax.random.key(7)
    whole = np.asarray(jax.random.normal(key, (3, 40, 24)) * np.float32(0.02))
    drawn = Drawn(key, (3, 40, 24), 0.02)
    for at in [(), (2,), (1, slice(3, 17)), (slice(1, 3),), (0, slice(None)), (2, 5, slice(0, 9))]:
        assert np.asarray(drawn[at]).tobytes() == whole[at].tobytes(), at
    assert np.asarray(drawn[1][4:9]).tobytes() == whole[1, 4:9].tobytes()
    for at in [(slice(None), 1), (slice(0, 3, 2),), (slice(0, 2), slice(0, 3))]:
        with pytest.raises(IndexError, match="not one stretch of memory"):
            drawn[at]


def test_places_beyond_32_bits_have_words_of_their_own():
    drawn = Drawn(jax.random.key(0), (3, 1 << 31), 1.0)
    early, late = (np.asarray(drawn[row, 5:9]) for row in (0, 2))
    assert not np.array_equal(early, late)
    across = np.asarray(drawn[1, (1 << 31) - 4 :])
    assert np.array_equal(np.asarray(drawn[1, (1 << 31) - 2 :]), across[2:])


@pytest.mark.parametrize("name", ["llama-tiny", "moe-tiny"])
def test_the_leaves_of_a_decoder_are_those_that_are_drawn_whole(name):
    config, key = dataclasses.replace(named(name), qkv_bias=True), jax.random.key(3)
    for (path, whole), (same, drawn) in zip(
        leaves(config, key), drawn_leaves(config, key), strict=True
    ):
        assert path == same
        assert np.asarray(drawn).tobytes() == np.asarray(whole).tobytes(), path


def test_a_key_of_another_kind_is_not_drawn_in_parts():
    assert drawn_apart(jax.random.key(0))
    key = jax.random.key(0, impl="rbg")
    assert not drawn_apart(key)
    assert not any(isinstance(x, Drawn) for _, x in drawn_leaves(named("llama-tiny"), key))
