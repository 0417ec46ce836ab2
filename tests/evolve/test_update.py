"""The update is the weighted sum of all perturbations, however it is split."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.evolve import update
from springroll.evolve.members import Members
from springroll.evolve.roles import describe
from tests.evolve.dense_population import weighted_sum

PAIRS = 12
PARAMS = {
    "w": jnp.zeros((9, 5)),
    "stack": jnp.zeros((2, 6, 7)),
    "experts": jnp.zeros((3, 4, 5)),
    "bias": jnp.zeros(11),
}
SEED = jnp.array([7, 8], jnp.uint32)
WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=2 * PAIRS), jnp.float32)


def members_of(*, rank=2, noise="gaussian", mesh=None, stored=True, chunk=None, antithetic=True):
    perturbation = describe(
        PARAMS, rank=rank, noise=noise, roles={"experts": "msn"}, antithetic=antithetic, mesh=mesh
    )
    perturbation = dataclasses.replace(perturbation, stored=stored, pairs_per_chunk=chunk)
    pairs = jnp.arange(PAIRS, dtype=jnp.uint32)
    members = Members(pairs, None, SEED, jnp.int32(3), jnp.float32(0.3), perturbation)
    return members.keep_factors() if stored else members


direction = jax.jit(update.direction)
exact_sums = jax.jit(update.exact_sums, static_argnames="bound")


def two_devices():
    return jax.make_mesh((2,), ("population",), devices=jax.devices()[:2])


def assert_close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), got, want)


@pytest.mark.parametrize("noise", ["gaussian", "int8"])
def test_equals_the_dense_sum(noise):
    members = members_of(noise=noise)
    got = direction(members, WEIGHTS)
    assert all(x.dtype == jnp.float32 for x in got.values())
    assert_close(got, weighted_sum(members, WEIGHTS))


def test_equals_the_dense_sum_without_pairs():
    members = members_of(antithetic=False)
    assert_close(direction(members, WEIGHTS[:PAIRS]), weighted_sum(members, WEIGHTS[:PAIRS]))


@pytest.mark.parametrize(("chunk", "devices"), [pytest.param(5, 1, marks=pytest.mark.slow), (4, 2)])
def test_chunks_and_devices_change_nothing(chunk, devices):
    want = direction(members_of(), WEIGHTS)
    mesh = two_devices() if devices == 2 else None
    assert_close(direction(members_of(stored=False, chunk=chunk, mesh=mesh), WEIGHTS), want)


def test_stored_factors_are_cast_in_chunks_too(monkeypatch):
    want = weighted_sum(members_of(noise="int8"), WEIGHTS)
    monkeypatch.setattr(update, "_CAST_BYTES", 4 * 5 * 28)
    members = members_of(noise="int8")
    assert update._chunk_limit(members, members.perturbation.leaves[-1], None) == 5
    assert_close(jax.jit(lambda m, w: update.direction(m, w))(members, WEIGHTS), want)


@pytest.mark.parametrize(("chunk", "devices"), [(5, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_exact_sums_have_equal_bits_however_they_are_split(chunk, devices):
    votes = jnp.asarray(np.random.default_rng(1).integers(-1, 2, PAIRS), jnp.int32)
    want = exact_sums(members_of(noise="int8"), votes)
    assert all(x.dtype == jnp.int32 for x in want.values())
    factors = jax.device_get(members_of(noise="int8").factors)
    left, right = (x.astype(np.int64) for x in factors["w"])
    np.testing.assert_array_equal(want["w"], np.einsum("p,pir,pjr->ij", votes, left, right))
    mesh = two_devices() if devices == 2 else None
    other = members_of(noise="int8", stored=False, chunk=chunk, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, exact_sums(other, votes), want)


@pytest.mark.parametrize(("noise", "value", "bound"), [("int8", 127, 1), ("rademacher", 1, 3)])
def test_exact_sums_stay_exact_at_the_largest_values(noise, value, bound):
    """All products and votes equal: beyond 1,040 terms of 127^2 float32 alone would round."""
    n = 2079
    perturbation = describe({"w": jnp.zeros((2, 3))}, rank=1, noise=noise)
    left, right = (jnp.full((n, size, 1), value, jnp.int8) for size in (2, 3))
    pairs = jnp.arange(n, dtype=jnp.uint32)
    members = Members(pairs, {"w": (left, right)}, SEED, jnp.int32(0), jnp.float32(1), perturbation)
    got = exact_sums(members, jnp.full(n, bound, jnp.int32), bound=bound)
    np.testing.assert_array_equal(got["w"], np.full((2, 3), value * value * n * bound))


def test_exact_sums_need_integer_noise():
    with pytest.raises(InputError, match="exact sums of 'gaussian' noise; expected an integer"):
        update.exact_sums(members_of(), jnp.ones(PAIRS, jnp.int32))


def test_structure_one_contraction_and_one_reduction():
    """No array holds a pair axis beside both axes of a weight; devices meet in one all-reduce."""
    compiled = direction.lower(members_of(), WEIGHTS).compile().as_text() or ""
    shapes = [tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", compiled)]
    assert (9, 5) in shapes
    assert not [s for s in shapes if PAIRS in s and ({9, 5} <= set(s) or {6, 7} <= set(s))]
    sharded = members_of(mesh=two_devices())
    compiled = direction.lower(sharded, WEIGHTS).compile().as_text() or ""
    assert len(re.findall(r" all-reduce(?:-start)?\(", compiled)) == 1
    # Each device contracts its own half of the pairs.
    assert not re.search(rf"f32\[{PAIRS},9", compiled) and re.search(
        rf"f32\[{PAIRS // 2},9", compiled
    )
