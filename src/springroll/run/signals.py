"""Ctrl-C: the first stops after the generation under way, the second ends the process at once.

In a process that another one watches over, signals within half a second are one: a terminal sends
Ctrl-C to both, and the other passes it on.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable

from springroll.cluster.watch import is_watched

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOGETHER = 0.5  # seconds


class Stop:
    """While entered, SIGINT and SIGTERM set `signal` instead of raising.

    A thread of its own listens, as Python runs its signal handlers only between bytecodes: a
    compilation or a long generation would keep both the message and the second Ctrl-C waiting.

    Args:
        on_first: called (in that thread) at the first signal, to say what happens now.
        on_second: called before the process ends at the second.
    """

    def __init__(self, on_first: Callable[[], None], on_second: Callable[[], None]):
        self.signal: int | None = None
        self._together = TOGETHER if is_watched() else 0.0
        self._on_first, self._on_second = on_first, on_second

    def __enter__(self) -> "Stop":
        self._active = threading.current_thread() is threading.main_thread()
        if (
            not self._active
        ):  # signals belong to the main thread; elsewhere they are its owner's business
            return self
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        # Python's own C handler writes the number of every signal to this socket, at once.
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._active:
            return
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._writer.close()  # ends the thread
        self._thread.join()
        self._reader.close()

    def _listen(self) -> None:
        while data := self._reader.recv(16):
            for number in data:
                if number not in SIGNALS:
                    continue
                if self.signal is None:
                    self.signal, self._when = number, time.monotonic()
                    self._on_first()
                elif time.monotonic() - self._when > self._together:
                    self._on_second()
                    os._exit(128 + number)
