"""Prompts from a data set, judged by reward functions of the user's own."""

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

from springroll.errors import InputError, one_line
from springroll.ranges import COUNT, PROCESSES, SEED, TIMEOUT, check_number
from springroll.tasks.data_set import read_data
from springroll.tasks.draws import is_held_out
from springroll.tasks.failures import Failures, reason
from springroll.tasks.problem import (
    Problem,
    TextTask,
    answer_style,
    option_line,
    spoken,
    until_stop,
)
from springroll.tasks.prompts import no_column, problem_of, prompt_columns
from springroll.tasks.records import shuffled
from springroll.tasks.reward_function import Failed, Outcome, RewardFunction, load_function
from springroll.tasks.tables import Record, Row
from springroll.tasks.verdicts import UNSCORED, Verdict
from springroll.tasks.weighted import terms_of, weighted
from springroll.tasks.worker_pool import WorkerPool
from springroll.tokens.tokenizer import check_stop
from springroll.typed_call import typed_call

LONG = 60.0  # seconds after which a call in this process is spoken of
SHOWN = 80  # characters of a prompt and of an answer that could not be scored
FORMS = 1000  # forms of conversations that a chat template is tried on

Score: TypeAlias = Callable[[Sequence[str], Sequence[Record]], list[Outcome]]


