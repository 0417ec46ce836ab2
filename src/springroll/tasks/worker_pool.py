"""A reward function in processes of its own, which are killed when they take too long.

A worker is a fresh interpreter that speaks JSON over pipes, in a session of its own, so that what
it started dies with it. Nothing of the training process is copied into it, nothing is pickled.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from springroll.errors import InputError
from springroll.tasks.problem import Verdict, unscored

LOADING = 120.0  # seconds that importing the function's module may take

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from springroll.tasks.reward_worker import main; main(sys.argv[2], float(sys.argv[3]))"
)


class WorkerLost(Exception):
    """The process was killed for taking too long ("timeout"), or ended by itself ("crashed")."""


class WorkerPool:
    """Calls of a reward function, each with a time limit, spread over some processes.

    Texts of a call that fails get a NaN reward and are counted in `failures` by kind: "timeout",
    "crashed" or "raised". The next call gets a new process.

    Args:
        name: of the function (see `load_function`).
        workers: processes.
        timeout: seconds per call.
        rows: texts per call.

    Raises:
        InputError: the function cannot be loaded.
    """

    def __init__(self, name: str, *, workers: int, timeout: float, rows: int) -> None:
        self.failures: Counter[str] = Counter()
        self._rows, self._timeout = rows, timeout
        self._all = [_Worker(name, timeout) for _ in range(workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._end = weakref.finalize(self, _end_all, self._all)
        self._all[0].start()  # a function that cannot be loaded is found now

    def score(self, texts: Sequence[str], records: Sequence[Any]) -> list[Verdict]:
        """One verdict per text.

        Raises:
            InputError: the function returned something else than one finite float per text.
        """
        starts = range(0, len(texts), self._rows)
        calls = [(texts[i : i + self._rows], records[i : i + self._rows]) for i in starts]
        threads = ThreadPoolExecutor(len(self._all))
        try:
            return [verdict for part in threads.map(self._call, calls) for verdict in part]
        finally:
            threads.shutdown(cancel_futures=True)  # after an error the rest need not be scored

    def close(self) -> None:
        """End the processes. The pool starts new ones should it be used again."""
        _end_all(self._all)

    def _call(self, call: tuple[Sequence[str], Sequence[Any]]) -> list[Verdict]:
        texts, records = call
        worker = self._idle.get()
        try:
            answer = worker.ask({"texts": list(texts), "records": list(records)}, self._timeout)
        except WorkerLost as lost:
            return unscored(self.failures, str(lost), len(texts))
        finally:
            self._idle.put(worker)
        if "refused" in answer:
            raise InputError(answer["refused"])
        if "raised" in answer:
            return unscored(self.failures, "raised", len(texts), answer["raised"])
        return [Verdict(*verdict) for verdict in answer["verdicts"]]


class _Worker:
    def __init__(self, name: str, timeout: float) -> None:
        self._name = name
        self._command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), name, str(timeout)]
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False

    def start(self) -> None:
        self.end()
        self._killed = False
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},  # the device belongs to the training
            start_new_session=True,
        )
        try:
            answer = self._exchange(b"", LOADING)
        except WorkerLost as lost:
            raise InputError(
                f"the reward function {self._name} cannot be loaded in a process of its own: {lost}"
            ) from None
        if "refused" in answer:
            raise InputError(answer["refused"])

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        if self._process is None or self._killed or self._process.poll() is not None:
            self.start()
        try:
            return self._exchange(json.dumps(request).encode() + b"\n", timeout)
        except WorkerLost:
            self.end()
            raise

    def end(self) -> None:
        """Kill the process and all it started, and let go of its pipes."""
        process, self._process = self._process, None
        if process is None:
            return
        _kill(process)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what was not sent yet is lost with its reader
                pipe.close()  # type: ignore[union-attr]

    def _exchange(self, line: bytes, timeout: float) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        late = threading.Timer(timeout, self._too_late)  # ends a blocked write as well as a read
        late.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = b""
        finally:
            late.cancel()
        if answer.endswith(b"\n"):
            return json.loads(answer)
        raise WorkerLost("timeout" if self._killed else "crashed")

    def _too_late(self) -> None:
        self._killed = True
        if self._process is not None:
            _kill(self._process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and the others of its session."""
    if not hasattr(os, "killpg"):
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of them ended before
        os.killpg(process.pid, signal.SIGKILL)


def _end_all(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.end()
