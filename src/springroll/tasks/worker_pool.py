"""A reward function in processes of its own, which are killed when they take too long."""

import queue
import weakref
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from springroll.errors import InputError
from springroll.tasks.problem import Verdict, unscored
from springroll.tasks.worker import Worker, WorkerLost, end_all


class WorkerPool:
    """Calls of a reward function, each with a time limit, spread over some processes.

    Texts of a call that fails get a NaN reward and are counted in `failures` by kind: "timeout",
    "crashed" or "raised". The next call gets a new process.

    Args:
        name: of the function (see `load_function`).
        workers: processes.
        timeout: seconds per call.
        rows: texts per call.

    Raises:
        InputError: the function cannot be loaded.
    """

    def __init__(self, name: str, *, workers: int, timeout: float, rows: int) -> None:
        self.failures: Counter[str] = Counter()
        self._rows = rows
        module, what = "springroll.tasks.reward_worker", f"the reward function {name}"
        make = lambda: Worker(module, name, str(timeout), limit=timeout, what=what)
        self._all = [make() for _ in range(workers)]
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._end = weakref.finalize(self, end_all, self._all)
        self._all[0].start()  # a function that cannot be loaded is found now

    def score(self, texts: Sequence[str], records: Sequence[Any]) -> list[Verdict]:
        """One verdict per text.

        Raises:
            InputError: the function returned something else than one finite float per text.
        """
        starts = range(0, len(texts), self._rows)
        calls = [(texts[i : i + self._rows], records[i : i + self._rows]) for i in starts]
        threads = ThreadPoolExecutor(len(self._all))
        try:
            return [verdict for part in threads.map(self._call, calls) for verdict in part]
        finally:
            threads.shutdown(cancel_futures=True)  # after an error the rest need not be scored

    def close(self) -> None:
        """End the processes. The pool starts new ones should it be used again."""
        end_all(self._all)

    def _call(self, call: tuple[Sequence[str], Sequence[Any]]) -> list[Verdict]:
        texts, records = call
        worker = self._idle.get()
        try:
            answer, _ = worker.ask({"texts": list(texts), "records": list(records)})
        except WorkerLost as lost:
            return unscored(self.failures, lost.kind, len(texts))
        finally:
            self._idle.put(worker)
        if "refused" in answer:
            raise InputError(answer["refused"])
        if "raised" in answer:
            return unscored(self.failures, "raised", len(texts), answer["raised"])
        return [Verdict(*verdict) for verdict in answer["verdicts"]]
