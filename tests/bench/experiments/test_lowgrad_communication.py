"""All-reduced bytes are read off the program; a data-parallel step sends no full gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bench.lowgrad_communication import all_reduced, placed, shardings
from springroll.bench.lowgrad_memory import full_step
from springroll.subspace.lowgrad import lowgrad
from tests.subspace.stacked_model import LAYERS, init, loss

pytestmark = pytest.mark.slow

HLO = """
%region_0 (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%body.1 (arg: (s32[], f32[4,3])) -> (s32[], f32[4,3]) {
  %all-reduce.1 = f32[4,3]{1,0} all-reduce(%x), to_apply=%region_0
}

ENTRY %main (p: f32[7]) -> f32[7] {
  %loop = (s32[], f32[4,3]) while(%t), body=%body.1, backend_config={"known_trip_count":{"n":"5"}}
  %all-reduce.2 = (f32[7]{0}, bf16[2]{0}) all-reduce(%p, %q), to_apply=%region_0
}
"""
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 29, (8, 9)), jnp.int32)


def test_loops_count_as_often_as_they_run():
    assert all_reduced(HLO) == {(4, 3): 5 * 48, (7,): 28, (2,): 4}


def test_data_parallel_steps_send_gradients_of_S_and_learn_the_same():
    params = init(d=64, f=172)
    whole, split = shardings()
    optimizer = optax.sgd(0.1, momentum=0.9)
    trainer = lowgrad(loss, params, optimizer, TOKENS, rank=16, refresh_interval=2, turns=1)
    state = trainer.init(params)
    shapes = placed(jax.eval_shape(lambda s: s, dataclasses.replace(state, schedule=None)), whole)
    shapes = dataclasses.replace(shapes, schedule=state.schedule)
    batch = placed(jax.eval_shape(lambda t: t, TOKENS), split)
    ours = all_reduced(trainer.lower("step", shapes, batch).compile().as_text() or "")
    step = jax.jit(full_step(lambda *a: (loss(*a), None), optimizer))
    moments = placed(jax.eval_shape(optimizer.init, params), whole)
    compiled = step.lower(placed(params, whole), moments, batch).compile()
    full = all_reduced(compiled.as_text() or "")
    ends = params["embed"].shape
    matrices = lambda found: sum(b for shape, b in found.items() if shape != ends)
    assert matrices(full) >= LAYERS * 4 * (2 * 64 * 64 + 3 * 64 * 172)
    assert matrices(full) >= 4.5 * matrices(ours)

    many = jax.device_put(jax.tree.map(jnp.array, state), whole)
    for _ in range(4):  # from random bases; the bench goes over a refresh
        state, one = trainer.step(state, TOKENS)
        many, all_ = trainer.step(many, jax.device_put(TOKENS, split))
        np.testing.assert_allclose(all_["loss"], one["loss"], rtol=1e-5)
    for a, b in zip(
        *map(jax.tree.leaves, (trainer.params(many), trainer.params(state))), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
