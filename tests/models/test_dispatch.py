"""Dispatch: no pick is lost, blocks belong to one expert, padding is bounded, moves are exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from springroll.models.dispatch import block_count, block_size, collect, dispatch, spread

TOKENS, PICKS, EXPERTS, SIZE = 12, 3, 5, 4
route = jax.jit(functools.partial(dispatch, experts=EXPERTS, size=SIZE))


def check(expert_TK):
    to = route(jnp.asarray(expert_TK, jnp.int32))
    flat, rows = expert_TK.reshape(-1), np.asarray(to.row_of_pick).reshape(-1)
    pick_of_row, block_group = np.asarray(to.pick_of_row), np.asarray(to.block_group)
    np.testing.assert_array_equal(pick_of_row[rows], np.arange(flat.size))  # every pick, once
    assert np.sum(pick_of_row < flat.size) == flat.size  # and nothing else
    np.testing.assert_array_equal(block_group[rows // SIZE], flat)
    assert np.all(np.diff(block_group) >= 0)
    np.testing.assert_array_equal(to.load, np.bincount(flat, minlength=EXPERTS))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, EXPERTS))
def test_every_pick_has_its_own_row_in_a_block_of_its_expert(seed, used):
    check(np.random.default_rng(seed).integers(0, used, (TOKENS, PICKS)))


@pytest.mark.parametrize("expert", range(EXPERTS))
def test_all_picks_of_one_expert(expert):
    check(np.full((TOKENS, PICKS), expert))


@pytest.mark.parametrize("picks", [1, 7, 36, 1000])
@pytest.mark.parametrize("experts", [1, 5, 64])
def test_the_number_of_blocks_is_what_the_worst_choice_needs(picks, experts):
    size = block_size(picks, experts)
    # The worst: as many experts as possible with one pick more than whole blocks.
    lone = min(experts, picks)
    worst = lone + (picks - lone) // size
    assert worst <= block_count(picks, experts, size) <= worst + 1


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 16384])
def test_padding_is_at_most_a_quarter_at_64_experts_and_8_picks(tokens):
    size = block_size(tokens * 8, 64)
    assert block_count(tokens * 8, 64, size) * size <= 1.25 * tokens * 8


def test_spread_and_collect_are_transposes_and_differentiate_into_each_other():
    keys = jax.random.split(jax.random.key(0), 3)
    to = route(jax.random.randint(keys[0], (TOKENS, PICKS), 0, EXPERTS))
    places = (to.pick_of_row, to.row_of_pick)
    x = jax.random.normal(keys[1], (TOKENS, 3))
    y = jax.random.normal(keys[2], (to.pick_of_row.size, 3))
    rows, back = jax.vjp(lambda x: spread(x, *places), x)
    np.testing.assert_allclose(jnp.sum(rows * y), jnp.sum(x * collect(y, *places)), rtol=1e-5)
    np.testing.assert_array_equal(back(y)[0], collect(y, *places))
    total, back = jax.vjp(lambda y: collect(y, *places), y)
    np.testing.assert_array_equal(back(x)[0], rows)
    np.testing.assert_array_equal(rows[np.asarray(to.row_of_pick)[:, 1]], x)
    assert not np.any(rows[np.asarray(to.pick_of_row) == TOKENS * PICKS])
    assert total.shape == x.shape
