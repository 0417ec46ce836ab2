"""Journals and checkpoints of whatever content: what was written, or one line, in little memory."""

import hashlib
import json
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import strategies as st

from springroll.errors import InputError
from springroll.run import checkpoint, journal
from springroll.run.best import Best
from springroll.run.journal import Journal
from springroll.run.record import HEAD, MARK, Record, decode, encode
from tests.hostile import EXAMPLES, damaged, fuzz, other_json
from tests.run.toy import toy

BEST = toy(keep_best=True)
TREE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "step": 3}


def written(folder):
    with Journal.open(folder / "journal", "run") as file:
        for generation in range(3):
            file.append(generation, 1, np.arange(4, dtype=np.float32))
    return (folder / "journal").read_bytes()


def with_checksum(head):
    """A record of any fields whose checksum holds."""
    generation, seed, shape, dtype, payload = head
    fields = (MARK, generation, seed, len(payload), dtype, len(shape))
    body = HEAD.pack(*fields) + struct.pack(f"<{len(shape)}I", *shape) + payload
    return body + struct.pack("<I", zlib.crc32(body))


_HEADS = st.tuples(
    st.sampled_from([3, 3, 3, 0, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
    st.lists(st.sampled_from([0, 1, 4, 2**16, 2**32 - 1]), max_size=70),
    st.sampled_from([b"<f4", b"<f4", b"<i8", b"|O", b"|V9", b"", b"\xff\xff", b"f4,f4"]),
    st.one_of(
        st.binary(max_size=20),
        st.integers(0, 100_000).map(lambda n: zlib.compress(bytes(n))),
        st.just(zlib.compress(bytes(16)) + b"more"),
    ),
)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_journal(examples, tmp_path):
    whole, path = written(tmp_path), tmp_path / "journal"

    def read(content):
        path.write_bytes(content)
        with Journal.read_only(path) as file:
            assert [record.generation for record in file] == list(range(len(file)))

    more = _HEADS.map(lambda head: whole + with_checksum(head))
    fuzz(examples, st.one_of(damaged(whole), more), read)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_checkpoint(examples, tmp_path):
    sidecar = checkpoint.save(tmp_path, 7, TREE, {"note": [1, {"a": 2}]})
    tensors = sidecar.with_suffix(".safetensors")
    about, whole = json.loads(sidecar.read_text()), tensors.read_bytes()
    # As an earlier version wrote it: without a checksum, which would keep all else from being read.
    del about["checksum"]
    about["format"] = checkpoint.FORMAT

    def read(changed):
        said, content = changed
        tensors.write_bytes(content)
        sidecar.write_text(said if isinstance(said, str) else json.dumps(said))
        found, notes = checkpoint.load_newest(tmp_path, TREE)
        assert (found is None) == bool(notes) and "\n" not in "".join(notes)
        Best(tmp_path, BEST)

    fitting = lambda content: (about | {"sha256": hashlib.sha256(content).hexdigest()}, content)
    sidecars = st.one_of(
        other_json(about),
        damaged(sidecar.read_bytes()).map(lambda content: content.decode(errors="replace")),
    )
    inputs = st.one_of(
        st.tuples(sidecars, st.just(whole)),
        damaged(whole).map(fitting),
        _headers(whole).map(fitting),
    )
    fuzz(examples, inputs, read)


def _headers(whole):
    """The file with another header, whose length holds."""
    size = int.from_bytes(whole[:8], "little")
    numbers = whole[8 + size :]

    def packed(header):
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + numbers

    return other_json(json.loads(whole[8 : 8 + size])).map(packed)


def test_a_record_unpacks_to_its_shape_and_no_further():
    fitness = np.arange(4, dtype=np.float32)
    assert (decode(encode(Record(0, 1, fitness))).fitness == fitness).all()
    bomb = zlib.compress(bytes(100_000_000))
    for shape, payload, message in (
        ((4,), bomb, "its payload has another size than its shape"),
        ((2**32 - 1, 2**32 - 1), bomb, "its dtype or shape is none of a fitness"),
        ((5,), zlib.compress(bytes(16)), "its payload has another size"),
        ((4,), zlib.compress(bytes(16)) + b"x", "its payload has another size"),
        ((4,), b"no zlib", "incorrect header"),
        ((1,) * 65, zlib.compress(bytes(4)), "its dtype or shape"),
    ):
        with pytest.raises(ValueError, match=message):
            decode(with_checksum((0, 1, shape, b"<f4", payload)))


def test_a_journal_of_marks_alone_is_refused_in_time(tmp_path):
    """Each of them could begin a record as long as the rest of the file."""
    whole = written(tmp_path)
    mark = HEAD.pack(MARK, 3, 1, 2_000_000, b"<f4", 0)
    (tmp_path / "journal").write_bytes(whole + mark * 70_000)
    with pytest.raises(InputError, match=r"damaged at byte \d+, before its last record"):
        Journal.read_only(tmp_path / "journal")


def test_a_header_of_a_journal_is_an_object(tmp_path):
    for text in (b"[" * 60_000, b"[1]", b'{"version": 1}', b'{"version": [1], "run_id": "x"}'):
        body = journal.MAGIC + struct.pack("<I", len(text)) + text
        (tmp_path / "journal").write_bytes(body + struct.pack("<I", zlib.crc32(body)))
        with pytest.raises(InputError, match=r"is not a JSON|nested deeper|format version"):
            Journal.read_only(tmp_path / "journal")


def test_a_pipe_or_a_folder_in_place_of_a_journal_is_refused(tmp_path):
    path = tmp_path / "journal"
    for make, remove in ((os.mkfifo, os.unlink), (os.mkdir, os.rmdir)):
        make(path)
        for opened in (Journal.read_only, Journal.open):
            with pytest.raises(InputError, match="cannot open the journal"):
                opened(path)
        remove(path)
