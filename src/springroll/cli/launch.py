"""`springroll launch -n 2 -- pretrain ...`: one run in several processes of this machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from springroll.cli.bench import split
from springroll.cli.options import parse
from springroll.cluster.detect import LAUNCHED
from springroll.cpu import cores
from springroll.errors import InputError
from springroll.run.options import PROCESSES, check_ranges, option


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Start a command in several processes of this machine, which share one run.

    The command stands behind ` -- `, as in
    `springroll launch -n 2 -- pretrain --recipe demo --out runs/shared`. Each process has its part
    of the cores. On several machines, start the command on each of them by srun or mpirun, or with
    --coordinator HOST:PORT --processes N --process I.
    """

    processes: int = option(2, PROCESSES)
    """Processes to start; -n for short."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(argv: Sequence[str]) -> int:
    """The first exit code that is not 0, in the order of the processes; else 0."""
    argv, command = split(list(argv))
    argv = ["--processes" if each == "-n" else each for each in argv]
    options = parse(LaunchOptions, argv, prog="springroll launch")
    if not command:
        raise InputError("no command to start: springroll launch -n 2 -- COMMAND [OPTIONS]")
    where = f"127.0.0.1:{_free_port()}"
    children = [
        _started(command, where, options.processes, rank) for rank in range(options.processes)
    ]
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, lambda number, _: _pass_on(children, number))
            stack.callback(signal.signal, number, before)
        return _watched(children)


def _started(command: list[str], where: str, count: int, rank: int) -> subprocess.Popen[bytes]:
    environment = dict(os.environ) | dict(
        zip(LAUNCHED, (where, str(count), str(rank)), strict=True)
    )
    whole = [sys.executable, "-m", "springroll", *command]
    return subprocess.Popen(whole, env=environment, preexec_fn=lambda: _take_cores(count, rank))


def _take_cores(count: int, rank: int) -> None:
    """This process's part of the cores, where there are enough."""
    if hasattr(os, "sched_setaffinity") and cores() >= count:
        own = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, own[len(own) * rank // count : len(own) * (rank + 1) // count])


def _watched(children: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all; where the first fails, the others are ended."""
    while True:
        codes = [child.poll() for child in children]
        if None not in codes:
            return _code(next(filter(None, codes), 0))
        if codes[0] is not None and codes[0] != 0:
            time.sleep(2.0)  # the others end by themselves, where they can
            _pass_on(children, signal.SIGKILL)
        time.sleep(0.05)


def _code(code: int) -> int:
    return 128 - code if code < 0 else code


def _pass_on(children: list[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
