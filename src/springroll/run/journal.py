"""The journal: one checksummed record per generation, appended and never rewritten. Imports no jax.

With the initial weights it reproduces a run: the score of every member decides every step, and the
random draws follow from the seed. It is also how a run that was killed knows what it had already
done.

Layout, little-endian:

    file    = "SPRGJRN1" | u32 length | JSON {"version", "run_id"} | u32 crc32 | record*

`springroll.run.record` says what a record is. All of a journal have one seed, one dtype and one
number of members.

A record that is torn or damaged and has no whole record after it was being written when the machine
stopped: it is dropped, and said so. Damage before a whole record is not explained by that, and is
an error.
"""

import contextlib
import json
import os
import stat
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from springroll.atomic import json_object, naming, os_line
from springroll.errors import InputError, brief
from springroll.run.record import (
    HEAD,
    MARK,
    WORD,
    Kind,
    Record,
    decode,
    described,
    encode,
    is_whole,
    size_said,
)

try:
    import fcntl
except ImportError:  # Windows: no advisory locks, so two writers are not noticed there
    fcntl = None

VERSION = 1
MAGIC = b"SPRGJRN1"


class Journal:
    """An open journal; `len(journal)` generations, numbered from 0, can be read back.

    Open it with `Journal.open` (to append; takes a lock) or `Journal.read_only`.
    """

    def __init__(self, path: Path, handle: int, run_id: str):
        self.path = path
        self.run_id = run_id
        self.note = ""  # one line about a dropped last record; empty when all was whole
        self.kind: Kind | None = None  # None while there is no record
        self._handle = handle
        self._starts = array("Q")  # byte offset of every record
        self._size = 0  # bytes that are whole
        self._begun = False

    @classmethod
    def open(cls, path: str | Path, run_id: str | None = None) -> "Journal":
        """Open for appending: takes the lock, and changes nothing that is there before `begin`.

        Args:
            path: the journal file, made (empty) where it is missing.
            run_id: the run that writes; None takes what the file says.

        Raises:
            InputError: another process has it open, it belongs to another run, or it is damaged
                before its last record.
        """
        path = Path(path)
        handle = _opened(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            _lock(handle, path)
            header = _header(run_id or "")
            start = _read_at(handle, len(header), 0)
            if len(start) < len(header) and header.startswith(start):  # new, or killed at birth
                return cls(path, handle, run_id or "")
            journal = cls._scan(path, handle)
            if run_id is not None and journal.run_id != run_id:
                raise InputError(
                    f"the journal {path} belongs to run {journal.run_id}, not to {run_id}; "
                    f"give another --out"
                )
        except BaseException:
            os.close(handle)
            raise
        return journal

    @classmethod
    def read_only(cls, path: str | Path) -> "Journal":
        """Open for reading; nothing is changed, and a run may be appending meanwhile."""
        path = Path(path)
        handle = _opened(path, os.O_RDONLY)
        try:
            return cls._scan(path, handle)
        except BaseException:
            os.close(handle)
            raise

    @classmethod
    def _scan(cls, path: Path, handle: int) -> "Journal":
        run_id, position = _read_header(path, handle)
        journal = cls(path, handle, run_id)
        total = os.fstat(handle).st_size
        while position < total:
            content = _whole_record(handle, position, total)
            if content is None:
                if _whole_record_after(handle, position, total):
                    raise InputError(
                        f"the journal {path} is damaged at byte {position}, before its last "
                        f"record (generation {len(journal)}); restore the file, or start a new run"
                    )
                break
            generation, kind = described(content)
            if generation != len(journal):
                raise InputError(
                    f"the journal {path} has generation {generation} at byte {position}, where "
                    f"{len(journal)} belongs; restore the file, or start a new run"
                )
            if journal.kind not in (None, kind):
                raise InputError(
                    f"the journal {path} has a record of {kind} at byte {position}, where those "
                    f"before have {journal.kind}; restore the file, or start a new run"
                )
            journal._add(position, len(content), kind)
            position += len(content)
        if position < total:
            journal.note = (
                f"the last journal record was torn: dropped {total - position} bytes "
                f"after generation {len(journal) - 1}"
            )
        journal._size = position
        return journal

    def _add(self, position: int, size: int, kind: Kind) -> None:
        self.kind = kind
        self._starts.append(position)
        self._size = position + size

    def begin(self) -> None:
        """Make the file whole: write its header, cut off a torn end. `append` begins by itself.

        Raises:
            OSError: the disk is full.
        """
        with naming(self.path):
            if not self._size:
                header = _header(self.run_id)
                os.ftruncate(self._handle, 0)
                _write(self._handle, header)
                self._size = len(header)
            if os.fstat(self._handle).st_size != self._size:
                os.ftruncate(self._handle, self._size)
        self._begun = True

    def append(self, generation: int, seed: int, fitness: np.ndarray) -> None:
        """Write one generation with a single unbuffered write: it survives a kill -9 from here on.

        Args:
            generation: must be `len(journal)`; nothing is appended twice and nothing left out.
            seed: the run's seed.
            fitness: any shape, a dtype of numpy's own.

        Raises:
            OSError: the disk is full; the record is not there.
            InputError: the records before have another seed, dtype or number of members.
        """
        if generation != len(self._starts):
            raise ValueError(f"generation {generation} cannot follow {len(self._starts)} records")
        record = encode(Record(generation, seed, fitness))
        _, kind = described(record)
        self.refuse_other(kind)
        if not self._begun:
            self.begin()
        try:
            with naming(self.path):
                _write(self._handle, record)
        except OSError:
            with contextlib.suppress(OSError):  # else the next to open it drops the torn record
                os.ftruncate(self._handle, self._size)
            raise
        self._add(self._size, len(record), kind)

    def refuse_other(self, kind: Kind) -> None:
        """Raise InputError where records of this kind do not belong to those that are there."""
        if self.kind not in (None, kind):
            raise InputError(
                f"the journal {self.path} is of {self.kind}, and this run of {kind}; restore the "
                f"file, or start a new run with another --out"
            )

    def read(self, generation: int) -> Record:
        """The record of one generation."""
        if not 0 <= generation < len(self._starts):
            raise IndexError(f"the journal holds generations 0 to {len(self._starts) - 1}")
        start = self._starts[generation]
        content = _whole_record(self._handle, start, self._size)
        if content is None:
            raise InputError(f"the journal {self.path} changed while open: damaged at byte {start}")
        try:
            return decode(content)
        except ValueError as error:
            raise InputError(
                f"the journal {self.path} is damaged at byte {start}: {error}"
            ) from None

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Record]:
        return (self.read(generation) for generation in range(len(self)))

    def sync(self) -> None:
        """Have the operating system put it on disk, so that it outlives a power cut too."""
        with naming(self.path):
            os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _record_size(handle: int, position: int, total: int) -> int | None:
    """Bytes of the record that begins at `position`; None where none does or it is cut off."""
    size = size_said(_read_at(handle, HEAD.size, position))
    return size if size is not None and position + size <= total else None


