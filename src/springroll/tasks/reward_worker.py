"""The process of an isolated reward function: texts come in and results go out as lines of JSON.

    {"texts": [...], "records": [...]}  ->  {"verdicts": [[reward, correct, formatted], ...]}
                                            {"raised": line} or {"refused": line}

The first line it writes says that the function was found: {"ready": true}, or {"refused": line}.
"""

import asyncio
import faulthandler
import json
import os
from typing import Any, BinaryIO

from springroll.errors import InputError
from springroll.tasks.reward_function import RewardFunction, load_function, verdicts, what_raised


def main(name: str, timeout: float) -> None:
    """Serve until the other side closes the pipe.

    What the function itself prints goes to stderr, and it finds nothing to read. Should the process
    that asks die, and can no longer end a hanging call, the call ends itself after twice its time.
    """
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    try:
        function = load_function(name)
    except InputError as error:
        _say(answers, {"refused": str(error)})
        return
    _say(answers, {"ready": True})
    nowhere = open(os.devnull, "w")  # noqa: SIM115  (for the life of the process)
    for line in requests:
        faulthandler.dump_traceback_later(2 * timeout + 5, exit=True, file=nowhere)
        answer = _answer(function, json.loads(line))
        faulthandler.cancel_dump_traceback_later()
        _say(answers, answer)


def _answer(function: RewardFunction, request: dict[str, Any]) -> dict[str, Any]:
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


def _say(answers: BinaryIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()
