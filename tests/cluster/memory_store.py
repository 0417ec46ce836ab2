"""A store of this process, for crews whose members are threads."""

import threading


class MemoryStore:
    """See `springroll.cluster.crew.Store`; `gone` are processes that count as dead."""

    def __init__(self, size: int):
        self.size, self.gone = size, set()
        self.data: dict[str, bytes] = {}
        self._new = threading.Condition()

    def put(self, name: str, data: bytes) -> None:
        with self._new:
            self.data[name] = data
            self._new.notify_all()

    def get(self, name: str, seconds: float) -> bytes | None:
        with self._new:
            self._new.wait_for(lambda: name in self.data, seconds)
            return self.data.get(name)

    def delete(self, name: str) -> None:
        with self._new:
            for key in [k for k in self.data if k == name or k.startswith(f"{name}/")]:
                del self.data[key]

    def alive(self) -> set[int]:
        return set(range(self.size)) - self.gone

    def close(self) -> None:
        pass
