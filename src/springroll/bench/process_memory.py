"""Memory of this process, as Linux tells it."""

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

STATUS = Path("/proc/self/status")


def process_bytes(name: str) -> int:
    """Bytes of that line of /proc/self/status: `VmRSS`, what is resident; `VmHWM`, the most that
    ever was; `RssAnon`, what is resident and no page of a file."""
    line = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert line is not None
    return int(line[1]) * 1024


def forget_peak() -> None:
    """Let `VmHWM` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """ "own": the most bytes of the process's own memory inside the block, looked at 20 times a
    second; 1 where the system does not tell."""
    peak, done = {"own": 1}, threading.Event()

    def look() -> None:
        while STATUS.exists():
            peak["own"] = max(peak["own"], process_bytes("RssAnon"))
            if done.wait(0.05):
                return

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
