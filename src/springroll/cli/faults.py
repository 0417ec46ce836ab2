"""What ended a command, as one line and an exit code; never a traceback on the terminal."""

import contextlib
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from springroll.atomic import os_line
from springroll.cluster.crew import ClusterError
from springroll.errors import InputError, one_line

BAD_INPUT = 2  # exit codes: input, disk or memory
LOST = 3  # another process of the run
FAULT = 70  # of our own, EX_SOFTWARE of sysexits.h
PIPE_CLOSED = 141  # 128 + SIGPIPE, what a shell reports of `springroll ... | head`
_JAX_ERRORS = ("JaxRuntimeError", "XlaRuntimeError")


class Told(NamedTuple):
    """What a command says at last; None: nothing."""

    line: str | None
    exit_code: int


def told(error: Exception, argv: Sequence[str]) -> Told:
    """The end of a command that an exception stopped.

    Args:
        error: what was raised.
        argv: the arguments, for the report of a fault.
    """
    if isinstance(error, InputError):
        return Told(str(error), BAD_INPUT)
    if isinstance(error, ClusterError):
        return Told(str(error), LOST)
    if isinstance(error, BrokenPipeError):
        return Told(None, PIPE_CLOSED)
    if isinstance(error, OSError):
        return Told(os_line(error), BAD_INPUT)
    if isinstance(error, MemoryError) or _device_is_full(error):
        reason = one_line(str(error), 300)
        why = f" ({reason})" if reason else ""
        return Told(f"out of memory{why}; choose a smaller model, population or batch", BAD_INPUT)
    what = one_line(": ".join(filter(None, [type(error).__name__, str(error)])), 300)
    return Told(f"a fault of springroll, please report it: {what}; {_saved(error, argv)}", FAULT)


def quiet_output() -> None:
    """Let what is left to print go nowhere, where standard output is closed or its disk full."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):  # no file behind it, as in tests
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _device_is_full(error: Exception) -> bool:
    return type(error).__name__ in _JAX_ERRORS and "RESOURCE_EXHAUSTED" in str(error)


def _saved(error: Exception, argv: Sequence[str]) -> str:
    """Write a report of a fault; where it is, or the last call where there is no place for it."""
    calls = "".join(traceback.format_exception(error))
    try:
        from springroll import __version__

        about = (
            f"springroll {__version__}, Python {platform.python_version()}, {platform.platform()}"
        )
        handle, path = tempfile.mkstemp(prefix="springroll-fault-", suffix=".txt", text=True)
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{about}\nspringroll {' '.join(argv)}\n\n{calls}")
    except OSError as why:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"raised at {last.filename}:{last.lineno} (its report was not saved: {os_line(why)})"
    return f"its traceback is in {path}"
