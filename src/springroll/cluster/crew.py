"""The processes of a run: one leads, the others follow, and messages go between them.

Every message has a number, counted alike by all. A message that everyone sends to the leader is a
`gather`, one that the leader sends to everyone a `tell`. Before the leader gathers, it tells what;
so a process that was started again in place of one that died begins with the last thing told.
Imports no JAX.
"""

import json
import os
import time
from collections.abc import Callable
from typing import Protocol

from springroll.errors import InputError

PIECE = 1 << 22  # bytes of a message that are stored together
LOOK = 1.0  # seconds after which it is looked whether the other side is still there
ENDED, FAILED, JOINED, BACK, WELCOME = (
    "ended",
    "failed",
    "joined",
    "back",
    "welcome",
)  # names in the store


class ClusterError(RuntimeError):
    """A process of the run was lost, or holds other weights. What was journaled is kept."""


class Ended(ClusterError):
    """The leader ended the run before its budget was spent, and says why on its screen.

    Args:
        exit_code: of its command.
    """

    def __init__(self, exit_code: int):
        super().__init__(f"process 0 ended the run with exit code {exit_code}")
        self.exit_code = exit_code


class Store(Protocol):
    """Bytes by name, which all processes of a run see. Each name is written once."""

    def put(self, name: str, data: bytes) -> None: ...

    def get(self, name: str, seconds: float) -> bytes | None:
        """What was written; None if nothing was within that time.

        Raises:
            ClusterError: the store is gone, and with it the leader.
        """
        ...

    def delete(self, name: str) -> None: ...

    def alive(self) -> set[int]:
        """The processes that are there, as far as the leader knows."""
        ...

    def close(self) -> None:
        """Leave, once all others have come to the same call."""
        ...


