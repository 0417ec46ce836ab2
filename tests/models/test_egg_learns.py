"""Floats and the published integers learn a little, through what `springroll pretrain` builds."""

from typing import Any

import jax
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.pretrain.build import build
from springroll.pretrain.config import PretrainConfig

TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 400


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(8):
        (folder / f"{i}.txt").write_text(TEXT[i : len(TEXT) // 2])
    return str(folder)


def task_of(corpus, **options):
    small: dict[str, Any] = {
        "n_layers": 1,
        "hidden": 16,
        "pop_size": 128,
        "tokens_per_member": 8,
        "devices": 1,
    }
    small |= {"valid_streams": 8, "valid_tokens": 64, "lr_half_life": 100.0} | options
    return build(PretrainConfig(data=corpus, **small)).task


def learn(task, generations):
    """Validation bits per byte before and after."""
    bits = lambda state: float(task.validate(state, None)["valid_bits_per_byte"])
    (state, carry), metrics = task.init(), {}
    before = bits(state)
    for generation in range(generations):
        members = task.ask(state)
        fitness, carry, _ = task.evaluate(state, members, carry, task.batch(generation))
        state, metrics = task.tell(state, members, np.asarray(fitness))
    return before, bits(state), state, metrics


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_floats_learn(corpus, precision):
    before, after, state, metrics = learn(task_of(corpus, precision=precision), 60)
    assert after < before - 1.0, (before, after)
    assert 0 < float(metrics["step_ratio"]) < 0.05
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {precision}


@pytest.mark.slow
def test_the_published_integers_learn(corpus):
    before, after, state, metrics = learn(task_of(corpus, precision="compat"), 60)
    assert after < before - 1.0, (before, after)
    assert 0 < float(metrics["moved"]) <= 1
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"int8"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "compat", "rank": 2}, "the published integer rule has rank 1"),
        ({"precision": "compat", "sigma": 0.1}, "sigma is 0.1; .* a power of two of at most 1"),
        ({"precision": "compat", "sigma": 2.0}, "sigma is 2.0; .* a power of two of at most 1"),
        ({"precision": "float32", "rule": "residual"}, "rule 'residual' moves integer weights"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        PretrainConfig(**options)


def test_sigma_as_a_shift():
    shift = lambda sigma: PretrainConfig(precision="compat", sigma=sigma).sigma_shift
    assert [shift(s) for s in (None, 1.0, 0.125, 2.0**-6)] == [4, 0, 3, 6]