@typed_call
def function_task(
    function: str,
    *,
    data: str,
    held_out_data: str | None = None,
    prompt: str | None = None,
    answer: str | None = None,
    seed: int = 0,
    style: str = "instruct",
    stop: str | tuple[str, ...] = (),
    isolated: bool = False,
    workers: int = 2,
    timeout: float = 10.0,
    rows: int = 1,
) -> TextTask:
    """The prompts of a data set and functions that say what their answers are worth.

    A function is called with all texts at once, in this process. An `async def` is called with
    `rows` texts at a time, all calls side by side, each with `timeout` seconds. With `isolated`
    calls of `rows` texts go to `workers` processes, and one that takes longer than `timeout`
    seconds is killed: a function that hangs or crashes costs its own texts and nothing else.

    Whichever way it is called, a text whose call raises or whose result is no finite number cannot
    be scored: its reward is NaN, and the task counts it by kind in `failures`. The first of each
    kind is shown on stderr, with prompt and answer. So it is where no function applies (None).

    Args:
        function: `module:function` or `path/file.py:function`; or a sum of several with weights,
            `a.py:f*0.7+b.py:g*0.3` (see `weighted`).
        data: a file, a folder or a data set of the hub (see `read_data`); every record has a prompt
            (see `prompts`), and the whole record is passed on.
        held_out_data: another; without it, the held-out part of `data`; without one, an eighth of
            the records, by a hash of the prompt.
        prompt: the column with the prompt; by default found by its name.
        answer: the column that the functions are given as `answer`.
        seed: of the order of the training problems.
        style: "instruct": the prompts are messages; "plain": they are given as they are.
        stop: what ends an answer: one string or several.

    Raises:
        InputError: a function or the data cannot be loaded, or a record has no prompt.
    """
    answer_style(style)
    check_number("seed", seed, int, SEED)
    check_number("workers", workers, int, PROCESSES)
    check_number("rows", rows, int, COUNT)
    check_number("timeout", timeout, float, TIMEOUT)
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    check_stop(stop)
    terms = terms_of(function)
    train, held_out, identity = _sides(data, held_out_data, prompt, answer)
    if style == "plain":
        _check_plain([*train, *held_out])
    fields = dict.fromkeys(field for each in (*train, *held_out) for field in each.reference)
    pools: list[WorkerPool] = []

    def close() -> None:
        for pool in pools:
            pool.close()

    scores: list[Score] = []
    for term in terms:
        if isolated:
            pool = WorkerPool(term.name, fields, workers=workers, timeout=timeout, rows=rows)
            pools.append(pool)
            scores.append(pool.score)
        else:
            loaded = load_function(term.name, fields)
            beside = _side_by_side(loaded, timeout, rows) if loaded.is_async else loaded.outcomes
            scores.append(_watched(beside, term.name))
    failures = Failures("answers")
    weights = [term.weight for term in terms]

    def judge(problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
        if len(problems) != len(texts):
            raise ValueError(f"{len(problems)} problems and {len(texts)} texts")
        cut = [until_stop(text, stop) for text in texts]
        records = [problem.reference for problem in problems]
        by_text = zip(*(score(cut, list(map(_copy, records))) for score in scores), strict=True)
        outcomes = [weighted(weights, each) for each in by_text]
        return [
            outcome if isinstance(outcome, Verdict) else unscored(outcome, problem, text)
            for outcome, problem, text in zip(outcomes, problems, cut, strict=True)
        ]

    def unscored(failed: Failed, problem: Problem, text: str) -> Verdict:
        """Count it, and show the first of its kind."""
        asked = one_line(spoken(problem.prompt), SHOWN)
        about = f"prompt '{asked}', answer '{one_line(text, SHOWN)}'"
        if not failures.counts[failed.kind]:
            line = f"the reward function {function}: {reason(*failed)}; {about}"
            print(one_line(line), file=sys.stderr, flush=True)
        failures.add(failed.kind, "; ".join(filter(None, (one_line(failed.line), about))))
        return UNSCORED

    chosen = {"prompt": prompt, "answer": answer}
    chosen = {name: column for name, column in chosen.items() if column is not None}
    return TextTask(
        name=function,
        train=shuffled(train, seed),
        held_out=shuffled(held_out, 0),
        score=judge,
        train_size=len(train),
        held_out_size=len(held_out),
        measure="reward",
        parts=tuple(term.short for term in terms) if len(terms) > 1 else (),
        forms=_forms([*train, *held_out]),
        chat=style == "instruct",
        stop=stop,
        identity={
            "task": option_line(function, seed=seed, style=style, stop=stop, **chosen),
            **identity,
        },
        failures=failures,
        close=close,
    )


def _sides(
    data: str, held_out_data: str | None, prompt: str | None, answer: str | None
) -> tuple[list[Problem], list[Problem], dict[str, str]]:
    """Training problems, held-out ones, and what they are recognised by."""
    found = read_data(data)
    identity = {"data": found.digest}
    problems = partial(_problems, prompt=prompt, answer=answer)
    records, held_out = problems(found.train, data), problems(found.held_out, data)
    if held_out_data is not None:
        other = read_data(held_out_data)
        held_out = problems([*other.train, *other.held_out], held_out_data)
        identity["held_out_data"] = other.digest
    if not held_out:
        held_out = [each for each in records if is_held_out(_key(each))]
        held_out = held_out or [each for each in records if _key(each) == _key(records[-1])]
    apart = {_key(each) for each in held_out}
    train = [each for each in records if _key(each) not in apart]
    if not train:
        raise InputError(f"{data} holds no prompt that is not held out; give more prompts")
    return train, held_out, identity


def _problems(
    rows: Sequence[Row], source: str, prompt: str | None, answer: str | None
) -> list[Problem]:
    """The problems of the rows of one source."""
    if not rows:
        return []
    fields = dict.fromkeys(field for row in rows for field in row.record)
    columns = prompt_columns(fields, prompt, source)
    if answer is not None and answer.partition(".")[0] not in fields and answer not in fields:
        raise no_column(answer, [*fields], source)
    return [problem_of(row, columns, answer) for row in rows]


def _copy(value: Any) -> Any:
    """JSON values that a function may change without changing the problems."""
    if isinstance(value, dict):
        return {name: _copy(each) for name, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value


def _key(problem: Problem) -> str:
    """What makes two problems the same one."""
    if isinstance(problem.prompt, str):
        return problem.prompt
    return json.dumps([problem.prompt, problem.tools], sort_keys=True)


def _check_plain(problems: Iterable[Problem]) -> None:
    for each in problems:
        if each.tools or not isinstance(each.prompt, str):
            raise InputError(
                f"{each.where} asks with messages or tools, which need a chat template; leave out "
                "style=plain"
            )


def _forms(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """A problem for each form of conversation: its roles, and the fields of its messages."""
    found: dict[object, Problem] = {}
    for each in problems:
        if not isinstance(each.prompt, str):
            roles = tuple((said["role"], *sorted(said)) for said in each.prompt)
            found.setdefault((roles, each.tools is None), each)
    return tuple(found.values())[:FORMS]


def _watched(score: Score, name: str) -> Score:
    """The same; the first call that takes long is told while it lasts, for it may never end."""
    line = (
        f"the reward function {name} has taken {LONG:g} s for the answers of one call and goes on;"
        " `isolated=true timeout=SECONDS` behind the task ends calls that hang"
    )
    told = threading.Event()

    def say() -> None:
        if not told.is_set():
            told.set()
            print(one_line(line), file=sys.stderr, flush=True)

    def watched(texts: Sequence[str], records: Sequence[Record]) -> list[Outcome]:
        timer = threading.Timer(LONG, say)
        timer.daemon = True
        timer.start()
        try:
            return score(texts, records)
        finally:
            timer.cancel()

    return watched


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
