"""What a new run decides once: the rate of a model by its size, and its momentum."""

import pytest

from springroll.finetune.config import FinetuneConfig
from springroll.finetune.setup import HALF_LIFE, LARGE, resolved


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
