"""A process that runs a user's code and is killed when it takes too long.

A worker is a fresh interpreter. Nothing of this process is copied into it, nothing is pickled: they
speak over pipes. What it started dies with it (see `keeper`), and whoever else may hold its ends of
the pipes keeps nobody waiting: reads and writes wait for the process.

Inside the worker `serve` reads requests and writes answers. A message is a line of JSON and, where
its field `bytes` says so, that many raw bytes behind it. The first one a worker writes says that it
is ready: {"ready": true, "pid": number}, or {"refused": line}.
"""

import contextlib
import faulthandler
import io
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from typing import IO, Any, TypeAlias, cast

from springroll.atomic import JsonObject
from springroll.errors import InputError
from springroll.keeper import PATIENCE, keepers_exist

Message: TypeAlias = JsonObject
Answer: TypeAlias = Callable[[Message, bytes], tuple[Message, bytes]]

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
    cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)  # shown when printed
    try:
        answer = load()
    except InputError as error:
        write_message(answers, {"refused": str(error)})
        return
    write_message(answers, {"ready": True, "pid": os.getpid()})
    nowhere = open(os.devnull, "w")  # noqa: SIM115  (for the life of the process)
    worker, until = os.getpid(), min(limit, threading.TIMEOUT_MAX / 2)
    while (request := read_message(requests)) is not None:
        faulthandler.dump_traceback_later(until, exit=True, file=nowhere)
        answered = answer(*request)
        faulthandler.cancel_dump_traceback_later()
        if os.getpid() != worker:
            os._exit(0)  # a child that the user's code forked came back from the call as well
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


LOOK = 100  # milliseconds between two looks whether a process that says nothing has ended
LOADING = 120.0  # seconds that importing a user's module may take

# There is about a process per core; what the user's own environment says comes first.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

_BOOT = (
    "import importlib, json, sys; path, parent = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from springroll.keeper import keep; parent and keep(parent); "
    "from springroll.worker import Progress; "
    "importlib.import_module(sys.argv[2]).main(Progress(sys.argv[3]), *sys.argv[4:])"
)


class WorkerLost(Exception):
    """The process was killed for taking too long ("timeout"), or ended by itself ("crashed").

    `item` is what it was at, as it told its `Progress`; -1 when nothing ran. `line` says more.
    """

    def __init__(self, kind: str, item: int, line: str = "") -> None:
        super().__init__(kind)
        self.kind, self.item, self.line = kind, item, line


class Worker:
    """One process, started when it is first needed and again after it was lost.

    Args:
        module: whose `main(progress, *arguments)` the process runs.
        limit: seconds that a call may take: a request without any progress.
        what: is loaded, for messages: "the reward function module:name".
    """

    def __init__(self, module: str, *arguments: str, limit: float, what: str) -> None:
        self._module, self._arguments, self._limit, self._what = module, arguments, limit, what
        self._running: _Running | None = None

    @property
    def alive(self) -> bool:
        """Whether the process of the last request is still there."""
        return self._running is not None and self._running.alive

    @property
    def pid(self) -> int | None:
        return self._running.pid if self._running else None

    def start(self) -> None:
        """Start the process anew.

        Raises:
            InputError: the user's code cannot be loaded.
        """
        self.end()
        self._running = _Running([self._module, *self._arguments])
        self._running.watch(LOADING)
        try:
            answer, _ = self.receive()
        except WorkerLost as lost:
            raise InputError(
                f"{self._what} cannot be loaded in a process of its own: {lost.kind}"
            ) from None
        finally:
            if self._running is not None:
                self._running.forget_path()
        if "refused" in answer:
            self.end()
            raise InputError(answer["refused"])
        self._running.pid = answer["pid"]

    def ask(self, message: Message, *payload: Any) -> tuple[Message, bytes]:
        """The answer to a request; `payload` is bytes and contiguous arrays.

        Raises:
            WorkerLost: there is none. The next request gets a new process.
        """
        if not self.alive:
            self.start()
        self.send(message, *payload)
        return self.receive()

    def send(self, message: Message, *payload: Any) -> None:
        """Hand a request to the process as it is; `receive` waits for its answer."""
        if self._running is None:
            return  # it was lost before: `receive` will say so
        self._running.watch(self._limit)
        with contextlib.suppress(OSError):  # it ended: `receive` will say so
            write_message(self._running.requests, message, *payload)

    def receive(self) -> tuple[Message, bytes]:
        """What the process says next.

        Raises:
            WorkerLost: it never will.
        """
        running = self._running
        if running is None:
            raise WorkerLost("crashed", IDLE)
        try:
            answer = read_message(running.answers)
        except OSError:
            answer = None
        running.watch(None)
        if answer is not None:
            return answer
        item = running.progress.item
        self.end()
        if running.late:
            raise WorkerLost("timeout", item, f"more than {self._limit:g} s")
        raise WorkerLost("crashed", item)

    def end(self) -> None:
        """Kill the process and all it started, and let go of its pipes."""
        running, self._running = self._running, None
        if running is not None:
            running.end()


