"""Streams through the training text, and the sample of the validation text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from springroll.errors import InputError
from springroll.tasks.corpus import Corpus
from springroll.tasks.text import streams, validation
from tests.tasks import text_statistics

TEXT = np.random.default_rng(0).integers(0, 256, 1000, np.uint8)


def corpus(valid):
    return Corpus("x", TEXT, valid, 1, 1, "")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 10**12))
def test_batches_equal_the_slow_reading(num_streams, tokens, generation):
    batch = streams(TEXT, num_streams, tokens).batch(generation)
    assert batch.shape == (num_streams, tokens + 1) and batch.dtype == np.uint8
    for number, row in enumerate(batch):
        expected = text_statistics.stream(bytes(TEXT), number, num_streams, tokens, generation)
        assert row.tobytes() == expected


def test_each_stream_goes_on_where_it_was():
    """Law: over generations the targets of a stream are its slab, without gap or overlap."""
    made = streams(TEXT, 4, 24)
    for generation in range(60):
        now, then = made.batch(generation), made.batch(generation + 1)
        np.testing.assert_array_equal(now[:, -1], then[:, 0])
    assert made.generations == 250 / 24
    read = np.concatenate([made.batch(g)[:, :-1] for g in range(11)], axis=1)[:, :250]
    np.testing.assert_array_equal(read.ravel(), TEXT)


def test_a_batch_needs_no_cursor():
    made = streams(TEXT, 3, 7)
    later = made.batch(500)
    for generation in (3, 499, 0):
        made.batch(generation)
    np.testing.assert_array_equal(made.batch(500), later)


def test_as_many_streams_as_fit():
    assert streams(TEXT, 100, 9).batch(3).shape == (100, 10)
    with pytest.raises(InputError, match=r"1,000 bytes .* at most 100 streams fit") as error:
        streams(TEXT, 101, 9)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("num_streams", "tokens"), [(0, 4), (4, 0), (-1, 4)])
def test_numbers_of_streams_and_tokens_are_positive(num_streams, tokens):
    with pytest.raises(InputError, match="both must be 1 or more"):
        streams(TEXT, num_streams, tokens)


def test_the_sample_is_spread_over_the_text_without_overlap():
    valid = np.random.default_rng(1).integers(0, 256, 1000, np.uint8)
    rows = validation(corpus(valid), 10, 20)
    assert rows.shape == (10, 21)
    starts = [valid.tobytes().index(row.tobytes()) for row in rows]
    assert starts[0] == 0 and starts[-1] == 1000 - 21
    assert all(104 <= gap <= 110 for gap in np.diff(starts))


def test_a_sample_of_all_of_it_predicts_every_byte_once():
    valid = TEXT[:401]
    rows = validation(corpus(valid), 8, 50)
    assert rows[:, 1:].tobytes() == valid[1:].tobytes()


@pytest.mark.parametrize(
    ("size", "shape"), [(401, (8, 51)), (400, (7, 51)), (51, (1, 51)), (50, (1, 50)), (2, (1, 2))]
)
def test_a_short_text_gives_fewer_rows(size, shape):
    rows = validation(corpus(TEXT[:size]), 8, 50)
    assert rows.shape == shape
    assert bytes(rows[0]) == bytes(TEXT[: shape[1]])
    np.testing.assert_array_equal(rows, validation(corpus(TEXT[:size]), 8, 50))
