"""Scalars as TensorBoard events, written by whoever logs them.

tensorboardX's own `SummaryWriter` writes in a thread behind a queue of ten: on a full disk the
thread dies, and the next row but ten waits for it for ever. Its `RecordWriter` writes where it is
called, so that an error is the caller's.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FLUSH_EVERY = 10.0  # seconds


class Board:
    """An event file of one sitting.

    Args:
        folder: made where it is missing.
        after: the generation that the run goes on from; TensorBoard hides what an earlier sitting
            wrote later than that.

    Raises:
        OSError: nothing can be written there; as do all methods.
    """

    def __init__(self, folder: Path, after: int = 0):
        from tensorboardX.proto import event_pb2, summary_pb2  # whose classes are made at run time
        from tensorboardX.record_writer import RecordWriter

        self._event: Any = event_pb2
        self._summary: Any = summary_pb2
        folder.mkdir(parents=True, exist_ok=True)
        # The number of the process, as two sittings may begin within a second.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = RecordWriter(str(folder / name))
        self._flushed = time.monotonic()
        self._write(0, file_version="brain.Event:2")
        if after:
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            self._write(after + 1, session_log=start)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write numbers by their names."""
        value = self._summary.Summary.Value
        for name, number in scalars.items():
            summary = self._summary.Summary(value=[value(tag=name, simple_value=number)])
            self._write(step, summary=summary)
        if time.monotonic() - self._flushed >= FLUSH_EVERY:
            self._flushed = time.monotonic()
            self._file.flush()

    def _write(self, step: int, **content: object) -> None:
        event = self._event.Event(step=step, wall_time=time.time(), **content)
        self._file.write(event.SerializeToString())

    def close(self) -> None:
        """Write the rest; the file is closed also where there is no room for it."""
        self._file.close()
