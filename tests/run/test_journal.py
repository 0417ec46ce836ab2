"""The journal: what was appended is read back, a torn end dropped, damage told."""

import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from springroll.errors import InputError
from springroll.run.journal import Journal
from springroll.run.record import Record, decode, encode

DTYPES = ["float32", "int32", "int8", "float64", "bool", "uint16", "float16"]


def fitness(generation, size=16):
    return np.random.default_rng(generation).normal(size=size).astype(np.float32)


def write(path, generations, run_id="run"):
    """A journal of some generations; the byte offset at which each record ends."""
    ends = []
    with Journal.open(path, run_id) as journal:
        journal.begin()
        for generation in range(len(journal), generations):
            journal.append(generation, 7, fitness(generation))
            ends.append(os.path.getsize(path))
    return ends


def assert_holds(path, generations):
    with Journal.read_only(path) as journal:
        assert len(journal) == generations
        for generation, record in enumerate(journal):
            assert (record.generation, record.seed) == (generation, 7)
            np.testing.assert_array_equal(record.fitness, fitness(generation))


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x40
    path.write_bytes(content)


def test_what_was_appended_is_read_back_in_any_order(tmp_path):
    write(tmp_path / "j", 5)
    assert_holds(tmp_path / "j", 5)
    with Journal.read_only(tmp_path / "j") as journal:
        assert journal.run_id == "run"
        np.testing.assert_array_equal(journal.read(3).fitness, fitness(3))
        np.testing.assert_array_equal(journal.read(0).fitness, fitness(0))
        with pytest.raises(IndexError, match="generations 0 to 4"):
            journal.read(5)


def test_two_equal_runs_write_equal_bytes_and_in_pieces_too(tmp_path):
    write(tmp_path / "a", 6)
    for generations in (1, 4, 6):
        write(tmp_path / "b", generations)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(max_side=5))),
    st.integers(0, 2**64 - 1),
)
def test_any_array_survives_to_the_last_bit(array, seed):
    record = decode(encode(Record(3, seed, array)))
    assert record.seed == seed
    assert record.fitness.dtype == array.dtype
    assert record.fitness.shape == array.shape
    assert record.fitness.tobytes() == array.tobytes()


def test_other_byte_orders_and_strides_are_kept_by_value():
    array = np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2]
    np.testing.assert_array_equal(decode(encode(Record(0, 0, array))).fitness, array)
    with pytest.raises(TypeError, match="object cannot be journalled"):
        encode(Record(0, 0, np.array([None])))


def test_nan_and_infinity_are_journalled_as_they_are(tmp_path):
    array = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
    with Journal.open(tmp_path / "j", "run") as journal:
        journal.append(0, 0, array)
        assert journal.read(0).fitness.tobytes() == array.tobytes()


def test_a_record_cannot_be_appended_twice_or_left_out(tmp_path):
    with Journal.open(tmp_path / "j", "run") as journal:
        journal.append(0, 7, fitness(0))
        for generation in (0, 2):
            with pytest.raises(ValueError, match="cannot follow 1 records"):
                journal.append(generation, 7, fitness(0))


def test_the_last_record_torn_at_every_byte_is_dropped_and_said_so(tmp_path):
    path = tmp_path / "j"
    ends = write(path, 3)
    whole = path.read_bytes()
    for size in range(ends[1] + 1, ends[2]):
        path.write_bytes(whole[:size])
        assert_holds(path, 2)  # a reader changes nothing
        assert path.stat().st_size == size
        with Journal.open(path, "run") as journal:
            assert journal.note == (
                f"the last journal record was torn: dropped {size - ends[1]} bytes "
                f"after generation 1"
            )
            assert path.stat().st_size == size
            journal.begin()
        assert path.read_bytes() == whole[: ends[1]]
    write(path, 3)
    assert path.read_bytes() == whole


def test_a_whole_journal_is_said_nothing_about(tmp_path):
    write(tmp_path / "j", 2)
    with Journal.open(tmp_path / "j") as journal:
        assert journal.note == ""


@pytest.mark.parametrize("junk", [b"\0" * 5000, b"SRGR" * 40, b"\xff"])
def test_an_end_of_junk_is_dropped(tmp_path, junk):
    """Some file systems leave zeros at the end after a power cut."""
    path = tmp_path / "j"
    write(path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole + junk)
    with Journal.open(path, "run") as journal:
        assert len(journal) == 3
        assert f"dropped {len(junk)} bytes" in journal.note
        journal.begin()
    assert path.read_bytes() == whole


def test_any_flipped_bit_in_the_last_record_drops_it(tmp_path):
    path = tmp_path / "j"
    ends = write(path, 3)
    whole = path.read_bytes()
    for offset in range(ends[1], ends[2]):
        path.write_bytes(whole)
        flip(path, offset)
        assert_holds(path, 2)


def test_damage_before_the_last_record_is_an_error_at_that_byte(tmp_path):
    path = tmp_path / "j"
    ends = write(path, 4)
    whole = path.read_bytes()
    for offset in range(ends[0], ends[1]):
        path.write_bytes(whole)
        flip(path, offset)
        with pytest.raises(InputError, match=f"damaged at byte {ends[0]}, before its last"):
            Journal.open(path, "run")
        assert len(path.read_bytes()) == len(whole)  # nothing was cut


