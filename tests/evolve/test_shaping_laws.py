"""Laws of every shaping, for any fitness: its scale and order, its sum, its failed members."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from springroll.evolve.shaping import SHAPINGS, group_centred

PAIRS = 6
N = 2 * PAIRS
EVERY = sorted(SHAPINGS)
OF_MEMBERS = ["z_score", "centred_ranks"]  # those that do not look at pairs
OF_PAIRS = ["pair_sign", "pair_difference"]

laws = settings(max_examples=25, deadline=None, derandomize=True)
number = st.integers(-1000, 1000).map(lambda i: i / 8)  # exact in float32, as are their sums
fitness = st.lists(number, min_size=N, max_size=N).map(lambda x: np.array(x, np.float32))
failed = st.lists(st.booleans(), min_size=N, max_size=N).map(np.array)
permutation = st.permutations(range(N)).map(np.array)


def shaped(name, values):
    return np.asarray(SHAPINGS[name](jnp.asarray(values)))


@pytest.mark.parametrize("name", EVERY)
@laws
@given(fitness, failed)
def test_weights_are_finite_and_failed_members_have_none(name, values, failed):
    values = np.where(failed, np.nan, values).astype(np.float32)
    weights = shaped(name, values)
    assert weights.shape == (N,) and weights.dtype == np.float32
    assert np.isfinite(weights).all() and not weights[failed].any()


@pytest.mark.parametrize("name", EVERY)
@laws
@given(fitness, failed)
def test_weights_sum_to_zero(name, values, failed):
    values = np.where(failed, np.inf, values).astype(np.float32)
    weights = shaped(name, values)
    if name == "centred_ranks":
        assert weights[~failed].sum() <= 1e-5  # ties at the top and bottom share their mean rank
    assert abs(weights.sum()) < 1e-4 * max(1, np.abs(weights).sum())


@pytest.mark.parametrize("name", OF_MEMBERS)
@laws
@given(fitness, permutation)
def test_the_order_of_members_does_not_matter(name, values, order):
    np.testing.assert_allclose(shaped(name, values[order]), shaped(name, values)[order], atol=1e-5)


@pytest.mark.parametrize("name", OF_PAIRS)
@laws
@given(fitness, st.permutations(range(PAIRS)).map(np.array), st.lists(number, min_size=6))
def test_pairs_may_be_reordered_swapped_and_shifted(name, values, order, shared):
    weights = shaped(name, values).reshape(PAIRS, 2)
    pairs = values.reshape(PAIRS, 2)
    np.testing.assert_allclose(
        shaped(name, pairs[order].ravel()), weights[order].ravel(), rtol=1e-5, atol=1e-6
    )
    swapped = shaped(name, pairs[:, ::-1].ravel())
    np.testing.assert_allclose(swapped, weights[:, ::-1].ravel(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(weights[:, 0], -weights[:, 1])
    common = np.array(shared[:PAIRS], np.float32)[:, None]  # what both members of a pair have
    moved = shaped(name, (pairs + common).ravel())
    np.testing.assert_allclose(moved, weights.ravel(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
@laws
@given(fitness, st.sampled_from([0.25, 2.0, 64.0]), number)
def test_scale_and_offset_of_fitness_do_not_matter(name, values, scale, offset):
    if values.std() < 1:
        return  # z_score keeps a tiny deviation from blowing up
    atol = 1e-3 if name == "z_score" else 1e-5
    got = shaped(name, (values * np.float32(scale) + np.float32(offset)).astype(np.float32))
    np.testing.assert_allclose(got, shaped(name, values), atol=atol)


@pytest.mark.parametrize("name", EVERY)
@laws
@given(fitness)
def test_better_members_never_weigh_less(name, values):
    weights = shaped(name, values)
    if name in OF_PAIRS:
        ahead, lead = values[::2] - values[1::2], weights[::2] - weights[1::2]
        assert (np.sign(ahead) == np.sign(lead)).all()
    else:
        order = np.argsort(values, kind="stable")
        assert (np.diff(weights[order]) >= 0).all()


@laws
@given(fitness, st.lists(st.integers(0, 3), min_size=N, max_size=N).map(np.array))
def test_every_group_is_centred(values, ids):
    weights = np.asarray(group_centred(ids)(jnp.asarray(values)))
    for group in set(ids.tolist()):
        assert abs(weights[ids == group].sum()) < 1e-4
