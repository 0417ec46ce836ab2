"""Corpora: split by document, by content alone; every document on one side; bad ones refused."""

import gzip
import hashlib
import random

import numpy as np
import pytest

from springroll.errors import InputError
from springroll.tasks.corpus import load_corpus


def document(number, length=400):
    rng = random.Random(number)
    return "".join(rng.choice("abcdefgh \n") for _ in range(length)).encode()


def fill(folder, numbers, length=400, name="{}.txt"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / name.format(number)).write_bytes(document(number, length))
    return str(folder)


def parts(text):
    content = text.tobytes()
    assert content[:1] == b"\0"
    return content[1:].split(b"\0")


def test_every_document_is_on_one_side_and_whole(tmp_path):
    corpus = load_corpus(fill(tmp_path / "c", range(200)))
    train, valid = parts(corpus.train), parts(corpus.valid)
    assert sorted(train + valid) == sorted(document(n) for n in range(200))
    assert (len(train), len(valid)) == (corpus.num_train, corpus.num_valid)
    assert 2 <= len(valid) <= 20
    assert corpus.train.dtype == np.uint8
    assert "200 bytes" not in str(corpus) and f"{len(train)} documents" in str(corpus)


def test_neither_paths_nor_order_matter(tmp_path):
    one = load_corpus(fill(tmp_path / "a", range(60)))
    two = load_corpus(fill(tmp_path / "b" / "deep", range(59, -1, -1), name="x{}"))
    assert one.digest == two.digest
    np.testing.assert_array_equal(one.train, two.train)
    np.testing.assert_array_equal(one.valid, two.valid)


def test_a_document_stays_on_its_side_as_the_corpus_grows(tmp_path):
    small = load_corpus(fill(tmp_path / "c", range(300)))
    large = load_corpus(fill(tmp_path / "c", range(600)))
    assert set(parts(small.valid)) <= set(parts(large.valid))
    assert set(parts(small.train)) <= set(parts(large.train))
    assert small.digest != large.digest


def test_documents_are_in_the_order_of_their_hashes(tmp_path):
    hashes = [
        hashlib.sha256(text).digest()
        for text in parts(load_corpus(fill(tmp_path / "c", range(50))).train)
    ]
    assert hashes == sorted(hashes)


def test_equal_documents_never_fall_on_both_sides(tmp_path):
    fill(tmp_path / "c", range(100))
    corpus = load_corpus(fill(tmp_path / "c", range(100), name="copy-{}.txt"))
    assert corpus.num_train + corpus.num_valid == 200
    assert not set(parts(corpus.train)) & set(parts(corpus.valid))


@pytest.mark.parametrize("count", [20, 21, 25])
def test_there_is_always_a_document_on_each_side(tmp_path, count):
    for start in range(0, 300, 50):
        folder = fill(tmp_path / str(start), range(start, start + count))
        corpus = load_corpus(folder)
        assert corpus.num_valid >= 1 and corpus.num_train >= 1


def test_a_giant_document_is_not_the_validation_text(tmp_path):
    """Its hash would put it there: alone it would decide what validation measures."""
    giant = next(
        text
        for text in (document(n, 60_000) for n in range(1000))
        if hashlib.sha256(text).digest()[0] < 12
    )
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "giant.txt").write_bytes(giant)
    corpus = load_corpus(fill(tmp_path / "c", range(100)))
    assert giant in parts(corpus.train)


def test_a_single_file_is_cut_at_line_ends(tmp_path):
    path = tmp_path / "book.txt"
    lines = [f"line {n} of a long book\n" for n in range(20_000)]
    path.write_text("".join(lines))
    corpus = load_corpus(str(path))
    pieces = parts(corpus.train) + parts(corpus.valid)
    assert 90 <= len(pieces) <= 130 and corpus.num_valid >= 2
    assert all(piece.endswith(b"\n") and piece.startswith(b"line ") for piece in pieces)
    assert sorted(b"".join(pieces).splitlines()) == sorted(line.encode()[:-1] for line in lines)
    assert max(map(len, pieces)) < 4096 + 30


def test_a_file_without_lines_is_cut_all_the_same(tmp_path):
    path = tmp_path / "one-line.txt"
    path.write_bytes(document(0, 50_000).replace(b"\n", b" "))
    corpus = load_corpus(str(path))
    assert corpus.num_train + corpus.num_valid == -(-50_000 // (2 * (50_000 // 64)))
    assert corpus.train.size + corpus.valid.size == 50_000 + corpus.num_train + corpus.num_valid


def test_a_file_of_documents_is_split_at_its_zero_bytes(tmp_path):
    path = tmp_path / "documents.bin"
    path.write_bytes(b"\0".join([b"", *(document(n) for n in range(40)), b"", b""]))
    corpus = load_corpus(str(path))
    found = parts(corpus.train) + parts(corpus.valid)
    assert sorted(found) == sorted(document(n) for n in range(40))


def test_a_few_long_files_are_cut_too(tmp_path):
    corpus = load_corpus(fill(tmp_path / "c", range(3), length=100_000))
    assert corpus.num_train + corpus.num_valid > 40
    assert corpus.valid.size < corpus.train.size / 5


@pytest.mark.parametrize("limit", [1024, 5000, 39_999])
def test_a_limit_takes_the_first_bytes(tmp_path, limit):
    corpus = load_corpus(fill(tmp_path / "c", range(100)), max_bytes=limit)
    size = corpus.train.size + corpus.valid.size - corpus.num_train - corpus.num_valid
    assert size == limit
    path = tmp_path / "one.txt"
    path.write_bytes(document(1, 100_000))
    corpus = load_corpus(str(path), max_bytes=limit)
    assert sum(map(len, parts(corpus.train) + parts(corpus.valid))) == limit


def test_the_standard_library_is_a_corpus():
    corpus = load_corpus("stdlib")
    assert corpus.train.size > 4_000_000
    assert corpus.num_train > 300
    assert 0.01 < corpus.valid.size / corpus.train.size < 0.15
    assert corpus.digest == load_corpus("stdlib").digest
    assert b"import" in corpus.valid.tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds 0 bytes of text; 1024 or more are needed"),
        (b"too short", "holds 9 bytes of text; 1024 or more are needed"),
        (b"\0" * 5000, "holds 0 bytes of text"),
        (bytes(range(256)) * 40, "is not text"),
        (
            gzip.compress(b"text " * 5000, mtime=0),
            "is packed by gzip; unpack it, and give the file",
        ),
        (b"\x7fELF\x02\x01\x01" + b"\0" * 500 + bytes(range(30)) * 200, "is not text"),
    ],
)
def test_a_file_without_text_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load_corpus(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_limit_below_any_corpus_is_refused():
    with pytest.raises(InputError, match="max_bytes is 10; a corpus needs 1024 bytes or more"):
        load_corpus("stdlib", max_bytes=10)
