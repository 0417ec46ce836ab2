"""Layers taken apart are the layers of the stack, weights and perturbations alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.evolve.perturbation import describe
from springroll.generate import unstacked
from springroll.generate.rows import bound
from springroll.thin.factored_array import Factored

LAYERS, PAIRS = 3, 4
ROLES = {"layers/bias": "sd", "layers/gate": "dense", "layers/frozen": "frozen"}


def params():
    keys = jax.random.split(jax.random.key(0), 6)
    draw = lambda key, *shape: jax.random.normal(key, shape)
    return {
        "head": draw(keys[0], 5, 4),
        "layers": {
            "w": draw(keys[1], LAYERS, 4, 5),
            "norm": draw(keys[2], LAYERS, 5),  # low-rank over layers and channels: "mn"
            "bias": draw(keys[3], LAYERS, 5),
            "gate": draw(keys[4], LAYERS, 5),
            "frozen": draw(keys[5], LAYERS, 5),
        },
    }


def formed(perturbation, weights, factors, pair):
    one = {
        path: tuple(jnp.take(x, pair, axis) for x in factors[path])
        for path, axis in perturbation.pair_axes().items()
    }
    attached = perturbation.attach(weights, one, jnp.float32(-1), jnp.float32(0.5))
    is_factored = lambda x: isinstance(x, Factored)
    dense = lambda x: x.dense() if is_factored(x) else x
    return jax.tree.map(dense, attached, is_leaf=is_factored)


@pytest.mark.parametrize("rank", [1, 2])
def test_members_taken_apart_are_members(rank):
    weights = params()
    whole = describe(weights, rank=rank, roles=ROLES)
    drawn = whole.draw(
        jnp.array([1, 2], jnp.uint32), jnp.int32(3), jnp.arange(PAIRS, dtype=jnp.uint32)
    )
    apart, factors = unstacked.perturbation(whole), unstacked.factors(whole, drawn)
    for pair in range(PAIRS):
        expected = formed(whole, weights, drawn, pair)
        got = formed(apart, unstacked.weights(weights), factors, pair)
        np.testing.assert_allclose(got["head"], expected["head"], atol=1e-6)
        for i, layer in enumerate(got["layers"]):
            for name, value in layer.items():
                np.testing.assert_allclose(value, expected["layers"][name][i], atol=1e-6)


def test_groups_hold_the_factors_of_their_pairs_in_the_type_of_the_weights():
    whole = describe(params(), rank=1, roles=ROLES)
    drawn = whole.draw(
        jnp.array([1, 2], jnp.uint32), jnp.int32(3), jnp.arange(PAIRS, dtype=jnp.uint32)
    )
    groups = jnp.array([2, 0, 2])
    got = bound(whole, drawn, groups, jnp.bfloat16)
    for path, axis in whole.pair_axes().items():
        for ours, each in zip(got[path], drawn[path], strict=True):
            expected = jnp.take(each, groups, axis).astype(jnp.bfloat16)
            np.testing.assert_array_equal(ours, expected)
