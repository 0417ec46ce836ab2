"""Shapings are the formulas they claim to be, and blind to members that failed."""

import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.evolve import shaping
from springroll.evolve.strategy import fitness_metrics

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
    for outside in (-1, 8):  # was left out of the sums, and another group's mean taken off
        with pytest.raises(InputError, match=r"group numbers are .*; expected 0 to 7"):
            shaping.group_centred([0, 0, 1, 1, 2, 2, 3, outside])(jnp.asarray(F))


def plain_z(values):
    values = np.asarray(values, np.float64)
    return (values - values.mean()) / np.sqrt(values.var() + 1e-5)


@pytest.mark.parametrize("shape", [*shaping.SHAPINGS.values(), shaping.group_centred(4)])
@pytest.mark.parametrize(
    "values",
    [
        [3e38, 2e38] * 4,
        [3e38, -3e38] * 4,
        [3.4e38] * 8,
        [-3.4e38, 3.4e38, 1, 2, 3, 4, 5, 6],
        [-1e20, 1, 2, 3, 4, 5, 6, 7],
        [1e20, 1, 2, 3, 4, 5, 6, 7],
        [-1e20, 0, 0, 0, 0, 0, 0, 1],
        [1e-40, 2e-40, 0, 0, 0, 0, 0, 1e-39],
    ],
)
def test_finite_fitness_of_any_size_gives_finite_weights(shape, values):
    got = np.asarray(shape(jnp.asarray(values, jnp.float32)))
    assert np.isfinite(got).all() and abs(got.sum()) < 1e-4 * max(1, np.abs(got).sum())
    assert np.abs(got).max() <= len(values) ** 0.5 + 1e-5


def test_large_fitness_is_shaped_like_small():
    for values in ([3, 2, 1, -2, 0, 1, 2, 3], [1, -1, 1, -1, 1, -1, 1, -1]):
        for shape in (shaping.z_score, shaping.pair_difference, shaping.group_centred(4)):
            small, large = (shape(jnp.asarray(values, jnp.float32) * s) for s in (1e3, 1e38))
            np.testing.assert_allclose(large, small, rtol=1e-5, atol=1e-6)
    equal = shaping.z_score(jnp.full(8, 3.3e38))
    np.testing.assert_array_equal(equal, np.zeros(8))


@pytest.mark.parametrize("penalty", [-1e3, -1e6, -1e12, -1e20, -3.4e38])
@pytest.mark.parametrize("name", ["z_score", "pair_difference", "centred_ranks", "groups"])
def test_a_penalty_of_any_size_costs_that_member_only(name, penalty):
    shape = {**shaping.SHAPINGS, "groups": shaping.group_centred(4)}[name]
    rest = [1.0, 2, 4, 3, 5, 9, 7]
    got = np.asarray(shape(jnp.asarray([penalty, *rest], jnp.float32)))
    bounded = np.asarray(shape(jnp.asarray([-1e20, *rest], jnp.float32)))
    np.testing.assert_allclose(got, bounded, rtol=1e-3, atol=1e-3)  # its size does not matter
    assert got.argmin() == 0 and got[2:].max() - got[2:].min() > 0.4


def test_penalties_of_a_quarter_of_the_members():
    rest = np.arange(12.0)
    values = np.concatenate([rest, [-1e20, -1e20, -2e30, -3e38]]).astype(np.float32)
    got = np.asarray(shaping.z_score(jnp.asarray(values)))
    np.testing.assert_allclose(got, plain_z([*rest, *[-11.0] * 4]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "values", [[0, 0, 0, 1], [0, 1], [5, -90, 3, 2], [1, 1, 1, 1, 1, 1, 1, -9]]
)
def test_what_is_no_penalty_counts_in_full(values):
    got = shaping.z_score(jnp.asarray(values, jnp.float32))
    np.testing.assert_allclose(got, plain_z(values), rtol=1e-5)


def test_integer_differences_do_not_wrap():
    whole = jnp.array([2**31 - 1, -(2**31), 5, 4, 7, 9, 0, 3], jnp.int32)
    got = np.asarray(shaping.pair_difference(whole))
    assert got[0] > 0 and got.argmax() == 0
    assert (np.sign(got) == np.asarray(shaping.pair_sign(whole))).all()
    small = jnp.array([1, 3, 200, 2], jnp.uint8)
    np.testing.assert_array_equal(np.sign(shaping.pair_difference(small)), [-1, 1, 1, -1])


def test_the_metrics_do_not_overflow():
    fitness = jnp.asarray([3e38, 1e38] * 2)
    metrics = fitness_metrics(fitness, shaping.finite(fitness))
    np.testing.assert_allclose(metrics["fitness_mean"], 2e38, rtol=1e-5)
    np.testing.assert_allclose(metrics["fitness_std"], 1e38, rtol=1e-5)
