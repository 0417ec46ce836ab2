"""Laws of the counted noise at any address: chunking changes nothing, ranges, symmetry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from springroll.noise import counter
from springroll.noise.kinds import NOISE, normal_from_bits, normal_thresholds

SIZE, PAIRS = 96, 4
LARGEST = {"gaussian": 6.4, "int8": 127, "rademacher": 1}

few = settings(max_examples=10, deadline=None, derandomize=True)
words_32 = st.integers(0, 2**32 - 1)
seeds = st.tuples(words_32, words_32).map(lambda pair: np.array(pair, np.uint32))
pair_numbers = st.lists(words_32, min_size=PAIRS, max_size=PAIRS).map(
    lambda numbers: np.array(numbers, np.uint32)
)
epochs = st.integers(0, 2**31 - 1).map(np.int32)


@functools.partial(jax.jit, static_argnums=(3,))
def words(seed, epoch, pairs, size, first):
    return counter.bits(counter.stream(seed, epoch, "w"), pairs, size, first)


@functools.partial(jax.jit, static_argnums=(0, 4))
def sample(kind, seed, epoch, pairs, size):
    return NOISE[kind].sample(counter.stream(seed, epoch, "w"), pairs, size)


@few
@given(seeds, epochs, pair_numbers, st.sampled_from([1, 31, 64]), words_32)
def test_words_do_not_depend_on_how_elements_are_chunked(seed, epoch, pairs, cut, first):
    first = np.uint32(first)  # counters wrap around
    whole = words(seed, epoch, pairs, SIZE, first)
    low = words(seed, epoch, pairs, cut, first)
    high = words(seed, epoch, pairs, SIZE - cut, first + np.uint32(cut))
    np.testing.assert_array_equal(np.concatenate([low, high], 1), whole)


@pytest.mark.parametrize("kind", sorted(NOISE))
@few
@given(seed=seeds, epoch=epochs, pairs=pair_numbers)
def test_rows_are_those_of_single_pairs_and_stay_in_range(kind, seed, epoch, pairs):
    together = np.asarray(sample(kind, seed, epoch, pairs, SIZE))
    for k in range(PAIRS):
        alone = sample(kind, seed, epoch, pairs[k : k + 1], SIZE)
        np.testing.assert_array_equal(alone[0], together[k])
    np.testing.assert_array_equal(sample(kind, seed, epoch, pairs, 7), together[:, :7])
    size = np.abs(together.astype(np.float64))
    assert np.isfinite(size).all() and size.max() <= LARGEST[kind]
    assert kind != "rademacher" or size.min() == 1


@few
@given(st.lists(words_32, min_size=SIZE, max_size=SIZE))
def test_normals_are_symmetric(values):
    word = np.array(values, np.uint32)
    normal = jax.jit(normal_from_bits)
    x, mirrored = normal(jnp.asarray(word)), normal(jnp.asarray(word ^ np.uint32(1)))
    np.testing.assert_array_equal(np.asarray(x), -np.asarray(mirrored))


def test_thresholds_of_the_int8_table_are_symmetric():
    thresholds = normal_thresholds().astype(np.int64)
    assert (np.diff(thresholds) >= 0).all()
    np.testing.assert_array_equal(thresholds + thresholds[::-1], 2**32)
