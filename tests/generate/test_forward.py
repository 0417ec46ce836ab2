"""Layers split off a stack are those of the stack, weights and perturbations alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.evolve.members import Members
from springroll.evolve.roles import describe
from springroll.generate import programs
from springroll.generate.forward import split_groups, split_layers
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


def population(rank):
    perturbation = describe(params(), rank=rank, roles=ROLES)
    pairs, seed = jnp.arange(PAIRS, dtype=jnp.uint32), jnp.array([1, 2], jnp.uint32)
    members = Members(pairs, None, seed, jnp.int32(3), jnp.float32(0.5), perturbation)
    return jax.jit(Members.keep_factors)(members)


@pytest.mark.parametrize("rank", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_members_with_split_layers_are_members(rank):
    weights, groups = params(), population(rank).groups()

    @jax.jit
    def both(pair):
        split = split_groups(groups)
        expected = formed(groups.perturbation, weights, groups.factors, pair)
        got = formed(split.perturbation, split_layers(weights), split.factors, pair)
        return expected, got

    for pair in range(PAIRS):
        expected, got = both(pair)
        np.testing.assert_allclose(got["head"], expected["head"], atol=1e-6)
        for i, layer in enumerate(got["layers"]):
            for name, value in layer.items():
                np.testing.assert_allclose(value, expected["layers"][name][i], atol=1e-6)


def test_groups_hold_the_factors_of_their_pairs_in_the_type_of_the_weights():
    members, pairs = population(1), jnp.array([2, 0, 2])
    program = programs.Program(None, jnp.dtype(jnp.bfloat16), (), 1, 1, False, False)  # type: ignore[arg-type]
    got = programs.row_groups(program, members, pairs)
    assert got.count == 3
    for path, axis in members.perturbation.pair_axes().items():
        for ours, drawn in zip(got.factors[path], members.factors[path], strict=True):
            expected = jnp.take(drawn, pairs, axis).astype(jnp.bfloat16)
            np.testing.assert_array_equal(ours, expected)
