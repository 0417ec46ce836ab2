"""The inside of a worker process (see `worker`): messages come in, answers go out, nothing else.

A message is a line of JSON and, where its field `bytes` says so, that many raw bytes behind it.
The first one a worker writes says that it is ready: {"ready": true}, or {"refused": line}.
"""

import faulthandler
import json
import mmap
import os
from collections.abc import Callable
from typing import IO, Any

from springroll.errors import InputError

Message = dict[str, Any]
Answer = Callable[[Message, bytes], tuple[Message, bytes]]

IDLE = -1


class Progress:
    """Two numbers in memory that the worker and the process that asks both see.

    A request may be many calls of a user's code. Each one begins with `begin(item)`: so the other
    side can tell a worker that is slow from one that hangs, and whom a crash is to be blamed on.
    """

    size = 16  # bytes

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._cells = memoryview(mmap.mmap(file.fileno(), self.size)).cast("q")

    def begin(self, item: int) -> None:
        self._cells[1] = item
        self._cells[0] += 1

    def rest(self) -> None:
        """No call runs."""
        self._cells[1] = IDLE

    @property
    def calls(self) -> int:
        return self._cells[0]

    @property
    def item(self) -> int:
        return self._cells[1]


def serve(load: Callable[[], Answer], limit: float) -> None:
    """Answer until the other side closes the pipe.

    What user's code prints goes to stderr, and it finds nothing to read. Should the process that
    asks die, and can no longer end a hanging call, a request ends itself after `limit` seconds.

    Args:
        load: makes what answers; an InputError of it is reported and ends the process.
    """
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    try:
        answer = load()
    except InputError as error:
        write_message(answers, {"refused": str(error)})
        return
    write_message(answers, {"ready": True})
    nowhere = open(os.devnull, "w")  # noqa: SIM115  (for the life of the process)
    while (request := read_message(requests)) is not None:
        faulthandler.dump_traceback_later(limit, exit=True, file=nowhere)
        answered = answer(*request)
        faulthandler.cancel_dump_traceback_later()
        write_message(answers, *answered)


def read_message(pipe: IO[bytes]) -> tuple[Message, bytes] | None:
    """The next message and its bytes; None when the other side has gone."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        return None
    message = json.loads(line)
    size = message.pop("bytes", 0)
    payload = pipe.read(size)
    return (message, payload) if len(payload) == size else None


def write_message(pipe: IO[bytes], message: Message, *payload: Any) -> None:
    """A message and behind it the bytes of all of `payload`: bytes, or contiguous arrays."""
    size = sum(memoryview(part).nbytes for part in payload)
    header = message | {"bytes": size} if size else message
    pipe.write(json.dumps(header).encode() + b"\n")
    for part in payload:
        pipe.write(part)
    pipe.flush()