def test_damage_is_found_across_the_blocks_it_is_searched_in(tmp_path):
    path = tmp_path / "j"
    with Journal.open(path, "run") as journal:
        rng = np.random.default_rng(0)
        for generation in range(3):  # incompressible, 2.4 MB each: wider than a block
            journal.append(generation, 0, rng.integers(0, 2**31, 600_000, dtype=np.int32))
        start = journal._starts[0]
    flip(path, start + 100)
    with pytest.raises(InputError, match=f"damaged at byte {start}"):
        Journal.read_only(path)


def test_a_lost_record_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "j"
    ends = write(path, 3)
    content = path.read_bytes()
    path.write_bytes(content[: ends[0]] + content[ends[1] :])
    with pytest.raises(InputError, match=f"generation 2 at byte {ends[0]}, where 1 belongs"):
        Journal.open(path, "run")


def test_a_header_torn_by_a_kill_is_written_anew(tmp_path):
    path = tmp_path / "j"
    write(path, 0)
    header = path.read_bytes()
    for size in range(len(header)):
        path.write_bytes(header[:size])
        write(path, 2)
        assert_holds(path, 2)


def test_a_damaged_header_or_another_file_is_refused_and_kept(tmp_path):
    path = tmp_path / "j"
    write(path, 0)
    header = path.read_bytes()
    write(path, 2)
    whole = path.read_bytes()
    for offset in range(len(header)):
        path.write_bytes(whole)
        flip(path, offset)
        with pytest.raises(InputError, match=r"not a springroll journal|damaged at byte 0"):
            Journal.open(path, "run")
        assert len(path.read_bytes()) == len(whole)
    path.write_text("my shopping list")
    with pytest.raises(InputError, match="is not a springroll journal"):
        Journal.open(path, "run")
    assert path.read_text() == "my shopping list"


def test_the_journal_of_another_run_is_refused(tmp_path):
    write(tmp_path / "j", 1, run_id="first")
    with pytest.raises(InputError, match="belongs to run first, not to second"):
        Journal.open(tmp_path / "j", "second")


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("springroll.run.journal.VERSION", 2)
    write(tmp_path / "j", 1)
    monkeypatch.undo()
    with pytest.raises(InputError, match="format version 2; this springroll reads version 1"):
        Journal.read_only(tmp_path / "j")


def test_one_writer_at_a_time(tmp_path):
    with Journal.open(tmp_path / "j", "run") as journal:
        journal.append(0, 7, fitness(0))
        with pytest.raises(InputError, match="is being written by another process"):
            Journal.open(tmp_path / "j", "run")
        assert_holds(tmp_path / "j", 1)  # readers are welcome
    write(tmp_path / "j", 2)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot open the journal .*none: No such file"):
        Journal.read_only(tmp_path / "none")
    with pytest.raises(InputError, match="cannot open the journal"):
        Journal.open(tmp_path / "none" / "j", "run")


def test_a_full_disk_leaves_whole_records(tmp_path, monkeypatch):
    path = tmp_path / "j"
    write(path, 2)
    whole = path.read_bytes()
    real = os.write

    def full(handle, content):
        if len(content) < 10:
            raise OSError(28, "No space left on device")
        return real(handle, content[: len(content) // 2])

    with Journal.open(path, "run") as journal:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match=r"No space left on device: .*j'"):
            journal.append(2, 7, fitness(2))
        monkeypatch.undo()
        assert path.read_bytes() == whole
        journal.append(2, 7, fitness(2))
    assert_holds(path, 3)


@pytest.mark.parametrize(
    "other",
    [
        Record(1, 8, fitness(1)),
        Record(1, 7, fitness(1).astype(np.float64)),
        Record(1, 7, fitness(1, size=8)),
    ],
)
def test_records_of_another_seed_dtype_or_population_are_refused(tmp_path, other):
    path = tmp_path / "j"
    write(path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole + encode(other))
    with pytest.raises(InputError, match=r"where those before have seed 7, 16 x float32"):
        Journal.open(path, "run")
    path.write_bytes(whole)
    with (
        Journal.open(path, "run") as journal,
        pytest.raises(InputError, match="is of seed 7, 16 x float32, and this run of seed"),
    ):
        journal.append(*other)
    assert path.read_bytes() == whole


def test_random_damage_never_yields_a_wrong_record(tmp_path):
    """Whatever is done to the file: an error, or a prefix of what was written."""
    path = tmp_path / "j"
    write(path, 6)
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(max(len(content), 1))
            kind = rng.randrange(3)
            if kind == 0:
                content[at : at + 1] = bytes([rng.randrange(256)])
            elif kind == 1:
                del content[at : at + rng.randint(1, 30)]
            else:
                content = content[: at + 1]
        path.write_bytes(content)
        try:
            with Journal.read_only(path) as journal:
                length = len(journal)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert_holds(path, length)
