"""Processes of a run that are watched over, as JAX ends them with a trace of its own.

Imports no JAX.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

FOLDER = "SPRINGROLL_WATCHED"  # in the environment: where a watched process leaves its last words
WORDS, TRACE = "words.json", "trace.txt"
GRACE = 2.0  # seconds in which the others end by themselves after the first one failed
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


class Watched:
    """A springroll command in a process of its own, which ends when this process does.

    Args:
        arguments: of the command.
        environment: variables that it has beside those of this process.
        prepare: called in the new process before the command starts.
        restarts: how often it is started again after a signal killed it.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], None] = lambda: None,
        restarts: int = 0,
    ):
        self._arguments, self._environment = list(arguments), dict(environment or {})
        self._prepare, self._restarts = prepare, restarts
        self._asked = False  # by a signal to end
        self._start()

    def poll(self) -> int | None:
        """None while it runs, then its exit code; what ended it is printed once."""
        if self.code is not None or (code := self._process.poll()) is None:
            return self.code
        words, trace = self._left(WORDS), self._left(TRACE)
        self._folder.cleanup()
        if code == -signal.SIGABRT and words:
            self.code, line = json.loads(words)
            print(f"springroll: {line}", file=sys.stderr)
            return self.code
        if code < 0 and self._restarts and not self._asked:
            self._restarts -= 1
            self._start()
            return None
        if code < 0 and trace:
            print(trace, end="", file=sys.stderr)
        self.code = 128 - code if code < 0 else code
        return self.code

    def send(self, number: int) -> None:
        """A signal, if it still runs."""
        self._asked = True
        if self._process.poll() is None:
            self._process.send_signal(number)

    def _start(self) -> None:
        self.code: int | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="springroll-")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "springroll", *self._arguments],
            env={**os.environ, **self._environment, FOLDER: self._folder.name},
            preexec_fn=self._begin,
        )

    def _begin(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # Linux only
            ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        self._prepare()

    def _left(self, name: str) -> str:
        path = Path(self._folder.name, name)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def watch(processes: Sequence[Watched]) -> int:
    """Wait for all of them, and pass on the signals that ask this process to end.

    Where the first one fails, the others are ended.

    Returns:
        The first exit code that is not 0, in the order of the processes; else 0.
    """
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, lambda number, _: _send(processes, number))
            stack.callback(signal.signal, number, before)
        while None in (codes := [each.poll() for each in processes]):
            if codes[0]:
                time.sleep(GRACE)
                _send([each for each in processes if each.poll() is None], signal.SIGKILL)
            time.sleep(0.05)
    return next((code for code in codes if code), 0)


def _send(processes: Sequence[Watched], number: int) -> None:
    for each in processes:
        each.send(number)


def is_watched() -> bool:
    """Whether another process watches over this one."""
    return FOLDER in os.environ


def last_words(line: str, exit_code: int) -> None:
    """What is to be told where JAX ends this process from here on, in place of its trace.

    What libraries print from C goes to a file from the first call on.
    """
    if not is_watched():
        return
    folder = Path(os.environ[FOLDER])
    if not (folder / TRACE).exists():
        sys.stderr.flush()
        screen = os.dup(2)
        os.dup2(os.open(folder / TRACE, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        sys.stderr = os.fdopen(screen, "w", buffering=1, errors="backslashreplace")
    whole = folder / f"{WORDS}.part"
    whole.write_text(json.dumps([exit_code, line]), encoding="utf-8")
    whole.replace(folder / WORDS)
