"""Shapings are the formulas they claim to be, and blind to members that failed."""

import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.evolve import shaping

F = np.array([3.0, -1.0, 2.5, 2.5, 0.0, 7.0, -4.0, 1.0], np.float32)
HOLES = np.array([3.0, np.nan, 2.5, np.inf, 0.0, 7.0, -np.inf, 1.0], np.float32)
KEPT = np.isfinite(HOLES)


def test_z_score():
    want = (F - F.mean()) / np.sqrt(F.var() + 1e-5)
    np.testing.assert_allclose(shaping.z_score(jnp.asarray(F)), want, rtol=1e-5)
    np.testing.assert_array_equal(shaping.z_score(jnp.full(6, 2.5)), np.zeros(6))


def test_centred_ranks_share_ties():
    got = shaping.centred_ranks(jnp.asarray(F))
    order = np.argsort(np.argsort(F)).astype(np.float64)
    order[2] = order[3] = 4.5
    np.testing.assert_allclose(got, order / 7 - 0.5, rtol=1e-6)
    np.testing.assert_allclose(shaping.centred_ranks(jnp.asarray(np.exp(F))), got)


def test_pair_votes_and_sign():
    np.testing.assert_array_equal(shaping.pair_votes(jnp.asarray(F)), [1, 0, -1, -1])
    np.testing.assert_array_equal(shaping.pair_sign(jnp.asarray(F)), [1, -1, 0, 0, -1, 1, -1, 1])
    whole = jnp.array(
        [5, 4, 2**24 + 1, 2**24], jnp.int32
    )  # float32 cannot tell the second pair apart
    np.testing.assert_array_equal(shaping.pair_votes(whole), [1, 1])


def test_pair_difference():
    difference = F[::2] - F[1::2]
    scaled = difference / np.sqrt(np.mean(difference**2))
    want = np.stack([scaled, -scaled], axis=1).ravel()
    np.testing.assert_allclose(shaping.pair_difference(jnp.asarray(F)), want, rtol=1e-6)
    shifted = F + np.repeat([5.0, -7.0, 100.0, 0.0], 2).astype(np.float32)  # what a pair shares
    np.testing.assert_allclose(shaping.pair_difference(jnp.asarray(shifted)), want, rtol=1e-4)
    whole = jnp.array([2**24 + 1, 2**24, 5, 5], jnp.int32)  # exact before it becomes a float
    got = np.asarray(shaping.pair_difference(whole))
    np.testing.assert_allclose(got, [2**0.5, -(2**0.5), 0, 0], rtol=1e-6)


@pytest.mark.parametrize("ids", [2, np.array([0, 0, 1, 1, 2, 2, 3, 3])])
def test_groups_are_centred_and_share_one_deviation(ids):
    means = np.repeat(F.reshape(4, 2).mean(1), 2)
    want = (F - means) / np.sqrt(F.var() + 1e-5)
    np.testing.assert_allclose(shaping.group_centred(ids)(jnp.asarray(F)), want, rtol=1e-5)


def test_groups_need_not_be_neighbours():
    ids = np.array([0, 1, 0, 1, 2, 2, 2, 2])
    got = np.asarray(shaping.group_centred(ids)(jnp.asarray(F)))
    for group in range(3):
        assert abs(got[ids == group].sum()) < 1e-5


@pytest.mark.parametrize("name", ["z_score", "centred_ranks"])
def test_failed_members_weigh_nothing_and_do_not_count(name):
    shape = shaping.shaping_named(name)
    got = np.asarray(shape(jnp.asarray(HOLES)))
    np.testing.assert_array_equal(got[~KEPT], 0)
    np.testing.assert_allclose(got[KEPT], shape(jnp.asarray(HOLES[KEPT])), rtol=1e-5)


def test_failed_members_in_pairs_and_groups():
    np.testing.assert_array_equal(shaping.pair_sign(jnp.asarray(HOLES)), [0, 0, 0, 0, -1, 1, 0, 0])
    got = shaping.pair_difference(jnp.asarray(HOLES))
    np.testing.assert_allclose(got, [0, 0, 0, 0, -1, 1, 0, 0], rtol=1e-6)
    got = np.asarray(shaping.group_centred(4)(jnp.asarray(HOLES)))
    assert (got[~KEPT] == 0).all() and abs(got[:4].sum()) < 1e-5 and abs(got[4:].sum()) < 1e-5


@pytest.mark.parametrize("name", sorted(shaping.SHAPINGS))
def test_all_failed_gives_zeros(name):
    got = shaping.shaping_named(name)(jnp.full(4, jnp.nan))
    np.testing.assert_array_equal(got, np.zeros(4))


def test_bad_input():
    with pytest.raises(InputError, match="shaping 'rank' is unknown; expected one of z_score"):
        shaping.shaping_named("rank")
    with pytest.raises(InputError, match="7 members do not form pairs"):
        shaping.pair_sign(jnp.asarray(F[:7]))
    with pytest.raises(InputError, match="groups of 3 do not divide 8 members"):
        shaping.group_centred(3)(jnp.asarray(F))
    with pytest.raises(InputError, match=r"group has shape \[2\]; expected \[8\]"):
        shaping.group_centred(np.array([0, 1]))(jnp.asarray(F))
