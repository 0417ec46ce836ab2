"""What a model is asked: prompts of problems as tokens, and how many are held out."""

from types import SimpleNamespace
from typing import Any

import pytest

from springroll.errors import InputError
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.setup import Asked, Setup
from springroll.tasks.problem import Problem, spoken
from springroll.tasks.task_line import task_of_line
from springroll.tokens.byte_tokenizer import ByteTokenizer, byte_tokenizer


def setup_of(tokenizer, task: Any, prompts=()):
    """A setup of which only this is used."""
    nothing: Any = SimpleNamespace()
    return Setup(
        model=nothing,
        folder=nothing,
        tokenizer=tokenizer,
        task=task,
        generator=nothing,
        greedy=nothing,
        parameters=0,
        held_out=Asked([], [*prompts]),
        config=FinetuneConfig(),
    )


def test_a_record_that_the_template_refuses_is_named():
    task = SimpleNamespace(chat=True)
    setup = setup_of(byte_tokenizer(), task)
    assert setup.tokens_of(Problem("ab", None)) == [0, 97, 98]
    said = [{"role": "user", "content": "ab"}]
    with pytest.raises(InputError, match=r"^line 7 of x\.jsonl is no prompt: a model of plain byt"):
        setup.tokens_of(Problem(said, None, where="line 7 of x.jsonl"))
    with pytest.raises(InputError, match=r"^line 8 of x\.jsonl is no prompt: a model of plain byt"):
        setup.tokens_of(Problem("ab", None, tools=[{"name": "add"}], where="line 8 of x.jsonl"))


class Silent(ByteTokenizer):
    """Of a text that is left empty, such as by a chat template."""

    def encode(self, text, special=True):
        return []


def test_a_record_of_which_the_model_reads_nothing_is_named():
    setup = setup_of(Silent(), SimpleNamespace(chat=False))
    with pytest.raises(InputError, match=r"^line 7 of x is no prompt: the model reads no token of"):
        setup.tokens_of(Problem(" ", None, where="line 7 of x"))


@pytest.mark.parametrize(
    ("line", "count", "said"),
    [
        ("arithmetic digits=1", 256, "256 held-out problems, of which 10 are different"),
        ("arithmetic digits=4", 5, "5 held-out problems"),
        ("arithmetic", 1, "1 held-out problem"),
    ],
)
def test_problems_that_come_again_are_told(line, count, said):
    task = task_of_line(line)
    prompts = [byte_tokenizer().encode(spoken(task.held_out(i).prompt)) for i in range(count)]
    assert setup_of(byte_tokenizer(), task, prompts).held_out_line == said
