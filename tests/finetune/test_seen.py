"""What a run says to people: when, and with which remedy."""

import numpy as np
import pytest

from springroll.finetune.judging import Judged
from springroll.finetune.seen import SILENT, Seen, advice
from springroll.generate.generator import Generated
from springroll.tasks.task_line import task_of_line

FINE = {"truncation_rate": 0.2, "format_rate": 0.6, "mean_length": 9.0}


def said(line="arithmetic digits=1", chats=True, **figures):
    return advice({**FINE, **figures}, line, task_of_line(line), chats, 16)


def worth(*reward, correct=False):
    reward = np.array(reward, np.float32)
    right, length = np.full(reward.shape, correct), np.ones(reward.shape, np.int32)
    return Judged(reward, right, right, ~right, length, {})


def generated(tokens):
    tokens = np.asarray(tokens, np.int32)[:, :, None]
    there = np.ones(tokens.shape[:2], np.int32)
    ended = there.astype(bool)
    return Generated(tokens, there, ended, ~ended, None, 1, 1, 1)


def test_nothing_is_said_where_all_is_well():
    assert said() == {} and said(chats=False) == {}


def test_answers_that_are_cut_off_name_the_limit_and_the_length():
    line = said(truncation_rate=0.95, mean_length=15.7)["truncated"]
    assert line.startswith("95 % of the held-out answers were cut off at --max-tokens 16")
    assert "(mean length 16 tokens)" in line and "--max-tokens 64" in line


@pytest.mark.parametrize(
    ("line", "chats", "remedy"),
    [
        ("arithmetic digits=1", True, '"arithmetic digits=1 style=instruct answer=last"'),
        (
            "countdown numbers=3 style=instruct operations=+- answer=tag",
            True,
            '"countdown numbers=3 operations=+- style=instruct answer=last"',
        ),
        ("arithmetic style=instruct", False, '"arithmetic style=plain"'),
        ("arithmetic", False, "train the model on the format first"),
        ("arithmetic style=instruct answer=last", True, "train the model on the format first"),
    ],
)
def test_answers_in_another_format_name_the_style_that_fits(line, chats, remedy):
    found = said(line, chats, format_rate=0.0)
    assert list(found) == ["format"]
    assert found["format"].startswith("0 % of the held-out answers are in the format") and (
        remedy in found["format"]
    )


def test_a_chat_that_was_cut_off_is_not_blamed_for_its_format():
    cut = {"truncation_rate": 1.0, "format_rate": 0.0}
    assert list(said("arithmetic style=instruct", True, **cut)) == ["truncated"]
    assert list(said("arithmetic", True, **cut)) == ["truncated", "format"]


def test_equal_rewards_are_told_after_a_few_generations_in_a_row():
    same, other = generated([[5, 6], [5, 6]]), generated([[5, 6], [7, 6]])
    equal, apart = worth([0, 1], [0, 1]), worth([0, 1], [0, 0.5])
    seen = Seen()
    for _ in range(SILENT - 1):
        seen.look_at_rewards(equal, same, "es")
    seen.look_at_rewards(apart, same, "es")
    for _ in range(SILENT - 1):
        seen.look_at_rewards(equal, same, "es")
    assert not seen.warnings
    seen.look_at_rewards(equal, same, "es")
    assert seen.warnings["equal_rewards"].endswith("give a larger --sigma")
    seen = Seen()
    for _ in range(SILENT):
        seen.look_at_rewards(worth([0, 0], [0, 0]), other, "grpo")
    assert "all rewards were 0, though the answers differ" in seen.warnings["equal_rewards"]


def test_answers_that_are_all_right_want_harder_problems():
    seen = Seen()
    for _ in range(SILENT):
        seen.look_at_rewards(worth([1, 1], [1, 1], correct=True), generated([[5], [5]]), "es")
    assert seen.warnings["equal_rewards"].endswith("give harder problems")


def test_what_could_not_be_scored_is_no_equal_reward():
    seen, lost = Seen(), worth([np.nan] * 2, [np.nan] * 2)
    for _ in range(SILENT):
        seen.look_at_rewards(lost, generated([[5, 6], [5, 6]]), "es")
    assert not seen.warnings
