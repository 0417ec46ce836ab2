"""What people should see of a run: some answers, and what to change where nothing can be learnt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from springroll.atomic import JsonObject
from springroll.errors import one_line
from springroll.finetune.judging import Judged, text_of
from springroll.generate.generator import Generated
from springroll.run.answers import Answer, answer_row, spread
from springroll.tasks.problem import Problem, TextTask, spoken
from springroll.tasks.task_line import TASKS, words_of
from springroll.tokens.tokenizer import Tokenizer

NEARLY_ALL = 0.9  # of the answers cut off
NEARLY_NONE = 0.05  # of the answers in the format of the task
SILENT = 3  # generations in a row that taught nothing
CHAT = {"style": "instruct", "answer": "last"}  # what most chat models answer in


@dataclass
class Seen:
    """Of one sitting: some answers of the last validation, and all warnings, by name."""

    answers: Sequence[JsonObject] = ()
    warnings: dict[str, str] = field(default_factory=dict)
    _silent: int = 0

    def look_at_rewards(self, found: Judged, generated: Generated, method: str) -> None:
        """Warn where a few generations in a row had equal rewards for every prompt.

        Args:
            found: what the answers are worth, of N members to P prompts.
            generated: the answers.
            method: of the run.
        """
        reward = found.reward
        there = np.isfinite(reward)
        high = np.where(there, reward, -np.inf).max(axis=0)
        low = np.where(there, reward, np.inf).min(axis=0)
        self._silent = self._silent + 1 if there.any() and not (high > low).any() else 0
        if self._silent >= SILENT:
            self.warnings["equal_rewards"] = equal_rewards(found, generated, method)


def some_answers(
    task: TextTask,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    generated: Generated,
    found: Judged,
    count: int,
) -> list[JsonObject]:
    """Answers of one model to its problems, from the best to the worst; see `spread`.

    Args:
        generated: by one member.
        found: what that is worth.
        count: how many, at most.
    """

    def answer(at: int) -> Answer:
        tokens = generated.tokens[0, at, : generated.lengths[0, at]].tolist()
        return Answer(
            prompt=spoken(problems[at].prompt),
            answer=text_of(task, tokenizer, tokens),
            reward=float(found.reward[0, at]),
            correct=bool(found.correct[0, at]),
            truncated=bool(found.truncated[0, at]),
            reference=_beside(problems[at]),
        )

    places = spread(found.reward[0].tolist(), count)
    return [answer_row(place, answer(at)) for at, place in places.items()]


def advice(
    figures: Mapping[str, float], line: str, task: TextTask, chats: bool, max_tokens: int
) -> dict[str, str]:
    """What a validation says against the way the model is asked, by name.

    Args:
        figures: of `Judged.figures`, without a prefix.
        line: the task as the user gave it.
        chats: whether the model has a chat template.
        max_tokens: the limit of an answer.
    """
    found = {}
    cut, formatted = figures["truncation_rate"] >= NEARLY_ALL, figures["format_rate"]
    if cut:
        found["truncated"] = (
            f"{100 * figures['truncation_rate']:.0f} % of the held-out answers were cut off at "
            f"--max-tokens {max_tokens} (mean length {figures['mean_length']:.0f} tokens); what "
            f"they would have ended with cannot earn anything: give --max-tokens {4 * max_tokens}, "
            f"or prompts that ask for short answers"
        )
    # An answer that was cut off would perhaps have ended in the format.
    if task.measure == "accuracy" and formatted <= NEARLY_NONE and not (cut and task.chat):
        found["format"] = (
            f"{100 * formatted:.0f} % of the held-out answers are in the format that the task "
            f"{task.name} reads; {_other_style(line, task, chats)}"
        )
    return found


def equal_rewards(found: Judged, generated: Generated, method: str) -> str:
    """What to change where the rewards to every prompt were equal.

    Args:
        found: of the last generation; not all NaN.
        generated: its answers.
        method: of the run.
    """
    least, most = float(np.nanmin(found.reward)), float(np.nanmax(found.reward))
    same = f"all rewards were {least:.3g}" if least == most else "all answers earned the same"
    if found.correct.all():
        why, remedy = "as all answers are right", "give harder problems"
    elif (generated.tokens == generated.tokens[:1]).all():
        why = "as they were the same answers"
        option = "--sigma" if method == "es" else "--temperature"
        remedy = f"give a larger {option}"
    else:
        why = "though the answers differ"
        remedy = "reward what comes close, too (reward=smooth in the task), or give other problems"
    return (
        f"to every prompt of {SILENT} generations {same}, {why}: nothing can be learnt from that; "
        f"{remedy}"
    )


def _beside(problem: Problem) -> object:
    """What an answer is judged by, without the prompt; None where nothing is left."""
    if not isinstance(problem.reference, dict):
        return problem.reference
    rest = {name: x for name, x in problem.reference.items() if x != problem.prompt}
    return rest or None


def _other_style(line: str, task: TextTask, chats: bool) -> str:
    """The way out where answers are not in the format."""
    name, *options = words_of(line)
    now = dict(option.split("=", 1) for option in options)
    if not chats and task.chat:
        return f'the model has no chat template: try --task "{_with(line, style="plain")}"'
    if name in TASKS and chats and now | CHAT != now:
        return f'a chat model answers in sentences: try --task "{_with(line, **CHAT)}"'
    return "train the model on the format first, or take a larger one"


def _with(line: str, **style: str) -> str:
    """The task line with another style."""
    kept = [word for word in words_of(line) if word.partition("=")[0] not in ("style", "answer")]
    spelt = [f"'{word}'" if " " in word else word for word in kept]
    return one_line(" ".join([*spelt, *(f"{name}={value}" for name, value in style.items())]))
