"""The keeper of a worker: a process between it and us that ends whatever the worker started.

A process that is killed leaves its children behind, and a child that made itself a session of its
own is found by nobody. On Linux the kernel hands such orphans to the nearest ancestor that asked
for them (PR_SET_CHILD_SUBREAPER). That is the keeper's whole life: it forks the worker, waits until
the worker has ended, we ask for its end (SIGTERM) or we have died, and then kills all that is left
below it. Should the keeper be killed, the kernel kills the worker (PR_SET_PDEATHSIG); what the
worker had started is then left alone.

On other systems there is no keeper: a worker's session is killed with it, and a process that left
the session stays.
"""

import contextlib
import ctypes
import functools
import os
import signal
import sys
import time
from collections.abc import Iterator

_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER, _GET_CHILD_SUBREAPER = 1, 36, 37

LOOK = 0.5  # seconds between two looks whether we are still there
PATIENCE = 5.0  # seconds after which processes that cannot be killed are left
NOBODY = -1


@functools.cache
def keepers_exist() -> bool:
    """Whether the system hands orphans to a process that asks for them."""
    return sys.platform == "linux" and _prctl(_GET_CHILD_SUBREAPER, ctypes.byref(ctypes.c_int()))


def keep(parent: int) -> None:
    """Become the keeper of a new process, in which alone this returns.

    To be called before there are threads.

    Args:
        parent: the number of the process that is to be outlived by none of the others.
    """
    if not _prctl(_SET_CHILD_SUBREAPER, 1):
        raise OSError("the system refuses PR_SET_CHILD_SUBREAPER")
    awaited = {signal.SIGCHLD, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    keeper = os.getpid()
    worker = os.fork()
    if worker:
        os._exit(_watch(worker, parent, awaited))
    _prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))
    if os.getppid() != keeper:
        os._exit(1)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)


def _watch(worker: int, parent: int, awaited: set[signal.Signals]) -> int:
    """Wait for one of the three ends, then end all that is left."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for pipe in (0, 1):  # they are the worker's alone
        os.dup2(nothing, pipe)
    ended = False
    while not ended and os.getppid() == parent:
        said = signal.sigtimedwait(awaited, LOOK)
        if said is not None and said.si_signo == signal.SIGTERM:
            break
        ended = worker in _reaped()
    _end_children()
    return 0


def _end_children() -> None:
    """Kill all children, and theirs, which become ours as their parents end."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if NOBODY in _reaped():
            return
        signal.sigtimedwait({signal.SIGCHLD}, 0.02)


def _reaped() -> Iterator[int]:
    """Children that have ended, one by one, and `NOBODY` if no child is left."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            yield NOBODY
            return
        if not pid:
            return
        yield pid


def _children() -> Iterator[int]:
    """Processes whose parent this one is."""
    me = os.getpid()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            # pid (name) state parent ...; the name may hold anything
            if int(file.read().rpartition(b")")[2].split()[1]) == me:
                yield int(name)


def _prctl(option: int, value: object) -> bool:
    """Whether a call of prctl succeeded."""
    return ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0
