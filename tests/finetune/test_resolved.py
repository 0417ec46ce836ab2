"""What a new run decides once: the rate of a model by its size, and its momentum."""

import pytest

from springroll.finetune.config import FinetuneConfig
from springroll.finetune.setup import LARGE, resolved


@pytest.mark.parametrize(
    ("options", "parameters", "expected"),
    [
        ({}, LARGE + 1, 0.1),
        ({"momentum": 0.0}, LARGE + 1, 1.0),
        ({"momentum_generations": 0}, LARGE + 1, 0.1),
        ({"lr": 0.03}, LARGE + 1, 0.03),
        ({}, LARGE, None),
        ({"optimizer": "adam"}, LARGE + 1, None),
        ({"method": "grpo"}, LARGE + 1, None),
    ],
)
def test_a_large_model_moves_by_one_sigma_with_its_momentum(options, parameters, expected):
    assert resolved(FinetuneConfig(**options), parameters).lr == expected


def test_momentum_is_made_again_where_it_is_worth_it():
    generations = lambda parameters: resolved(FinetuneConfig(), parameters).momentum_generations
    assert (generations(LARGE), generations(LARGE + 1)) == (0, 44)
