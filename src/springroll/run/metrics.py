"""Where a run's figures go: metrics.jsonl and TensorBoard. Also the peak of memory. No jax."""

import json
import math
import sys
from pathlib import Path
from typing import TypeAlias

from springroll.atomic import JsonObject, replacing
from springroll.errors import InputError

Row: TypeAlias = JsonObject
"""One line of metrics.jsonl: figures by their names; null for what is not finite."""


class MetricsFile:
    """One JSON object per line in `metrics.jsonl`, and the same numbers as TensorBoard scalars.

    Every row has `generation`; on resume the rows after the resumed generation are dropped, as that
    stretch is run, and logged, again.

    Attributes:
        newest: the last value of every figure.
        newest_at: the generation that it is of.

    Args:
        path: the JSON-lines file; continued when it exists.
        tensorboard: folder for the events; None writes none.
        after: the generation that the run goes on from; 0 begins anew.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None, *, after: int = 0):
        rows = [row for row in read_rows(path) if row["generation"] <= after] if after else []
        with replacing(path) as file:
            file.writelines(map(_line, rows))
        self.newest: Row = {}
        self.newest_at: dict[str, int] = {}
        for row in rows:
            self._note(row)
        # Line by line and unbuffered: what was logged survives a kill.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._board = _board(tensorboard, after) if tensorboard else None

    def write(self, row: Row) -> None:
        """Add one row; numbers that are not finite are written as null."""
        row = {name: _finite(value) for name, value in row.items()}
        self._note(row)
        try:
            self._file.write(_line(row))
        except OSError as error:
            raise InputError(
                f"cannot write {self._file.name}: {error.strerror}; "
                f"make room and go on with --resume"
            ) from None
        if self._board:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "generation":
                    self._board.add_scalar(name, value, row["generation"])

    def _note(self, row: Row) -> None:
        self.newest |= row
        generation: int = row["generation"]
        self.newest_at |= {name: generation for name in row}

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics file; lines torn by a kill are left out, a missing file has none."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("generation"), int):
            rows.append(row)
    return rows


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


def _board(folder: Path, after: int):
    from tensorboardX import SummaryWriter

    # TensorBoard hides what an earlier sitting wrote from the purged step on.
    return SummaryWriter(str(folder), purge_step=after + 1 if after else None, flush_secs=10)
