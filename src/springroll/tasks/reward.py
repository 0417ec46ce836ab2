"""What a judged answer is worth: exactly right or nothing, or with credit for what comes close.

Evolution sees differences between members only, and a small or untrained model answers nothing
right: the smooth reward tells its members apart all the same.
"""

from springroll.errors import InputError
from springroll.tasks.problem import Verdict

FORMAT, PARTIAL, CORRECT = 0.1, 0.4, 0.5  # the shares of the smooth reward; together 1
REWARDS = ("smooth", "exact")


def verdict(kind: str, *, formatted: bool, partial: float, correct: bool) -> Verdict:
    """The verdict on an answer.

    smooth: 0.1 formatted + 0.4 partial + 0.5 correct; exact: 1 when correct, else 0.

    Args:
        kind: "smooth" or "exact".
        partial: in 0 .. 1, the task's own measure of how close it comes; 1 only when correct.
    """
    smooth = FORMAT * formatted + PARTIAL * partial + CORRECT * correct
    reward = 1.0 if correct else smooth if kind == "smooth" else 0.0
    return Verdict(reward, correct, formatted)


def check_reward(kind: str) -> None:
    if kind not in REWARDS:
        raise InputError(f"the reward is {kind!r}; expected one of {', '.join(REWARDS)}")
