"""Learners on a regression of a few numbers: skipped steps, accumulation, mending, one meaning."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from springroll.quant.split_master import high_half, with_split_master
from springroll.train.build import Placement
from springroll.train.learners import optax_learner
from springroll.train.step_memory import Memory


def loss(params, batch):
    x = batch.astype(jnp.float32) / jnp.float32(10)
    out = x[:, :-1] @ params["w"].astype(jnp.float32)
    nats = jnp.mean(jnp.square(out - x[:, -1:]))
    return nats, {"nats": nats, "load": jnp.sum(batch > 3)}


def init(key):
    return {"w": jax.random.normal(key, (3, 1)), "count": jnp.zeros(())}


def batch(seed=0, rows=8):
    return np.random.default_rng(seed).integers(0, 9, (rows, 4)).astype(np.uint8)


def trained(learner, steps=5):
    state, metrics = learner.init(jax.random.key(0)), {}
    for i in range(steps):
        state, metrics = learner.step(state, batch(i))
    return state, metrics


def test_a_step_is_the_optimizers():
    learner = optax_learner(loss, init, optax.sgd(0.1))
    state, metrics = trained(learner, 1)
    params = init(jax.random.key(0))
    value, grads = jax.value_and_grad(lambda p: loss(p, batch(0))[0])(params)
    np.testing.assert_allclose(state.params["w"], params["w"] - 0.1 * grads["w"], rtol=1e-5)
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-6)
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)


def test_micro_batches_make_the_same_step():
    one = trained(optax_learner(loss, init, optax.adam(0.1)))[0]
    four = trained(optax_learner(loss, init, optax.adam(0.1), accumulate=4))[0]
    np.testing.assert_allclose(one.params["w"], four.params["w"], atol=1e-5)


def test_a_state_divided_over_devices_takes_the_same_steps():
    placement = Placement(Mesh(np.array(jax.devices()[:2]), ("batch",)), fsdp=True)
    wide = lambda key: {"w": jax.random.normal(key, (6, 1)), "count": jnp.zeros(())}
    rows = np.random.default_rng(0).integers(0, 9, (8, 7)).astype(np.uint8)
    states, memories = [], []
    for layout in (None, placement.layout):
        learner = optax_learner(loss, wide, optax.adam(0.1), layout=layout)
        state = learner.init(jax.random.key(0))
        for _ in range(3):
            state, _ = learner.step(
                state, jax.device_put(rows, placement.batch) if layout else rows
            )
        states.append(state)
        given = jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=placement.batch)
        memories.append(learner.memory(given))
    whole, divided = states
    np.testing.assert_allclose(whole.params["w"], divided.params["w"], rtol=1e-5)
    for moment in (divided.optimizer[0].mu, divided.optimizer[0].nu, divided.params):
        assert [shard.data.shape for shard in moment["w"].addressable_shards] == [(3, 1)] * 2
    count = 4  # bytes, of a number that is whole on every device
    assert memories[1].weights - count == (memories[0].weights - count) // 2
    assert memories[1].devices == 2 and memories[1].batch <= rows.size // 2 + 8
    table = [column.header for column in memories[1].table().columns]
    assert table == ["memory of a step", "each of 2 devices"]


def test_arrays_are_cut_along_the_longest_axis_that_divides():
    placement = Placement(Mesh(np.array(jax.devices()[:4]), ("batch",)), fsdp=True)
    spec = lambda *shape: placement.state(np.zeros(shape)).spec
    assert spec(3, 8, 16) == PartitionSpec(None, None, "batch")
    assert spec(3, 8, 9) == PartitionSpec(None, "batch")
    assert spec(3, 9) == spec() == spec(0) == PartitionSpec()
    assert placement._replace(fsdp=False).state(np.zeros((8, 8))).spec == PartitionSpec()


def test_a_loss_that_is_not_finite_changes_nothing():
    bad = lambda params, rows: jax.tree.map(
        lambda x: (
            jnp.where(rows[0, 0] == 255, jnp.asarray(jnp.nan, x.dtype), x)
            if jnp.issubdtype(x.dtype, jnp.floating)
            else x
        ),
        loss(params, rows),
    )
    learner = optax_learner(bad, init, optax.adam(0.1))
    state = trained(learner, 3)[0]
    before = jax.tree.map(np.array, (state.params, state.optimizer))
    poisoned = batch()
    poisoned[0, 0] = 255
    state, metrics = learner.step(state, poisoned)
    assert np.isnan(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, before, (state.params, state.optimizer))
    assert int(state.steps) == 4


def test_what_has_no_gradient_is_adjusted_by_the_metrics():
    adjust = lambda params, metrics: params | {"count": params["count"] + metrics["nats"]}
    state, metrics = trained(optax_learner(loss, init, optax.sgd(0.1), adjust=adjust), 1)
    assert float(state.params["count"]) == pytest.approx(float(metrics["nats"]), rel=1e-6)


def test_bfloat16_halves_learn_what_float32_learns():
    whole = trained(optax_learner(loss, init, optax.sgd(0.01)), 1)[0]
    learner = optax_learner(loss, init, with_split_master(optax.sgd(0.01)), narrow=high_half)
    halves = trained(learner, 1)[0]
    assert halves.params["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(halves.params["w"].astype(np.float32), whole.params["w"], rtol=1e-2)
    rows = jax.ShapeDtypeStruct((8, 4), jnp.uint8)
    memory = learner.memory(rows)
    assert isinstance(memory, Memory) and memory.weights == 2 * 4


def test_its_memory_is_known_without_running_it():
    learner = optax_learner(loss, init, optax.adam(0.1))
    memory = learner.memory(jax.ShapeDtypeStruct((8, 4), jnp.uint8))
    assert isinstance(memory, Memory)
    weights = 4 * sum(w.size for w in jax.tree.leaves(init(jax.random.key(0))))
    assert memory.weights == weights and memory.state >= 2 * weights < memory.peak
