"""What a text task is: problems by index, and a judge of the texts that answer them.

    task = text_task("countdown", seed=0)
    problems = [task.train(index) for index in range(8)]
    verdicts = task.score(problems, texts)          # one per text
    rewards = [verdict.reward for verdict in verdicts]

Training and held-out problems are pure functions of (seed, index), so that a resumed run needs no
cursor, and no problem is ever on both sides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from springroll.errors import InputError
from springroll.tasks.answers import check_style
from springroll.tasks.failures import Failures
from springroll.tasks.verdicts import Verdict, check_reward
from springroll.tokens.chat_template import Messages


class Problem(NamedTuple):
    """What a model is asked, and what its answer is judged by."""

    prompt: str | Messages
    reference: Any  # JSON values
    tools: Sequence[Mapping[str, Any]] | None = None  # that the chat template is to describe
    where: str = ""  # it comes from: "line 3 of prompts.jsonl"


class Worked(NamedTuple):
    """A generated problem with its solution, to judge by and to make training text of."""

    problem: Problem
    answer: str  # in the shortest form that is judged correct
    steps: tuple[str, ...]  # on the way there, one equation each


def _nothing() -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """Problems and their judge. Made by `text_task`."""

    name: str
    train: Callable[[int], Problem]
    """The training problem of an index, 0 or more. Beyond `train_size` they come again, in another
    order."""
    held_out: Callable[[int], Problem]
    """A problem that is never among the training ones."""
    score: Callable[[Sequence[Problem], Sequence[str]], list[Verdict]]
    """Judge texts (without their prompts), one per problem."""
    worked: Callable[[int], Worked] | None = None
    """Training problems with their solutions, for those that are generated."""
    train_size: int | None = None
    """How many there are; None: endless."""
    held_out_size: int | None = None
    parts: tuple[str, ...] = ()
    """Names of the rewards whose sum a verdict's reward is; see `Verdict.parts`."""
    forms: tuple[Problem, ...] = ()
    """One problem of each form of conversation, to try a chat template on before a run starts."""
    measure: Literal["accuracy", "reward"] = "accuracy"
    """What the curve shows and the best weights are chosen by: of a reward function of a user's own
    only the reward means something."""
    chat: bool = False
    """The prompt is a message, to be put into the model's chat template where it has one."""
    answer_tokens: int = 64
    """How many tokens an answer may need; more than that is cut off, unless the user says so."""
    stop: tuple[str, ...] = ()
    """What follows the first of these in a text is not judged, so generation may end there."""
    identity: Mapping[str, str] = field(default_factory=dict)
    """What must be the same when a run goes on: options, digests of files."""
    failures: Failures = field(default_factory=lambda: Failures("answers"))
    """The texts that could not be scored so far, counted by kind, and the first of each kind."""
    close: Callable[[], None] = _nothing
    """Ends the processes of an isolated reward function."""


def judged(
    judge: Callable[[str, Any], Verdict], stop: Sequence[str]
) -> Callable[[Sequence[Problem], Sequence[str]], list[Verdict]]:
    """`score` of a task, from judge(text up to the first stop string, reference) -> verdict."""
    return lambda problems, texts: [
        judge(until_stop(text, stop), problem.reference)
        for problem, text in zip(problems, texts, strict=True)
    ]


def generated_task(
    name: str,
    problem_of: Callable[[bool, int], Worked],
    judge: Callable[[str, Any], Verdict],
    options: Mapping[str, object],
    answer_tokens: Mapping[str, int],
) -> TextTask:
    """A task whose problems are drawn from a seed.

    Args:
        name: of the task.
        problem_of: (whether it is held out, index) -> a problem with its solution.
        judge: (text, reference) -> verdict.
        options: all that problems and verdicts depend on; `style` and `answer` are among them.
        answer_tokens: what an answer may need, by the style of the prompt.
    """
    stop = ("\n",) if options["answer"] == "whole" else ()
    return TextTask(
        name=name,
        train=lambda index: problem_of(False, index).problem,
        held_out=lambda index: problem_of(True, index).problem,
        worked=lambda index: problem_of(False, index),
        score=judged(judge, stop),
        chat=options["style"] == "instruct",
        answer_tokens=answer_tokens[str(options["style"])],
        stop=stop,
        identity={"task": option_line(name, **options)},
    )


def spoken(prompt: str | Messages) -> str:
    """A prompt in a line for people: the text, or what was said last.

    >>> spoken([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    'Hi'
    """
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def until_stop(text: str, stop: Sequence[str]) -> str:
    """What stands before the first of the stop strings.

    >>> until_stop("46\\n12+34=", ("\\n",))
    '46'
    """
    ends = [place for mark in stop if (place := text.find(mark)) >= 0]
    return text[: min(ends)] if ends else text


def answer_style(style: str, answer: str | None = None, reward: str = "smooth") -> str:
    """Where the answer stands: as asked for, else all of a plain one, after #### of another.

    Raises:
        InputError: the style of the prompt, that of the answer, or the reward is none there is.
    """
    if style not in ("plain", "instruct"):
        raise InputError(f"the prompt style is {style!r}; expected plain or instruct")
    answer = answer or ("whole" if style == "plain" else "hash")
    check_style(answer)
    check_reward(reward)
    return answer


def option_line(name: str, **options: object) -> str:
    """Name and options in one line, for a run to be recognised by."""
    return " ".join([name, *(f"{key}={value}" for key, value in options.items())])
