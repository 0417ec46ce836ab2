"""Rows of a population, in any groups and of any members, against weights that are formed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from springroll.evolve.members import Members
from springroll.evolve.roles import describe
from springroll.evolve.rows import prepare_rows
from springroll.thin.transform import factored
from tests.evolve.dense_population import all_noise

PAIRS, GROUPS, HEIGHT = 3, 4, 2
SEED = jnp.array([1, 2], jnp.uint32)
RNG = np.random.default_rng(0)
PARAMS = {
    "layers": {"w": jnp.asarray(RNG.normal(size=(2, 5, 5)), jnp.float32)},
    "head": jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32),
    "bias": jnp.asarray(RNG.normal(size=3), jnp.float32),
    "frozen": jnp.float32(2.0),
}
laws = settings(max_examples=12, deadline=None, derandomize=True)
pair = st.lists(st.integers(0, PAIRS - 1), min_size=GROUPS, max_size=GROUPS)
signs = st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=8, max_size=8)
inputs = st.integers(0, 9).map(lambda seed: np.random.default_rng(seed).normal(size=(4, 2, 5)))


def apply(params, x):
    x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["layers"]["w"])[0]
    return (x @ params["head"] + params["bias"]) * params["frozen"]


@functools.cache
def members(stored):
    perturbation = describe(PARAMS, rank=2, roles={"bias": "dense", "frozen": "frozen"})
    pairs = jnp.arange(PAIRS, dtype=jnp.uint32)
    members = Members(pairs, None, SEED, jnp.int32(3), jnp.float32(0.3), perturbation)
    return jax.jit(Members.keep_factors)(members) if stored else members


@functools.cache
def noise():
    return all_noise(members(True))


@jax.jit
def by_groups(members, pair, sign, x):
    return members.groups(pair).each_row(factored(apply), PARAMS, sign, x)


@jax.jit
def prepared(members, pair, sign, x):
    return prepare_rows(PARAMS, members.groups(pair), sign).call(apply, x)


def formed(pair, sign, x):
    """The same in float64, a copy of the weights per row."""

    def row(pair, sign, x):
        moved = lambda path, w: np.asarray(w, np.float64) + 0.3 * sign * noise()[pair][path]
        for w in moved("layers/w", PARAMS["layers"]["w"]):
            x = np.tanh(x @ w)
        return (x @ moved("head", PARAMS["head"]) + moved("bias", PARAMS["bias"])) * 2.0

    rows = [
        [row(p, s, y) for s, y in zip(*group, strict=True)]
        for p, *group in zip(pair, sign, x, strict=True)
    ]
    return np.array(rows)


@laws
@given(pair, signs, inputs, st.booleans())
def test_rows_are_those_of_formed_weights(pair, signs, x, stored):
    sign = np.array(signs, np.float32).reshape(GROUPS, HEIGHT)
    want = formed(pair, sign, x)
    arguments = jnp.array(pair, jnp.int32), jnp.asarray(sign), jnp.asarray(x, jnp.float32)
    for run in (by_groups, prepared):
        np.testing.assert_allclose(run(members(stored), *arguments), want, rtol=1e-3, atol=1e-4)


def test_groups_of_all_pairs_share_their_signs():
    x = jnp.asarray(RNG.normal(size=(PAIRS, 2, 5)), jnp.float32)
    sign = jnp.array([1.0, -1.0])
    groups = jax.jit(Members.groups)(members(True))
    assert groups.count == PAIRS
    got = jax.jit(lambda groups: groups.each_row(factored(apply), PARAMS, sign, x))(groups)
    want = formed(range(PAIRS), [[1.0, -1.0]] * PAIRS, np.asarray(x))
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_groups_of_one_kind_perturb_nothing_else():
    groups = members(True).groups()
    low_rank, dense = groups.only("low-rank"), groups.only("dense")
    assert set(low_rank.factors) == {"layers/w", "head"} and set(dense.factors) == {"bias"}
    again = dataclasses.replace(low_rank.with_rank_first(), rank_first=False)
    for path, axis in groups.perturbation.pair_axes().items():
        if path in low_rank.factors:
            for x, y in zip(again.factors[path], groups.factors[path], strict=True):
                np.testing.assert_array_equal(jnp.moveaxis(x, axis + 1, -1), y)
