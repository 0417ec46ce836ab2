"""A reward function in processes of its own, which are killed when they take too long."""

import json
import queue
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from springroll.errors import InputError
from springroll.tasks.reward_function import Failed, Outcome
from springroll.tasks.tables import Record
from springroll.tasks.verdicts import Verdict
from springroll.worker import Worker, WorkerLost, end_all


class WorkerPool:
    """Calls of a reward function, each with a time limit, spread over some processes.

    A call that takes too long or ends its process costs its texts; the next one gets a new process.

    Args:
        name: of the function (see `load_function`).
        fields: of the records.
        workers: processes.
        timeout: seconds per call.
        rows: texts per call.

    Raises:
        InputError: the function cannot be loaded.
    """

    def __init__(
        self, name: str, fields: Iterable[str], *, workers: int, timeout: float, rows: int
    ) -> None:
        self._rows = rows
        module, what = "springroll.tasks.reward_function", f"the reward function {name}"
        arguments = (name, json.dumps([*fields]), str((1 + rows) * (2 * timeout + 5)))
        make = lambda: Worker(module, *arguments, limit=timeout, what=what)
        self._all = [make() for _ in range(workers)]
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._end = weakref.finalize(self, end_all, self._all)
        self._all[0].start()  # a function that cannot be loaded is found now

    def score(self, texts: Sequence[str], records: Sequence[Record]) -> list[Outcome]:
        """One outcome per text."""
        starts = range(0, len(texts), self._rows)
        calls = [(texts[i : i + self._rows], records[i : i + self._rows]) for i in starts]
        with ThreadPoolExecutor(len(self._all)) as threads:
            return [outcome for part in threads.map(self._call, calls) for outcome in part]

    def close(self) -> None:
        """End the processes. The pool starts new ones should it be used again."""
        end_all(self._all)

    def _call(self, call: tuple[Sequence[str], Sequence[Record]]) -> list[Outcome]:
        texts, records = call
        worker = self._idle.get()
        try:
            answer, _ = worker.ask({"texts": list(texts), "records": list(records)})
        except WorkerLost as lost:
            return [Failed(lost.kind, lost.line)] * len(texts)
        except InputError as error:  # it could be loaded before
            return [Failed("crashed", str(error))] * len(texts)
        finally:
            self._idle.put(worker)
        return [
            Failed(*x) if len(x) == len(Failed._fields) else Verdict(*x) for x in answer["outcomes"]
        ]
