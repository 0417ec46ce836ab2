"""The process of an isolated reward function (see `worker_process`).

{"texts": [...], "records": [...]}  ->  {"verdicts": [[reward, correct, formatted], ...]}
                                        {"raised": line} or {"refused": line}
"""

import asyncio
import functools

from springroll.errors import InputError
from springroll.tasks.reward_function import RewardFunction, load_function, verdicts, what_raised
from springroll.tasks.worker_process import Message, Progress, serve


def main(progress: Progress, name: str, timeout: str) -> None:
    """Serve the reward function `name`, whose calls may take `timeout` seconds."""
    del progress  # a request is one call
    serve(lambda: functools.partial(_answer, load_function(name)), 2 * float(timeout) + 5)


def _answer(function: RewardFunction, request: Message, payload: bytes) -> tuple[Message, bytes]:
    return _judged(function, request), payload


def _judged(function: RewardFunction, request: Message) -> Message:
    texts = request["texts"]
    try:
        results = function(texts, request["records"])
        if function.is_async:
            results = asyncio.run(results)
    except Exception as error:  # whatever the user's function raises
        return {"raised": what_raised(error, function.name)}
    try:
        return {"verdicts": verdicts(results, len(texts), function.name)}
    except InputError as error:
        return {"refused": str(error)}
