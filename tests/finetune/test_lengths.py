"""Lengths of prompts and answers, decided once from task and model."""

import json

import pytest

from springroll.errors import InputError
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.lengths import with_lengths
from springroll.models.hf.files import context_length
from springroll.tasks.task_line import task_of_line


def lengths(line="arithmetic", context=None, **options):
    found = with_lengths(FinetuneConfig(model="m", **options), task_of_line(line), context)
    return found.max_tokens, found.max_prompt_tokens


def test_an_answer_takes_what_the_task_says_and_a_prompt_the_rest():
    assert lengths("arithmetic digits=2") == (16, None)
    assert lengths("arithmetic digits=2", 512) == (16, 496)
    assert lengths("arithmetic style=instruct", 512) == (64, 448)
    assert lengths("countdown style=instruct", 300) == (150, 150)  # half of a short context
    assert lengths("arithmetic", 512, max_tokens=500, max_prompt_tokens=12) == (500, 12)


def test_a_run_of_an_earlier_version_drops_no_prompt():
    assert lengths("arithmetic", None, max_tokens=64) == (64, None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_tokens": 512}, "the model reads 512 tokens at most, and max_tokens is 512"),
        ({"max_prompt_tokens": 500}, "500 and max_tokens 16 are 516 tokens; the model reads 512"),
    ],
)
def test_what_does_not_fit_the_context_is_one_line(options, said):
    with pytest.raises(InputError, match=said):
        lengths("arithmetic", 512, **options)


@pytest.mark.parametrize(
    ("values", "context"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"max_position_embeddings": 131072, "rope_scaling": {"factor": 8.0}}, 131072),
        (
            {
                "max_position_embeddings": 32768,
                "rope_parameters": {"factor": 4, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        ({"max_position_embeddings": 4096, "model_type": "rwkv7"}, None),
        ({"max_position_embeddings": "many", "rope_scaling": [1]}, None),
        ({}, None),
    ],
)
def test_the_context_is_read_from_the_config(tmp_path, values, context):
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert context_length(tmp_path) == context
