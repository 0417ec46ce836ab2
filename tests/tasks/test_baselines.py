"""The lines to beat are the entropies of the text they are taken of."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from springroll.tasks.text import baselines, bigram_bits, gzip_bits, unigram_bits
from tests.tasks import text_statistics

TEXT = b"\0the cat sat on the mat\n" * 40 + bytes(range(256))


def array(text):
    return np.frombuffer(text, np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=2, max_size=300))
def test_they_equal_the_slow_definitions(text):
    assert unigram_bits(array(text)) == pytest.approx(text_statistics.unigram_bits(text), abs=1e-9)
    assert bigram_bits(array(text)) == pytest.approx(text_statistics.bigram_bits(text), abs=1e-9)


def test_known_texts():
    assert unigram_bits(array(b"aaaaaaaa")) == 0.0
    assert unigram_bits(array(b"abababab")) == 1.0
    assert bigram_bits(array(b"abababab")) == 0.0
    uniform = np.random.default_rng(0).integers(0, 256, 2**20, np.uint8)
    assert unigram_bits(uniform) == pytest.approx(8.0, abs=1e-3)
    assert gzip_bits(uniform) == pytest.approx(8.0, abs=0.01)
    assert gzip_bits(array(TEXT)) == 8 * len(gzip.compress(TEXT, 9)) / len(TEXT)


def test_knowing_the_byte_before_helps():
    text = array(TEXT)
    assert bigram_bits(text) < unigram_bits(text) < 8


def test_rows_are_scored_on_what_they_predict():
    """The first byte of a row is context: not counted, but it is the 'before' of the second."""
    rows = np.stack([array(b"xabab"), array(b"yabba")])
    assert unigram_bits(rows) == 1.0  # four a and four b, no x, no y
    pairs = [b"xa", b"ab", b"ba", b"ab", b"ya", b"ab", b"bb", b"ba"]
    # Given x, y or a the next byte is certain; given b it is a, b, a: 3 of 8 pairs at 0.918 bits.
    assert len(pairs) == 8
    assert bigram_bits(rows) == pytest.approx(3 / 8 * text_statistics.unigram_bits(b"aba"))
    assert gzip_bits(rows) == gzip_bits(array(b"abababba"))


def test_one_row_of_context_is_the_text_itself():
    text = array(TEXT)
    assert bigram_bits(text[None]) == bigram_bits(text)
    assert unigram_bits(text[None]) == unigram_bits(text[1:])


def test_the_names_are_those_of_the_summary():
    assert list(baselines(array(TEXT))) == [
        "unigram_bits_per_byte",
        "bigram_bits_per_byte",
        "gzip_bits_per_byte",
    ]
