"""Stop strings end a text wherever tokens cut them, and however the rows were laid out."""

import numpy as np
import pytest

from springroll.errors import InputError
from springroll.generate.stopping import StopStrings
from tests.generate.writing import END, PROMPTS, at_once, generator, tiny

WORDS = ["", "a", "\n", "\n\n", "Que", "stion", ":", " b", "Q", "\n\nQ"]


def decode(tokens):
    return "".join(WORDS[token] for token in tokens)


def slowly(tokens, strings):
    """The number of tokens whose text first holds a stop string."""
    stops = (n for n in range(1, len(tokens) + 1) if any(s in decode(tokens[:n]) for s in strings))
    return next(stops, None)


@pytest.mark.parametrize("strings", [("\nQuestion:",), ("\n\n", "a b"), ("Q",)])
def test_the_first_stop_string_is_found_in_parts_of_any_size(strings):
    stop, rng = StopStrings(strings, decode), np.random.default_rng(0)
    texts = rng.integers(1, len(WORDS), (200, 60)).astype(np.int32)
    expected = [slowly(text.tolist(), strings) or -1 for text in texts]
    start, got = np.zeros(200, int), np.full(200, -1)
    while (going := np.flatnonzero((got < 0) & (start < 60))).size:
        upto = np.minimum(60, start[going] + rng.integers(1, 9, going.size))
        got[going], start[going] = stop.ends(texts[going], start[going], upto), upto
    np.testing.assert_array_equal(got, expected)
    assert np.any(got >= 0)


def test_a_stop_string_over_tokens_that_are_no_text():
    stop = StopStrings(("\nQuestion:",), decode)
    tokens = np.array([[1, 1, 2, 0, 4, 0, 5, 0, 6]], np.int32)
    np.testing.assert_array_equal(stop.ends(tokens, np.array([8]), np.array([9])), [9])


def test_an_empty_stop_string_is_refused():
    with pytest.raises(InputError, match="a stop string is empty"):
        StopStrings(("\n", ""), decode)


def letters(tokens):
    """Two letters per token, of which neighbours share none: stop strings span tokens."""
    return "".join(chr(97 + token % 26) + chr(65 + token // 26) for token in tokens)


@pytest.mark.parametrize(
    "options",
    [
        {"rows": 4, "segment": 4, "log_probabilities": True},
        pytest.param({}, marks=pytest.mark.slow),
    ],
)
def test_rows_end_at_stop_strings_and_are_what_they_were_up_to_there(options):
    _, params, members = tiny()
    usual = at_once()
    one = np.unravel_index(np.argmax(usual.lengths), usual.lengths.shape)
    # Half of one token, a whole one, half of another.
    string = letters(usual.tokens[one][:4].tolist())[3:7]
    stop = StopStrings((string,), letters)
    got = generator(**options, stop=stop).run(params, members, PROMPTS)
    assert got.stopped[one] and got.finished[one] and got.lengths[one] <= 4
    for member, prompt in np.ndindex(usual.lengths.shape):
        row = usual.tokens[member, prompt]
        whole = usual.lengths[member, prompt]
        cut = next((n for n in range(1, whole + 1) if string in letters(row[:n].tolist())), None)
        assert got.stopped[member, prompt] == (cut is not None)
        kept = usual.written[member, prompt] if cut is None else cut
        assert got.written[member, prompt] == kept
        np.testing.assert_array_equal(got.tokens[member, prompt, :kept], row[:kept])
        assert not got.tokens[member, prompt, kept:].any()
        if got.log_probabilities is not None:
            assert not got.log_probabilities[member, prompt, kept:].any()


def test_an_end_token_is_no_text():
    _, params, members = tiny()
    ends = {letters([token]) for token in END}
    got = generator(stop=StopStrings(tuple(ends), letters)).run(params, members, PROMPTS)
    np.testing.assert_array_equal(got.tokens, at_once().tokens)
    np.testing.assert_array_equal(got.lengths, at_once().lengths)
    assert got.finished.any() and not got.stopped.any()
