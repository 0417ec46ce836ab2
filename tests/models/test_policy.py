"""The policy network against its formula, and what it promises to those who run it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.models.policy import PolicyNetwork, linear, pqn
from springroll.thin.discovery import discover
from tests.compiling import normal, quick_jit

SMALL = PolicyNetwork(5, 3, width=16, layers=2)


def by_hand(params, observation):
    """The formula in float64, a loop."""

    def normal(x):
        x = x - x.mean()
        return np.maximum(x / np.sqrt((x * x).mean() + 1e-5), 0)

    get = lambda x: np.asarray(x, np.float64)
    x = normal(get(observation) @ get(params["embed"]))
    for layer in params["hidden"]:
        x = normal(x @ get(layer["weight"]) + get(layer["bias"]))
    return get(params["head"]) @ x + get(params["head_bias"])


def shifted(params, seed):
    """Weights none of which is zero."""
    leaves, tree = jax.tree.flatten(params)
    moved = [x + 0.1 * normal(seed + i, *x.shape) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(tree, moved)


def fresh(network):
    return quick_jit(network.init)(jax.random.key(0))


def test_it_is_the_formula():
    params, observation = shifted(fresh(SMALL), 1), normal(0, 5)
    found = quick_jit(SMALL.apply)(params, observation)
    assert found.dtype == jnp.float32 and found.shape == (3,)
    np.testing.assert_allclose(found, by_hand(params, observation), atol=2e-6)


def test_the_papers_size_is_the_references():
    shapes = jax.eval_shape(PolicyNetwork(4, 2).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 198_914


def test_pqn_is_blind_to_scale_and_shift():
    x = normal(0, 64)
    normed = quick_jit(pqn)
    np.testing.assert_allclose(normed(100.0 * x + 7.0), normed(x), atol=2e-4)
    assert float(normed(x).min()) == 0.0


def test_at_first_no_action_is_dear():
    network = PolicyNetwork(4, 6)
    logits = quick_jit(network.apply)(fresh(network), jnp.ones(4))
    assert float(jnp.abs(logits).max()) < 0.05


def test_deviations_are_parameters_behind_the_means():
    network = PolicyNetwork(5, 4, deviations=2, width=16)
    params = fresh(network) | {"log_deviation": jnp.array([0.5, -1.0])}
    apply = quick_jit(network.apply)
    for seed in range(2):
        outputs = apply(params, normal(seed, 5))
        np.testing.assert_array_equal(outputs[2:], params["log_deviation"])


def test_ready_weights_give_the_same_bits():
    network = PolicyNetwork(5, 3, width=16, layers=2, compute="bfloat16")
    params = fresh(network)
    ready = network.ready(params)
    assert ready["hidden"][0]["weight"].dtype == jnp.bfloat16
    assert ready["embed"].dtype == ready["head"].dtype == jnp.float32
    observation = jnp.arange(5.0)
    apply = quick_jit(network.apply)
    np.testing.assert_array_equal(apply(params, observation), apply(ready, observation))


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_sixteen_bits_stay_close(compute):
    network = PolicyNetwork(5, 3, width=64, layers=3, compute=compute)
    params, observation = fresh(network), normal(1, 5)
    scale = float(np.abs(by_hand(params, observation)).max())
    outputs = quick_jit(network.apply)(params, observation)
    error = np.abs(outputs - by_hand(params, observation)).max()
    assert error < {"float32": 1e-5, "bfloat16": 0.05}[compute] * scale


def test_every_matrix_stays_thin():
    shapes = jax.eval_shape(SMALL.init, jax.random.key(0))
    roles = discover(SMALL.apply, shapes, jax.ShapeDtypeStruct((5,), jnp.float32))
    kinds = {path: found.kind for path, found in roles.items()}
    assert {kinds[p] for p in kinds if p.endswith(("weight", "embed", "head"))} == {"low-rank"}
    assert {kinds[p] for p in kinds if p.endswith("bias")} == {"dense"}


def test_a_linear_policy_begins_at_zero():
    policy = linear(3, 2)
    params = policy.init(jax.random.key(0))
    observation = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(policy.apply(params, observation), np.zeros(2))
    params = {"weight": jnp.arange(6.0).reshape(3, 2), "bias": jnp.array([1.0, -1.0])}
    np.testing.assert_allclose(policy.apply(params, observation), [17.0, 21.0])