class Crew:
    """This process among those of a run.

    Args:
        rank: which of them it is; 0 leads.
        size: how many there are.
        store: through which messages go.
        patience: seconds that the leader waits for a process that is gone.
        say: is given one line where somebody is waited for.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        store: Store,
        *,
        patience: float = 60.0,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.rank, self.size, self.patience, self.say = rank, size, patience, say
        self.signal: int | None = None  # that asked one of the others to stop
        self.news: Callable[[], bytes] = lambda: b""
        """At the leader: what a process that comes back has to know of the run."""
        self.back: bytes | None = None
        """At a process that came back: the leader's `news`."""
        self._store, self._count = store, 0
        self._told: list[str] = []  # names of messages to everyone that are still stored
        self._alike: dict[str, str] = {}  # what was agreed on
        if not self.leads:
            self._join()

    @property
    def leads(self) -> bool:
        """Whether this is the process with the folder, the clock and the screen."""
        return self.rank == 0

    def gather(self, data: bytes, signal: int | None = None) -> list[bytes]:
        """What every process gives, in their order, at the leader; nothing at the others.

        Args:
            data: what this one gives.
            signal: that this process was asked to stop by.

        Raises:
            ClusterError: one is gone for longer than `patience`, or says that it failed.
        """
        number = self._next()
        if not self.leads:
            self._write(f"{number}/{self.rank}", bytes([signal or 0]) + data)
            return []
        parts = [data]
        for rank in range(1, self.size):
            found = self._from(rank, number)
            self.signal = self.signal or found[0] or None
            parts.append(found[1:])
            self._store.delete(f"{number}/{rank}")
        while self._told:  # everyone has read what was told before
            self._store.delete(self._told.pop())
        return parts

    def tell(self, data: bytes = b"") -> bytes:
        """What the leader gives; returned to everyone.

        Raises:
            ClusterError: the leader is gone, or ended the run.
        """
        number = self._next()
        if self.leads:
            self._write(str(number), data)
            self._told.append(str(number))
            return data
        return self._wait(str(number))

    def fail(self, line: str, exit_code: int) -> None:
        """Let the others know why this process ends: the leader at its next `gather`."""
        if self.leads:
            self._write(ENDED, str(exit_code).encode())
        else:
            self._write(f"{FAILED}/{self.rank}", line.encode())

    def agree(self, what: dict[str, str]) -> None:
        """Refuse processes that differ from the leader in what must be alike.

        Args:
            what: names and values, the same names in all processes.

        Raises:
            InputError: in every process; with the first that differs, and in what.
        """
        if self.back is not None:
            alike = {name: value for name, value in self._alike.items() if name in what}
            line = _difference(alike, self.rank, what)
        else:
            found = [json.loads(x) for x in self.gather(json.dumps(what).encode())]
            lines = (_difference(found[0], i, x) for i, x in enumerate(found))
            line = self.tell(next(filter(None, lines), "").encode()).decode()
        self._alike |= what
        if line:
            raise InputError(line)

    def close(self) -> None:
        """Leave, together with the others."""
        self._store.close()

    def _join(self) -> None:
        """Look whether another process had this one's place before; then hear where the run is."""
        if self._read(f"{JOINED}/{self.rank}", 0.05) is None:
            self._write(f"{JOINED}/{self.rank}", b"")
            return
        answer = f"{WELCOME}/{os.urandom(8).hex()}"
        self._write(f"{BACK}/{self.rank}", answer.encode())
        head, _, self.back = self._wait(answer).partition(b"\n")
        self._store.delete(answer)
        number, self._alike = json.loads(head)
        self._count = number - 2

    def _welcome(self, rank: int, number: int) -> bool:
        """Tell a process that came back which message is waited for; whether there is one."""
        answer = self._read(f"{BACK}/{rank}", 0.01)
        if answer is None:
            return False
        self._store.delete(f"{BACK}/{rank}")
        head = json.dumps([number, self._alike]).encode()
        self._write(answer.decode(), head + b"\n" + self.news())
        return True

    def _wait(self, name: str) -> bytes:
        """A message of the leader's."""
        while (found := self._read(name, LOOK)) is None:
            ended = self._read(ENDED, 0.01)
            if ended is not None:
                raise Ended(int(ended))
        return found

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _from(self, rank: int, number: int) -> bytes:
        """A process's message; its first byte is a signal's number, or 0."""
        gone, began, said = None, time.monotonic(), False
        while (found := self._read(f"{number}/{rank}", LOOK)) is None:
            now, alive = time.monotonic(), self._store.alive()
            if self._welcome(rank, number):
                self.say(f"process {rank} was started again")
                gone, said = None, False
            failed = self._read(f"{FAILED}/{rank}", 0.01)
            if failed is not None:
                raise ClusterError(f"process {rank} of {self.size} failed: {failed.decode()}")
            gone = None if rank in alive else gone or now
            if gone is not None and not said:
                self.say(f"process {rank} is gone; waiting up to {self.patience:g} s for it")
                said = True
            if gone is not None and now - gone > self.patience:
                raise ClusterError(
                    f"process {rank} of {self.size} is gone (for {now - began:.0f} s); what was "
                    "done is saved, go on with --resume"
                )
        return found

    def _write(self, name: str, data: bytes) -> None:
        pieces = [data[i : i + PIECE] for i in range(0, len(data), PIECE)] or [b""]
        for i, piece in enumerate(pieces[1:], 1):
            self._store.put(f"{name}/{i}", piece)
        # Last, as whoever has it reads the others at once.
        self._store.put(name, str(len(pieces)).encode() + b" " + pieces[0])

    def _read(self, name: str, seconds: float) -> bytes | None:
        found = self._store.get(name, seconds)
        if found is None:
            return None
        count, _, first = found.partition(b" ")
        pieces = [first]
        for i in range(1, int(count)):
            while (piece := self._store.get(f"{name}/{i}", LOOK)) is None:
                pass
            pieces.append(piece)
        return b"".join(pieces)


def _difference(leader: dict[str, str], rank: int, found: dict[str, str]) -> str:
    for name, value in leader.items():
        if found.get(name) != value:
            return (
                f"process {rank} has {name} {found.get(name)}, process 0 has {value}; start every "
                "process with the same command on the same versions and data"
            )
    return ""
