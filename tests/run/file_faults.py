"""Has a process die at its n-th file operation, or find the disk full from there on.

Both count the operations of one folder: opening to write, writing, syncing, renaming, linking,
truncating, removing, making folders; by `os` and by the files that `open` makes. A write that dies
or finds the disk full has put half of its bytes there.
"""

import builtins
import errno
import io
import os
import signal
from pathlib import Path

BY_PATH = ("replace", "link", "unlink", "mkdir", "open")
BY_HANDLE = ("write", "fsync", "ftruncate")
NEEDS_ROOM = ("open", "write", "fsync", "link", "mkdir")


class Faults:
    """Hooks of one process; there is no way back.

    Args:
        folder: whose files count.
        point: the operation, counted from 1; None only counts.
        full: the disk gets full instead of the process being killed.
        room: with `full`, bytes that can be written before it is; None: any.
    """

    def __init__(self, folder, point=None, *, full=False, room=None):
        self._folder, self._point, self._full_at = str(folder), point, full
        self._room = room
        self.count = 0
        self.full = False
        self._real_write = os.write
        for name in (*BY_PATH, *BY_HANDLE):
            setattr(os, name, self._hooked(getattr(os, name), name))
        builtins.open = self._opened(builtins.open)

    def _ours(self, where):
        if isinstance(where, int):
            try:
                where = os.readlink(f"/proc/self/fd/{where}")
            except OSError:
                return False
        return os.fsdecode(where).startswith(self._folder)

    def before(self, name, write=None, content=b""):
        """Count an operation, and die or raise when it is its turn; of a write, what is left of it
        to be done, or how many bytes are done."""
        self.count += 1
        if self._room is not None:
            self._room -= len(content)
        here = self.count == self._point or (self._room is not None and self._room < 0)
        if here and not self._full_at:
            if write:
                write(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        if here and not self.full:
            self.full = True
            if write and len(content) > 1:
                return write(content[: len(content) // 2])  # as Linux does: less, and no error
            if name in NEEDS_ROOM or self.count == self._point:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif self.full and name in NEEDS_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return None

    def _hooked(self, real, name):
        def call(where, *arguments, **named):
            reads = name == "open" and not arguments[0] & (os.O_WRONLY | os.O_RDWR)
            if reads or not self._ours(where):
                return real(where, *arguments, **named)
            if name == "write":
                done = self.before(name, lambda part: real(where, part), arguments[0])
                return real(where, *arguments) if done is None else done
            self.before(name)
            return real(where, *arguments, **named)

        return call

    def _opened(self, real):
        faults = self

        class File(io.FileIO):
            def write(self, content):
                done = faults.before("write", super().write, bytes(content))
                return super().write(content) if done is None else done

        def open(file, mode="r", buffering=-1, *arguments, **named):
            if not set(mode) & set("wax+") or "b" not in mode or not self._ours(file):
                return real(file, mode, buffering, *arguments, **named)
            self.before("open")
            raw = File(file, mode.replace("b", ""))
            return io.BufferedWriter(raw) if buffering else raw

        return open


def forked(run, folder, point=None, **faults):
    """Call `run` in a child process with faults; its exit code, or minus the signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        if faults or point:
            Faults(Path(folder).resolve(), point, **faults)
        code = run() or 0
    finally:
        os._exit(code)
