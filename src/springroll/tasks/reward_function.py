"""A reward function of the user's own: `module:function` or `path/file.py:function`.

    def shortness(texts: list[str]) -> list[float]:
        return [1 / (1 + len(text)) for text in texts]

What else it may be given follows from the names of its parameters (see `reward_signature`). It
returns one result per text: a float; a dict {"reward": float, "correct": bool, "formatted": bool}
whose last two may be left out, and whose first two may be called "score" and "acc" as of verl; or
None, where it does not apply to a text. It may be `async def`.

A text whose result is no finite number, or whose call raises, cannot be scored: it is `Failed`.
Whatever a function does, it costs the texts that it did it for.

Run as a worker process (see `worker`), this module serves an isolated reward function:

    {"texts": [...], "records": [...]}  ->  {"outcomes": [[reward, correct, formatted] of a verdict,
                                                          [kind, line] of one that failed, ...]}
"""

import asyncio
import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from springroll.tasks.failures import Unusable, as_many, finite_number
from springroll.tasks.reward_signature import Arguments, arguments_of
from springroll.tasks.tables import Record
from springroll.tasks.user_code import named_function, raised_line
from springroll.tasks.verdicts import Verdict
from springroll.worker import Message, Progress, serve

GIVE_UP = 32  # texts that fail one after the other, and the function is taken to be at fault


class Failed(NamedTuple):
    """Why a text could not be scored."""

    kind: str  # see `failures.KINDS`
    line: str


Outcome: TypeAlias = Verdict | Failed


class RewardFunction(NamedTuple):
    """A function that was found, and how to call it."""

    name: str
    function: Callable[..., Any]
    arguments: Arguments
    is_async: bool

    def __call__(self, texts: Sequence[str], records: Sequence[Record]) -> Any:
        """What the function returns: results, or of an async one a coroutine.

        One that is called for every text by itself takes one text here too.
        """
        positional, named = self.arguments.of(texts, records)
        if not self.arguments.alone:
            return self.function(*positional, **named)
        given = {name: only for name, (only,) in named.items()}
        result = self.function(*(only for (only,) in positional), **given)
        return _awaited(result) if self.is_async else [result]

    def outcomes(
        self,
        texts: Sequence[str],
        records: Sequence[Record],
        begin: Callable[[], None] = lambda: None,
    ) -> list[Outcome]:
        """Judge texts in one call; where that fails as a whole, in one call each.

        Args:
            begin: called before every call of the function.
        """
        whole = None
        if len(texts) == 1 or not self.arguments.alone:
            begin()
            try:
                results = self(texts, records)
                return outcomes_of(asyncio.run(results) if self.is_async else results, len(texts))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # whatever the user's function raises; a panic of Rust
                whole = failure_of(error)
            if len(texts) == 1:
                return [whole]
        found: list[Outcome] = []
        for text, record in zip(texts, records, strict=True):
            if whole and len(found) >= GIVE_UP and all(isinstance(x, Failed) for x in found):
                return [*found, *[whole] * (len(texts) - len(found))]
            found += self.outcomes([text], [record], begin)
        return found

    async def outcomes_side_by_side(
        self, texts: Sequence[str], records: Sequence[Record], timeout: float
    ) -> list[Outcome]:
        """The same of an async function, all calls at once, each with `timeout` seconds."""

        async def call() -> Any:
            try:
                return await self(texts, records)
            except (Exception, KeyboardInterrupt, asyncio.CancelledError):
                raise
            except BaseException as error:  # would end the loop and all other calls
                raise RuntimeError(f"{type(error).__name__}: {error}") from None

        if len(texts) == 1 or not self.arguments.alone:
            try:
                return outcomes_of(await asyncio.wait_for(call(), timeout), len(texts))
            except TimeoutError:
                return [Failed("timeout", f"more than {timeout:g} s")] * len(texts)
            except (Exception, asyncio.CancelledError) as error:  # whatever the user's code raises
                whole = failure_of(error)
            if len(texts) == 1:
                return [whole]
        alone = zip(texts, records, strict=True)
        calls = (self.outcomes_side_by_side([text], [record], timeout) for text, record in alone)
        return [outcome for part in await asyncio.gather(*calls) for outcome in part]


def load_function(name: str, fields: Iterable[str] = ("prompt",)) -> RewardFunction:
    """Find a function by its name.

    Modules are looked for where Python does and in the working folder.

    Args:
        fields: of the records, which the function may be given by their names.

    Raises:
        InputError: the module or file, or the function in it, is missing or takes what there is
            not; importing it raises.
    """
    _, function = named_function(name, "the reward function")
    called = type(function).__call__ if not inspect.isroutine(function) else function
    is_async = any(map(inspect.iscoroutinefunction, (function, called)))
    return RewardFunction(name, function, arguments_of(function, name, [*fields]), is_async)


def outcomes_of(results: object, count: int) -> list[Outcome]:
    """The results of a reward function for `count` texts, checked one by one.

    A plain float counts as correct from 1 on, and always as formatted.

    Raises:
        Unusable: they are not one per text.
        Exception: what a generator of the user's raises.
    """
    return [_outcome(result) for result in as_many(results, count)]


def _truth(fields: dict[str, Any], names: tuple[str, ...], otherwise: bool) -> bool:
    """The first of these fields that is there and not None: a boolean, or a number that is not 0.

    Raises:
        Unusable: it is something else; the text "False" would pass for true.
    """
    for name in names:
        if fields.get(name) is not None:
            try:
                return finite_number(fields[name]) != 0
            except Unusable as error:
                raise Unusable(error.kind, f"as {name!r} {error.line}") from None
    return otherwise


async def _awaited(result: Any) -> list[Any]:
    return [await result]


def failure_of(error: BaseException) -> Failed:
    """What raising this amounts to."""
    if isinstance(error, Unusable):
        return Failed(error.kind, f"it returned {error.line}")
    return Failed("raised", raised_line(error))


def _outcome(result: object) -> Outcome:
    try:
        fields = result if isinstance(result, dict) else {"reward": result}
        given = next((name for name in ("reward", "score") if name in fields), None)
        if given is None:
            raise Unusable("wrong", "a dict without 'reward' or 'score'")
        if fields[given] is None:
            return Failed("none", "it returned None, which says that it does not apply")
        reward = finite_number(fields[given])
        correct = _truth(fields, ("correct", "acc"), reward >= 1)
        return Verdict(reward, correct, _truth(fields, ("formatted",), True))
    except Exception as error:  # of an object of the user's that does not let itself be read
        return failure_of(error)


def main(progress: Progress, name: str, fields: str, limit: str) -> None:
    """Serve the reward function `name` for records with `fields` (JSON).

    Without us a request ends after `limit` seconds.
    """

    def load() -> Callable[[Message, bytes], tuple[Message, bytes]]:
        function = load_function(name, json.loads(fields))

        def answer(request: Message, payload: bytes) -> tuple[Message, bytes]:
            del payload
            texts, records = request["texts"], request["records"]
            found = function.outcomes(texts, records, lambda: progress.begin(0))
            progress.rest()
            return {"outcomes": found}, b""

        return answer

    serve(load, float(limit))