def _whole_record(handle: int, position: int, total: int) -> bytes | None:
    """The bytes of the record at `position`, or None when no undamaged one stands there."""
    size = _record_size(handle, position, total)
    if size is None:
        return None
    content = _read_at(handle, size, position)
    return content if len(content) == size and is_whole(content) else None


def _whole_record_after(handle: int, position: int, total: int, block: int = 1 << 20) -> bool:
    """Whether any whole record starts after the damaged one at `position`.

    A file may be made so that each of its bytes could begin a record as long as the file. After 16
    times its size and some the answer is yes: it was no kill that left this.
    """
    left = 16 * total + (64 << 20)
    position += 1
    while position < total:
        window = _read_at(handle, block + len(MARK) - 1, position)
        found = window.find(MARK)
        while found >= 0:
            left -= _record_size(handle, position + found, total) or 0
            if left < 0 or _whole_record(handle, position + found, total) is not None:
                return True
            found = window.find(MARK, found + 1)
        position += block
    return False


def _header(run_id: str) -> bytes:
    text = json.dumps({"version": VERSION, "run_id": run_id}).encode()
    body = MAGIC + WORD.pack(len(text)) + text
    return body + WORD.pack(zlib.crc32(body))


def _read_header(path: Path, handle: int) -> tuple[str, int]:
    """The run id, and the offset of the first record."""
    start = _read_at(handle, len(MAGIC) + WORD.size, 0)
    if len(start) < len(MAGIC) + WORD.size or not start.startswith(MAGIC):
        raise InputError(
            f"{path} is not a springroll journal: it does not begin with {MAGIC.decode()}"
        )
    length = WORD.unpack(start[len(MAGIC) :])[0]
    end = len(start) + length + WORD.size
    content = _read_at(handle, end, 0) if length < 1 << 16 else b""
    if len(content) < end or zlib.crc32(content[:-4]) != WORD.unpack(content[-4:])[0]:
        raise InputError(f"the journal {path} is damaged at byte 0 (its header); restore the file")
    header = json_object(content[len(start) : -4], f"the header of the journal {path}")
    if header.get("version") != VERSION or not isinstance(header.get("run_id"), str):
        raise InputError(
            f"the journal {path} has format version {brief(header.get('version'))}; "
            f"this springroll reads version {VERSION}"
        )
    return header["run_id"], end


def _opened(path: Path, flags: int) -> int:
    flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe is not waited for
    try:
        handle = os.open(path, flags, 0o644)
    except OSError as error:
        raise InputError(f"cannot open the journal {os_line(error, path)}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError(f"cannot open the journal {path}: it is no file")
    return handle


def _read_at(handle: int, size: int, position: int) -> bytes:
    # Appends are not disturbed: the file is open with O_APPEND.
    os.lseek(handle, position, os.SEEK_SET)
    return os.read(handle, size)


def _write(handle: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]


def _lock(handle: int, path: Path) -> None:
    """One writer per run; the lock goes with the process, however it ends."""
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(f"the run in {path.parent} is being written by another process") from None