def _screen() -> int | None:
    """Where this process says things: another file than 2, where it is watched over."""
    try:
        return sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):  # no file behind it
        return None


class _Running:
    """A process, our ends of its pipes, and a thread that kills it when a call takes too long."""

    def __init__(self, arguments: list[str]) -> None:
        handle, self._path = tempfile.mkstemp(prefix="springroll-worker-")
        with open(handle, "wb") as file:
            file.write(bytes(Progress.size))
        self.progress = Progress(self._path)
        self.progress.rest()
        module, *rest = arguments
        outlived = os.getpid() if keepers_exist() else None
        where = json.dumps([sys.path, outlived])
        command = [sys.executable, "-c", _BOOT, where, module, self._path, *rest]
        self.process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=_screen(),
            env=_ONE_THREAD | os.environ | {"JAX_PLATFORMS": "cpu"},  # the device is the training's
            start_new_session=True,
        )
        self.pid: int | None = None  # of the worker itself, once it is ready
        self.requests = io.BufferedWriter(_Pipe(self.process, self.process.stdin))
        self.answers = io.BufferedReader(_Pipe(self.process, self.process.stdout))
        self.late = False
        self._limit: float | None = None
        self._since = 0.0
        self._over = threading.Event()
        threading.Thread(target=self._guard, daemon=True).start()

    @property
    def alive(self) -> bool:
        return not self.late and self.process.poll() is None

    def watch(self, limit: float | None) -> None:
        """From now on a call may take `limit` seconds; None: nothing is waited for."""
        self._since, self._limit = time.monotonic(), limit

    def forget_path(self) -> None:
        """Both sides have mapped the file: it needs no name any more."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def end(self) -> None:
        self._over.set()
        self._kill()
        self.forget_path()
        for pipe in (self.requests, self.answers):
            with contextlib.suppress(OSError):  # what was not sent yet is lost with its reader
                pipe.close()

    def _guard(self) -> None:
        """Kill a process that is late, and what is left of one that has ended."""
        last_calls = self.progress.calls
        while True:
            limit = self._limit
            if self._over.wait(0.1 if limit is None else min(0.1, max(limit / 8, 0.01))):
                return
            calls, now = self.progress.calls, time.monotonic()
            if calls != last_calls:
                last_calls, self._since = calls, now
            elif limit is not None and limit is self._limit and now - self._since > limit:
                self.late = True
            if self.late or self.process.poll() is not None:
                self._kill()
                return

    def _kill(self) -> None:
        """End the process and all that it started; so end reads and writes that wait for it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended before
            if keepers_exist():
                self.process.terminate()  # the keeper ends the others, and itself
            elif os.name == "nt":
                self.process.kill()
            else:
                os.killpg(self.process.pid, signal.SIGKILL)
        try:
            self.process.wait(PATIENCE + 1)
        except subprocess.TimeoutExpired:  # somebody stopped the keeper
            self.process.kill()
            self.process.wait()


class _Pipe(io.RawIOBase):
    """Our end of a pipe. Reads and writes wait until the process has ended, and not for others that
    hold the other end, as a child of the process may."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: IO[bytes] | None) -> None:
        assert pipe is not None
        self._process, self._pipe = process, pipe
        self._poll = None
        if hasattr(select, "poll"):  # all but Windows, where pipes are waited for
            os.set_blocking(pipe.fileno(), False)
            self._poll = select.poll()
            self._poll.register(pipe, select.POLLOUT if pipe.writable() else select.POLLIN)

    def readable(self) -> bool:
        return self._pipe.readable()

    def writable(self) -> bool:
        return self._pipe.writable()

    def readinto(self, buffer: Any) -> int:
        while self._ready():
            count = self._pipe.readinto(buffer)  # type: ignore[attr-defined]
            if count is not None:  # it would not have to wait after all
                return count
        return 0

    def write(self, data: Any) -> int:
        while self._ready():
            count: int | None = self._pipe.write(data)
            if count is not None:
                return count
        raise BrokenPipeError

    def close(self) -> None:
        super().close()
        self._pipe.close()

    def _ready(self) -> bool:
        """Wait until there is something to read or room to write; False if there never will be."""
        while self._poll is not None and not self._poll.poll(LOOK):
            if self._process.poll() is not None:
                return bool(self._poll.poll(0))
        return True


def end_all(workers: Iterable[Worker]) -> None:
    for worker in workers:
        worker.end()
