"""What a new run decides once: the rate of a model by its size, and its momentum."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from springroll.errors import InputError
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.evolution import master_of, saved_weights
from springroll.finetune.setup import HALF_LIFE, LARGE, resolved
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS
from springroll.run.config import resumed


@pytest.mark.parametrize(
    ("options", "parameters", "expected"),
    [
        ({"momentum": 0.9}, LARGE + 1, (0.1, HALF_LIFE)),
        ({"momentum": 0.0}, LARGE + 1, (1.0, HALF_LIFE)),
        ({"lr_half_life": 3.0}, LARGE + 1, (1.0, 3.0)),
        ({"momentum": 0.9, "momentum_generations": 0}, LARGE + 1, (0.1, HALF_LIFE)),
        ({"lr": 0.03}, LARGE + 1, (0.03, None)),
        ({}, LARGE, (None, None)),
        ({"momentum": 0.9, "optimizer": "adam"}, LARGE + 1, (None, None)),
        ({"method": "grpo"}, LARGE + 1, (None, None)),
    ],
)
def test_a_large_model_moves_by_a_sigma_with_its_momentum(options, parameters, expected):
    config = resolved(FinetuneConfig(**options), parameters)
    assert (config.lr, config.lr_half_life) == expected


def test_momentum_is_made_again_where_it_is_worth_it():
    given = FinetuneConfig(momentum=0.9)
    generations = lambda parameters: resolved(given, parameters).momentum_generations
    assert (generations(LARGE), generations(LARGE + 1)) == (0, 44)


def test_a_large_model_has_no_momentum():
    momentum = lambda parameters, **options: (
        resolved(FinetuneConfig(**options), parameters).momentum
    )
    assert (momentum(LARGE), momentum(LARGE + 1)) == (0.9, 0.0)
    assert momentum(LARGE + 1, optimizer="adam") == 0.9


@pytest.mark.parametrize(
    ("options", "parameters", "expected"),
    [
        ({}, LARGE + 1, (4, "bfloat16")),
        ({}, LARGE, (8, "float32")),
        ({"residual_bits": 8}, LARGE + 1, (8, "bfloat16")),
        ({"unquantized": "float32"}, LARGE + 1, (4, "float32")),
        ({"rounding": "float32"}, LARGE + 1, (None, "bfloat16")),
        ({"weights": "bfloat16"}, LARGE + 1, (None, None)),
    ],
)
def test_what_is_held_beside_int8_is_less_for_a_large_model(options, parameters, expected):
    found = resolved(FinetuneConfig(**{"weights": "int8"} | options), parameters)
    assert (found.residual_bits, found.unquantized) == expected


def test_int8_runs_of_earlier_versions_keep_what_they_had():
    """A whole byte of every weight, and the rest in float32; nobody decides that anew."""
    old = FinetuneConfig(weights="int8")
    assert (master_of(old), old.rest) == ("error_feedback", "float32")
    new = resolved(old, LARGE + 1)
    assert (master_of(new), new.rest) == ("error_feedback_4bit", "bfloat16")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"residual_bits": 4}, "residual_bits is 4; that is of --weights int8"),
        ({"unquantized": "bfloat16", "weights": "float32"}, "unquantized is bfloat16; that is of"),
        ({"weights": "int8", "residual_bits": 4, "rounding": "float32"}, "leave one of them out"),
    ],
)
def test_what_belongs_to_int8_is_refused_without(options, line):
    with pytest.raises(InputError, match=line):
        FinetuneConfig(**options)


def test_options_of_a_continued_run_go_together_with_the_stored_ones():
    stored = FinetuneConfig(weights="int8", residual_bits=4)
    again = FinetuneConfig(resume=True, residual_bits=4)
    assert resumed(stored, again, FinetuneConfig()) == replace(stored, resume=True)
    other = FinetuneConfig(resume=True, residual_bits=8)
    with pytest.raises(InputError, match="residual_bits is 8, but the run to resume has 4"):
        resumed(stored, other, FinetuneConfig())
    sampled = FinetuneConfig(answers=2, temperature=1.0)
    assert resumed(sampled, FinetuneConfig(resume=True, answers=2), FinetuneConfig()).answers == 2


def test_int8_weights_are_saved_in_one_type():
    """What a model computes with, whatever type the rest was trained in."""
    setup: Any = SimpleNamespace(model=decoder(CONFIGS["llama-tiny"]))
    config = FinetuneConfig(weights="int8", residual_bits=4, unquantized="bfloat16")
    saved = saved_weights(config, setup)
    assert {str(x.dtype) for x in jax.tree.leaves(saved.part)} == {"int8", "float32", "bfloat16"}
    floats = jax.eval_shape(saved.params, saved.part)
    assert {str(x.dtype) for x in jax.tree.leaves(floats)} == {"float32"}
