"""`springroll launch -n 2 -- pretrain ...`: one run in several processes of this machine."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from springroll.cli.bench import split
from springroll.cli.options import parse
from springroll.cluster.detect import LAUNCHED
from springroll.cluster.watch import Watched, watch
from springroll.cpu import cores
from springroll.errors import InputError
from springroll.run.options import NOT_NEGATIVE, PROCESSES, check_ranges, option


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
    restarts: int = option(0, NOT_NEGATIVE)
    """How often each process but the first is started again after a signal killed it."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(argv: Sequence[str]) -> int:
    """The first exit code that is not 0, in the order of the processes; else 0."""
    argv, command = split(list(argv))
    argv = ["--processes" if each == "-n" else each for each in argv]
    options = parse(LaunchOptions, argv, prog="springroll launch")
    if not command:
        raise InputError("no command to start: springroll launch -n 2 -- COMMAND [OPTIONS]")
    where, count = f"127.0.0.1:{_free_port()}", options.processes
    return watch([_started(command, where, rank, options) for rank in range(count)])


def _started(command: list[str], where: str, rank: int, options: LaunchOptions) -> Watched:
    count = options.processes
    environment: dict[str, str] = dict(zip(LAUNCHED, (where, str(count), str(rank)), strict=True))
    restarts = options.restarts if rank else 0  # the first process has the messages of all
    return Watched(command, environment, lambda: _take_cores(count, rank), restarts)


def _take_cores(count: int, rank: int) -> None:
    """This process's part of the cores, where there are enough."""
    if hasattr(os, "sched_setaffinity") and cores() >= count:
        own = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, own[len(own) * rank // count : len(own) * (rank + 1) // count])


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
