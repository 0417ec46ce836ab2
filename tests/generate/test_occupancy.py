"""How many rows of all steps write a token, with a model that writes as many as it is told."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import springroll as sr
from springroll.generate.generator import Generator

MOST = 200


class Counting(NamedTuple):
    """Writes 1s and then the end, 0, after as many tokens as its prompt's one token says."""

    def memory(self, rows, length, dtype):
        return jnp.zeros((1, rows), jnp.int32)

    def read(self, params, tokens, lengths):
        left = tokens[:, -1]
        return self._logits(params, left), left[None]

    def admit(self, memory, entries, rows, clock):
        return memory.at[:, rows].set(entries, mode="drop")

    def step(self, params, tokens, memory, seen, clock):
        left = memory[0] - 1
        return self._logits(params, left), left[None]

    def keep(self, memory, entries, clock):
        return entries

    def _logits(self, params, left):
        x = jnp.stack([left <= 0, left > 0], axis=-1).astype(jnp.float32)
        return x @ params["w"].T


@pytest.mark.parametrize("population", [True, False])
def test_nine_of_ten_rows_write_on_skewed_lengths(population):
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(40), 0.8, 32))  # lognormal: a few are five times the mean
    prompts = np.clip(lengths, 1, MOST - 1).astype(int)[:, None].tolist()
    params = {"w": jnp.eye(2)}
    writer = Generator(model=Counting(), end=frozenset([0]), max_tokens=MOST, rows=64)
    members = None
    if population:
        es = sr.eggroll(pop_size=16, sigma=0.01)
        members = es.ask(es.init(jax.random.key(0), params))
    got = writer.run(params, members, prompts, copies=16)
    assert got.finished.all()
    np.testing.assert_array_equal(got.lengths, np.tile(np.ravel(prompts), (16, 1)))
    assert got.row_steps == got.lengths.sum()  # the end is written too, the first is no step's
    assert got.occupancy >= 0.9
