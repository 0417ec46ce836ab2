"""Corpora in tokens, and tokenizers that are missing or broken."""

import re
import sys

import numpy as np
import pytest
import tokenizers

from springroll.errors import InputError
from springroll.program import pip_install
from springroll.tasks.corpus import load_corpus
from springroll.tasks.text import document_encoder, tokenized


def corpus(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"line {i}: häuser\n" for i in range(900)))
    return load_corpus(str(tmp_path / "text.txt"))


def words(folder):
    """A word-level tokenizer file."""
    known = {"line": 0, ":": 1, "?": 2} | {str(i): 3 + i for i in range(900)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))


def test_tokens_stand_for_the_same_text(tmp_path):
    text = corpus(tmp_path)
    lengths = lambda texts: [[len(word) for word in each.split()] for each in texts]
    found, per_byte = tokenized(text, lengths)
    expected = [len(word) for word in text.train.tobytes().decode().replace("\0", " ").split()]
    assert found.train.dtype == np.int32 and found.train.tolist() == expected
    assert per_byte == found.valid.size / text.valid.size
    assert found.digest == text.digest


def test_a_tokenizer_file_is_used_as_it_is(tmp_path):
    words(tmp_path)
    encode = document_encoder(tmp_path)
    assert encode(["line 5: house", "7"]) == [[0, 8, 1, 2], [10]]
    found, per_byte = tokenized(corpus(tmp_path), encode)
    assert set(found.valid[:4].tolist()) >= {0, 1, 2} and 0 < per_byte < 1


def test_between_documents_stands_the_end_of_a_text(tmp_path):
    words(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [902, 901]}')
    assert document_encoder(tmp_path)(["7", "8 :"]) == [
        [10, 901],
        [11, 1, 901],
    ]  # the first of both


def test_bytes_stay_what_they_are(tmp_path):
    (tmp_path / "config.json").write_text('{"vocab_size": 256}')
    text = corpus(tmp_path)
    found, per_byte = tokenized(text, document_encoder(tmp_path))
    np.testing.assert_array_equal(found.train, text.train)
    np.testing.assert_array_equal(found.valid, text.valid)
    assert per_byte == 1


def test_what_is_missing_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"holds neither tokenizer\.json"):
        document_encoder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot read"):
        document_encoder(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=re.escape(pip_install("hf"))):
        document_encoder(tmp_path)
