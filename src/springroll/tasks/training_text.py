"""Text to pretrain a small model on: generated problems with their solutions, written several ways.

Only training problems are written down, so what is held out stays unseen. A document is a prompt
and its answer; documents are joined by the token that ends a text.
"""

from collections.abc import Callable, Mapping
from typing import Any

from springroll.errors import InputError
from springroll.tasks.draws import Draws
from springroll.tasks.problem import TextTask, Worked

SURFACES = {
    "plain": "{answer}",
    "hash": "#### {answer}",
    "boxed": "\\boxed{{{answer}}}",
    "tag": "<answer>{answer}</answer>",
    "sentence": "The answer is {answer}.",
}
WORKED = "worked "  # before a surface: the steps first, a line each


def training_text(
    task: TextTask, shares: Mapping[str, float] | None = None, seed: int = 0
) -> Callable[[int], str]:
    """A function of an index, 0 or more, to a document: a pure function of (task, shares, seed).

    A pretrained model answers in each style about as often as it stands here, which leaves it to
    the reward to choose among them.

    Args:
        task: one that is generated: "countdown" or "arithmetic".
        shares: by style, positive numbers in any unit; a style is "plain", "hash", "boxed", "tag"
            or "sentence", or one of these after "worked ", with the steps before the answer. By
            default all are plain.
        seed: which style a document has.

    Raises:
        InputError: a style that is none, no positive share, or a task without solutions.
    """
    shares = {"plain": 1.0} if shares is None else shares
    unknown = [style for style in shares if style.removeprefix(WORKED) not in SURFACES]
    if unknown:
        known = ", ".join(SURFACES)
        raise InputError(f"no style {unknown[0]!r}; expected one of {known}, or 'worked' before it")
    if not shares or min(shares.values()) < 0 or sum(shares.values()) <= 0:
        raise InputError(f"the shares of the styles are {dict(shares)}; expected positive numbers")
    worked = task.worked
    if worked is None:
        raise InputError(f"{task.name} has no solutions to write down; take a generated task")
    return lambda index: document(worked(index), _style(shares, seed, index), message=task.chat)


def document(worked: Worked, style: str, message: bool = False) -> str:
    """A problem and its answer in one style.

    Args:
        message: the prompt is a sentence, so the answer begins on a line of its own, as steps
            always do.
    """
    answer = SURFACES[style.removeprefix(WORKED)].format(answer=worked.answer)
    if style.startswith(WORKED):
        return "\n".join([worked.problem.prompt, *worked.steps, answer])
    return worked.problem.prompt + ("\n" if message else "") + answer


def _style(shares: Mapping[str, Any], seed: int, index: int) -> str:
    """Drawn by share: a point on a line that the styles divide."""
    point = Draws("style", int(seed), int(index)).below(2**32) / 2**32 * sum(shares.values())
    for style, share in shares.items():
        point -= share
        if point < 0:
            return style
    return max(shares, key=lambda style: shares[style])  # rounding at the very end of the line
