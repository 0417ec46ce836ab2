"""A file without a name, read and written in whole stretches, past the page cache where that works.

It is gone when its descriptors are closed, however the process ends.
"""

import contextlib
import errno
import mmap
import os
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from springroll.atomic import os_line
from springroll.errors import InputError

SECTOR = 4096  # bytes: what O_DIRECT wants addresses, places and sizes to be multiples of
AT_ONCE = 1 << 25  # bytes of a call to the system


def opened(folder: Path) -> tuple[int, int]:
    """Descriptors of a file without a name: as it is, and past the page cache if that can be."""
    if not hasattr(os, "preadv"):
        raise InputError("a store on a disk needs Linux, or another system with preadv")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            descriptor = os.dup(file.fileno())
    except OSError as error:
        raise InputError(
            f"cannot keep a store in {folder}: {os_line(error)}; name a folder that can be written "
            "to"
        ) from None
    return descriptor, _past_the_cache(descriptor)


def _past_the_cache(file: int) -> int:
    direct = -1
    try:
        direct = os.open(f"/proc/self/fd/{file}", os.O_RDWR | getattr(os, "O_DIRECT", 0))
        probe = page_buffer(SECTOR)
        write_whole(direct, probe, 0)
        read_whole(direct, probe, 0)
    except OSError:  # another system, or a file system that takes the flag and no such call
        if direct >= 0:
            os.close(direct)
        return os.dup(file)
    return direct


def take(file: int, begin: int, size: int) -> None:
    """Have this space of the disk, as zeros."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, begin, size)
    else:
        os.ftruncate(file, begin + size)


def page_buffer(size: int) -> np.ndarray:
    """Memory (size,) uint8 that begins with a page."""
    return np.frombuffer(_pages(size), np.uint8) if size else np.empty(0, np.uint8)


def _pages(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class PageBuffers:
    """Memory that begins with a page, and is given again when nobody looks at it any more: to get
    new pages takes the system as long as to read them from a fast disk.

    Args:
        limit: bytes of all buffers; unused ones of other sizes are let go beyond it.
    """

    def __init__(self, limit: int):
        self._limit, self._bytes, self._lock = limit, 0, threading.Lock()
        self._spare: dict[int, deque[mmap.mmap]] = {}  # by size

    def take(self, size: int) -> np.ndarray:
        """Memory (size,) uint8 with whatever is in it."""
        if not size:
            return np.empty(0, np.uint8)
        with self._lock:
            spare = self._spare.setdefault(size, deque())
            pages = spare.pop() if spare else self._new(size)
        buffer = np.frombuffer(pages, np.uint8)
        weakref.finalize(buffer, spare.append, pages).atexit = False  # in any thread, at any time
        return buffer

    def _new(self, size: int) -> mmap.mmap:
        for other, spare in self._spare.items():
            while spare and self._bytes + size > self._limit:
                spare.pop()
                self._bytes -= other
        self._bytes += size
        return _pages(size)


def read_whole(file: int, buffer: np.ndarray, place: int) -> None:
    """Fill a buffer (bytes,) uint8 from that place of the file; raises OSError."""
    _whole(lambda file, part, place: os.preadv(file, [part], place), file, buffer, place)


def write_whole(file: int, buffer: np.ndarray, place: int) -> None:
    """Write all of a buffer to that place of the file; raises OSError."""
    _whole(os.pwrite, file, buffer, place)


def _whole(
    call: Callable[[int, memoryview, int], int], file: int, buffer: np.ndarray, place: int
) -> None:
    """Read or write all of a buffer, whatever the system does at a time."""
    done = 0
    while done < buffer.size:
        count = call(file, buffer[done : done + AT_ONCE].data, place + done)
        if not count:
            raise OSError(errno.EIO, "the file ends early")
        done += count
