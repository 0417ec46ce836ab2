"""Prompts from a file, judged by a reward function of the user's own.

A reward function in processes of its own, which are killed when they take too long.
"""

import asyncio
import queue
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from springroll.errors import InputError
from springroll.tasks.draws import is_held_out
from springroll.tasks.problem import Problem, TextTask, answer_style, option_line, until_stop
from springroll.tasks.records import Record, file_digest, read_records, shuffled
from springroll.tasks.reward_function import RewardFunction, load_function, verdicts, what_raised
from springroll.tasks.verdicts import Verdict, unscored
from springroll.worker import Worker, WorkerLost, end_all


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
        module, what = "springroll.tasks.reward_function", f"the reward function {name}"
        make = lambda: Worker(module, name, str(timeout), limit=timeout, what=what)
        self._all = [make() for _ in range(workers)]
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._end = weakref.finalize(self, end_all, self._all)
        self._all[0].start()  # a function that cannot be loaded is found now

    def score(self, texts: Sequence[str], records: Sequence[Record]) -> list[Verdict]:
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

    def _call(self, call: tuple[Sequence[str], Sequence[Record]]) -> list[Verdict]:
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


Score: TypeAlias = Callable[[Sequence[str], Sequence[Record]], list[Verdict]]


def function_task(
    function: str,
    *,
    data: str,
    held_out_data: str | None = None,
    seed: int = 0,
    style: str = "instruct",
    stop: str | tuple[str, ...] = (),
    isolated: bool = False,
    workers: int = 2,
    timeout: float = 10.0,
    rows: int = 1,
) -> TextTask:
    """The prompts of a JSONL file and a function that says what their answers are worth.

    The function is called with all texts at once, in this process. An `async def` is called with
    `rows` texts at a time, all calls side by side, each with `timeout` seconds. With `isolated`
    calls of `rows` texts go to `workers` processes, and one that takes longer than `timeout`
    seconds is killed: a function that hangs or crashes costs its own texts and nothing else.

    Args:
        function: `module:function` or `path/file.py:function`.
        data: a JSONL file; every record has a field `prompt`, and the whole record is passed on.
        held_out_data: another; without it, an eighth of the records is held out, by a hash of the
            prompt.
        seed: of the order of the training problems.
        style: "instruct": the prompts are messages; "plain": they are given as they are.
        stop: what ends an answer: one string or several.

    Raises:
        InputError: the function or the data cannot be loaded.
    """
    answer_style(style)
    if workers < 1 or rows < 1 or timeout <= 0:
        raise InputError(
            f"{workers} workers, {rows} rows per call, {timeout} seconds: all must be above 0"
        )
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    train, held_out, identity = _sides(data, held_out_data)
    failures: Counter[str] = Counter()
    close: Callable[[], None] = lambda: None
    if isolated:
        pool = WorkerPool(function, workers=workers, timeout=timeout, rows=rows)
        score, failures, close = pool.score, pool.failures, pool.close
    else:
        loaded = load_function(function)
        score = _side_by_side(loaded, timeout, rows, failures) if loaded.is_async else _here(loaded)
    train_at, held_out_at = shuffled(train, seed), shuffled(held_out, 0)
    make = lambda record: Problem(record["prompt"], record)

    def judge(problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
        if len(problems) != len(texts):
            raise ValueError(f"{len(problems)} problems and {len(texts)} texts")
        cut = [until_stop(text, stop) for text in texts]
        return score(cut, [problem.reference for problem in problems])

    return TextTask(
        name=function,
        train=lambda index: make(train_at(index)),
        held_out=lambda index: make(held_out_at(index)),
        score=judge,
        train_size=len(train),
        held_out_size=len(held_out),
        chat=style == "instruct",
        stop=stop,
        identity={"task": option_line(function, seed=seed, style=style, stop=stop), **identity},
        failures=failures,
        close=close,
    )


def _sides(data: str, held_out_data: str | None) -> tuple[list[Record], list[Record], dict]:
    """Training records, held-out ones, and what they are recognised by."""
    path = Path(data).expanduser()
    records, identity = read_records(path, "prompt"), {"data": file_digest(path)}
    if held_out_data is None:
        held_out = [r for r in records if is_held_out(r["prompt"])]
        held_out = held_out or [r for r in records if r["prompt"] == records[-1]["prompt"]]
    else:
        path = Path(held_out_data).expanduser()
        held_out = read_records(path, "prompt")
        identity["held_out_data"] = file_digest(path)
    apart = {record["prompt"] for record in held_out}
    train = [record for record in records if record["prompt"] not in apart]
    if not train:
        raise InputError(f"{data} holds no prompt that is not held out; give more prompts")
    return train, held_out, identity


def _here(function: RewardFunction) -> Score:
    def score(texts: Sequence[str], records: Sequence[Record]) -> list[Verdict]:
        try:
            results = function(texts, records)
        except (Exception, SystemExit) as error:  # whatever the user's function raises
            raise InputError(what_raised(error, function.name)) from error
        return verdicts(results, len(texts), function.name)

    return score


def _side_by_side(
    function: RewardFunction, timeout: float, rows: int, failures: Counter[str]
) -> Score:
    """Calls of an async function in one event loop; a call that fails costs its own texts."""

    async def call(texts: Sequence[str], records: Sequence[Record]) -> list[Verdict]:
        try:
            results = await asyncio.wait_for(function(texts, records), timeout)
        except Exception as error:  # whatever the user's function raises
            kind = "timeout" if isinstance(error, TimeoutError) else "raised"
            return unscored(failures, kind, len(texts), what_raised(error, function.name))
        return verdicts(results, len(texts), function.name)

    async def gathered(texts: Sequence[str], records: Sequence[Record]) -> list[Verdict]:
        starts = range(0, len(texts), rows)
        parts = await asyncio.gather(
            *(call(texts[i : i + rows], records[i : i + rows]) for i in starts)
        )
        return [verdict for part in parts for verdict in part]

    def score(texts: Sequence[str], records: Sequence[Record]) -> list[Verdict]:
        with ThreadPoolExecutor(1) as thread:  # where a loop runs already, as in a notebook
            return thread.submit(lambda: asyncio.run(gathered(texts, records))).result()

    return score
