"""Where a run's figures go: metrics.jsonl and TensorBoard. Also the peak of memory. No jax."""

import contextlib
import json
import math
import sys
from pathlib import Path
from typing import TypeAlias

from springroll.atomic import JsonObject, json_lines, naming, replacing
from springroll.run.board import Board

Row: TypeAlias = JsonObject
"""One line of metrics.jsonl: figures by their names; null for what is not finite."""


class MetricsFile:
    """One JSON object per line in `metrics.jsonl`, and the same numbers as TensorBoard scalars.

    Every row has `generation`; on resume the rows after the resumed generation are dropped, as that
    stretch is run, and logged, again.

    Attributes:
        newest: the last value of every figure.
        first: the first value of every figure.
        newest_at: the generation that it is of.

    Args:
        path: the JSON-lines file; continued when it exists.
        tensorboard: folder for the events; None writes none.
        after: the generation that the run goes on from; 0 begins anew.

    Raises:
        InputError: the file cannot be read.
        OSError: it cannot be written; as does `write`.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None, *, after: int = 0):
        self._path = path
        rows = [row for row in read_rows(path) if after and row["generation"] <= after]
        with replacing(path) as file:
            file.writelines(map(_line, rows))
        self.newest: Row = {}
        self.first: Row = {}
        self.newest_at: dict[str, int] = {}
        for row in rows:
            self._note(row)
        # Line by line and unbuffered: what was logged survives a kill.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        try:
            self._board = _board(tensorboard, after) if tensorboard else None
        except BaseException:
            self._file.close()
            raise

    def write(self, row: Row) -> None:
        """Add one row; numbers that are not finite are written as null."""
        row = {name: _finite(value) for name, value in row.items()}
        self._note(row)
        with naming(self._path):
            line = memoryview(_line(row))
            while line:  # a disk that gets full takes a part first
                line = line[self._file.write(line) :]
            if self._board:
                numbers = {k: v for k, v in row.items() if isinstance(v, int | float)}
                del numbers["generation"]
                self._board.add(row["generation"], numbers)

    def _note(self, row: Row) -> None:
        self.newest |= row
        self.first = row | self.first
        generation: int = row["generation"]
        self.newest_at |= {name: generation for name in row}

    def close(self) -> None:
        with contextlib.ExitStack() as closing:
            if self._board:
                closing.callback(self._board.close)
            self._file.close()


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics file; lines torn by a kill are left out, a missing file has none."""
    return [row for row in json_lines(path) if _is_row(row)]


def _is_row(row: Row) -> bool:
    """Whether every value is one that `MetricsFile.write` writes."""
    return type(row.get("generation")) is int and all(map(_is_figure, row.values()))


def _is_figure(value: object) -> bool:
    number = isinstance(value, int | float) and abs(value) < 2**63  # NaN and infinity are not
    return value is None or isinstance(value, str) or number


def peak_memory_bytes() -> int:
    """The most memory used so far: the accelerators' own count, else the resident set."""
    jax = sys.modules.get("jax")
    if jax is not None:
        counts = [device.memory_stats() or {} for device in jax.local_devices()]
        peak = sum(count.get("peak_bytes_in_use", 0) for count in counts)
        if peak:
            return peak
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _line(row: Row) -> bytes:
    return (json.dumps(row) + "\n").encode()


def _finite(value: float | str | None) -> float | str | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _board(folder: Path, after: int) -> Board | None:
    return Board(folder, after)
