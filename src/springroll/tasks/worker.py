"""A process that runs a user's code and is killed when it takes too long.

A worker is a fresh interpreter in a session of its own, so that what it started dies with it.
Nothing of this process is copied into it, nothing is pickled: they speak over pipes (see
`worker_process`, its inside).
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from typing import Any

from springroll.errors import InputError
from springroll.tasks.worker_process import IDLE, Message, Progress, read_message, write_message

LOADING = 120.0  # seconds that importing a user's module may take

# There is about a process per core; what the user's own environment says comes first.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

_BOOT = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from springroll.tasks.worker_process import Progress; "
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
        return self._running.process.pid if self._running else None

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


class _Running:
    """A process, its pipes, and a thread that kills it when a call takes too long."""

    def __init__(self, arguments: list[str]) -> None:
        handle, self._path = tempfile.mkstemp(prefix="springroll-worker-")
        with open(handle, "wb") as file:
            file.write(bytes(Progress.size))
        self.progress = Progress(self._path)
        self.progress.rest()
        module, *rest = arguments
        command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), module, self._path, *rest]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_ONE_THREAD | os.environ | {"JAX_PLATFORMS": "cpu"},  # the device is the training's
            start_new_session=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests, self.answers = self.process.stdin, self.process.stdout
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
        _kill(self.process)
        self.process.wait()
        self.forget_path()
        for pipe in (self.requests, self.answers):
            with contextlib.suppress(OSError):  # what was not sent yet is lost with its reader
                pipe.close()

    def _guard(self) -> None:
        """Killing the process also ends the read or write that waits for it."""
        seen = self.progress.calls
        while True:
            limit = self._limit
            if self._over.wait(0.1 if limit is None else min(0.1, max(limit / 8, 0.01))):
                return
            calls, now = self.progress.calls, time.monotonic()
            if calls != seen:
                seen, self._since = calls, now
            elif limit is not None and limit is self._limit and now - self._since > limit:
                self.late = True
                _kill(self.process)
                return


def end_all(workers: Iterable[Worker]) -> None:
    for worker in workers:
        worker.end()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and the others of its session."""
    if not hasattr(os, "killpg"):
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of them ended before
        os.killpg(process.pid, signal.SIGKILL)
