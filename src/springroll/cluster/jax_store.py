"""Messages through the coordination service that JAX starts in its first process."""

import contextlib
import itertools
import threading
import time

import jax

from springroll.cluster.crew import ClusterError
from springroll.cluster.detect import Launch
from springroll.cluster.watch import last_words
from springroll.compat import coordination
from springroll.errors import InputError, first_line

LAST = 0.5  # seconds that a process which has said that it leaves may take for it
HEARTBEAT = 10  # seconds without one, and a process counts as gone
GONE = "process 0 is gone; what it journaled is kept, go on with --resume"
GONE_NAMES = ("UNAVAILABLE", "CANCELLED", "ABORTED", "INTERNAL", "FAILED_PRECONDITION")


class JaxStore:
    """The key-value store of `jax.distributed`; see `crew.Store`.

    A process that dies does not end the others (`jax_enable_recoverability`), unless it is the
    first one: then JAX aborts them, and whoever watches over them says why (`watch`).
    """

    def __init__(self, launch: Launch, patience: float):
        """Join; to be called before JAX's backend starts.

        Args:
            launch: which process this is, of how many, and where the first one is.
            patience: seconds to wait for the others.

        Raises:
            InputError: they do not come together in that time.
        """
        self._size, self._rank = launch.size, launch.rank
        others = "the other processes" if launch.rank == 0 else "process 0"
        late = (
            f"{others} did not come to {launch.coordinator} within {patience:g} s; start all "
            f"{launch.size} processes, or give more --patience"
        )
        last_words(late, 2)
        try:
            self._client = coordination(
                launch.coordinator,
                launch.size,
                launch.rank,
                local_devices=launch.devices,
                patience=max(1, round(patience)),
                heartbeat=HEARTBEAT,
            )
        except Exception as error:  # a runtime error of JAX's
            raise InputError(f"{late} ({first_line(error, 120)})") from None
        last_words(GONE, 3)
        self._seen: dict[int, tuple[bytes | None, float]] = {}
        self._left = threading.Event()
        if self._rank:
            threading.Thread(target=self._beat, daemon=True).start()

    def put(self, name: str, data: bytes) -> None:
        with _told_simply():
            self._client.key_value_set_bytes(name, data, allow_overwrite=True)

    def get(self, name: str, seconds: float) -> bytes | None:
        with _told_simply():
            try:
                return self._client.blocking_key_value_get_bytes(name, round(1000 * seconds))
            except Exception as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    return None
                raise

    def delete(self, name: str) -> None:
        with _told_simply():
            self._client.key_value_delete(name)

    def alive(self) -> set[int]:
        """The processes whose sign of life has changed lately.

        JAX's own list of live processes waits until all of them ask for it.
        """
        now = time.monotonic()
        for rank in range(1, self._size):
            sign = self.get(f"sign/{rank}", 0.01)
            if self._seen.setdefault(rank, (sign, now))[0] != sign:
                self._seen[rank] = (sign, now)
        return {0} | {rank for rank, (_, when) in self._seen.items() if now - when < HEARTBEAT}

    def _beat(self) -> None:
        """Give signs of life, until the leader is gone."""
        with contextlib.suppress(ClusterError):
            for count in itertools.count():
                self.put(f"sign/{self._rank}", str(count).encode())
                if self._left.wait(HEARTBEAT / 5):
                    return

    def close(self) -> None:
        """Leave; the first process once the others have left, as they need its service for that."""
        if self._rank:
            self._left.set()
            self.put(f"left/{self._rank}", b"")
        else:
            for rank in range(1, self._size):
                while self.get(f"left/{rank}", 0.1) is None and rank in self.alive():
                    pass
            time.sleep(LAST)
        jax.distributed.shutdown()


@contextlib.contextmanager
def _told_simply():
    """What the service raises, as an error of the run."""
    try:
        yield
    except Exception as error:  # a runtime error of JAX's, whose class differs between versions
        if any(name in str(error) for name in GONE_NAMES):
            raise ClusterError(GONE) from None
        raise
