"""Prompts from a file, judged by a reward function of the user's own.

A reward function in processes of its own, which are killed when they take too long.
"""

import asyncio
import json
import queue
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from springroll.errors import InputError, one_line
from springroll.ranges import COUNT, PROCESSES, TIMEOUT, check_number
from springroll.tasks.draws import is_held_out
from springroll.tasks.failures import Failures, reason
from springroll.tasks.problem import Problem, TextTask, answer_style, option_line, until_stop
from springroll.tasks.records import Record, file_digest, read_records, shuffled
from springroll.tasks.reward_function import Failed, Outcome, RewardFunction, load_function
from springroll.tasks.verdicts import UNSCORED, Verdict
from springroll.worker import Worker, WorkerLost, end_all

SHOWN = 80  # characters of a prompt and of an answer that could not be scored


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


Score: TypeAlias = Callable[[Sequence[str], Sequence[Record]], list[Outcome]]


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

    Whichever way it is called, a text whose call raises or whose result is no finite number cannot
    be scored: its reward is NaN, and the task counts it by kind in `failures`. The first of each
    kind is shown on stderr, with prompt and answer.

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
    check_number("workers", workers, int, PROCESSES)
    check_number("rows", rows, int, COUNT)
    check_number("timeout", timeout, float, TIMEOUT)
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    train, held_out, identity = _sides(data, held_out_data)
    fields = dict.fromkeys(field for record in (*train, *held_out) for field in record)
    close: Callable[[], None] = lambda: None
    if isolated:
        pool = WorkerPool(function, fields, workers=workers, timeout=timeout, rows=rows)
        score, close = pool.score, pool.close
    else:
        loaded = load_function(function, fields)
        score = _side_by_side(loaded, timeout, rows) if loaded.is_async else loaded.outcomes
    train_at, held_out_at = shuffled(train, seed), shuffled(held_out, 0)
    make = lambda record: Problem(record["prompt"], record)
    failures = Failures("answers")

    def judge(problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
        if len(problems) != len(texts):
            raise ValueError(f"{len(problems)} problems and {len(texts)} texts")
        cut = [until_stop(text, stop) for text in texts]
        outcomes = score(cut, [problem.reference for problem in problems])
        return [
            outcome if isinstance(outcome, Verdict) else unscored(outcome, problem, text)
            for outcome, problem, text in zip(outcomes, problems, cut, strict=True)
        ]

    def unscored(failed: Failed, problem: Problem, text: str) -> Verdict:
        """Count it, and show the first of its kind."""
        about = f"prompt '{one_line(problem.prompt, SHOWN)}', answer '{one_line(text, SHOWN)}'"
        if not failures.counts[failed.kind]:
            line = f"the reward function {function}: {reason(*failed)}; {about}"
            print(one_line(line), file=sys.stderr, flush=True)
        failures.add(failed.kind, "; ".join(filter(None, (one_line(failed.line), about))))
        return UNSCORED

    return TextTask(
        name=function,
        train=lambda index: make(train_at(index)),
        held_out=lambda index: make(held_out_at(index)),
        score=judge,
        train_size=len(train),
        held_out_size=len(held_out),
        measure="reward",
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


def _side_by_side(function: RewardFunction, timeout: float, rows: int) -> Score:
    """Calls of an async function in one event loop, `rows` texts each."""

    async def gathered(texts: Sequence[str], records: Sequence[Record]) -> list[Outcome]:
        calls = (
            function.outcomes_side_by_side(texts[i : i + rows], records[i : i + rows], timeout)
            for i in range(0, len(texts), rows)
        )
        return [outcome for part in await asyncio.gather(*calls) for outcome in part]

    def score(texts: Sequence[str], records: Sequence[Record]) -> list[Outcome]:
        with ThreadPoolExecutor(1) as thread:  # where a loop runs already, as in a notebook
            return thread.submit(lambda: asyncio.run(gathered(texts, records))).result()

    return score
