"""Which row of a grouped product each token's pick of an expert becomes, and the moves there.

Letters: T tokens, K picks per token, P = T K picks, R rows = blocks * block size, D width.
No token is dropped and no capacity is set: groups are padded to whole blocks, and the number of
blocks is the most that any choice of experts can need.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

Places: TypeAlias = tuple[Array, Array]  # pick_of_row, row_of_pick
Move: TypeAlias = Callable[[Array, Array, Array], Array]

LARGEST, SMALLEST = 128, 8  # rows of a block


class Dispatch(NamedTuple):
    """Where picks go. A row that no pick fills names pick P, one past the last."""

    block_group: Array  # (blocks,) int32: the expert of each block, ascending
    pick_of_row: Array  # (R,) int32
    row_of_pick: Array  # (T, K) int32
    load: Array  # (experts,) int32: picks per expert


def block_size(picks: int, experts: int, rows: int = 1, smallest: int = SMALLEST) -> int:
    """Picks of a block, each of so many rows, so that padding costs at most a quarter of the
    product itself.

    Every expert may pad up to one block: experts * size <= picks / 4 keeps rows within 1.25 picks
    (from 32 picks per expert on). Larger blocks were no faster on a CPU. Where there are no more
    picks than experts, most experts are chosen once or not at all, and every pick is a block.
    """
    if picks <= experts:
        return 1
    size = max(1, smallest // rows)
    while 2 * size * rows <= LARGEST and 8 * size * experts <= picks:
        size *= 2
    return size


def block_count(picks: int, experts: int, size: int) -> int:
    """The most blocks of `size` rows that `picks` spread over `experts` can fill."""
    return max(1, min(picks, (picks + experts * (size - 1)) // size))


def dispatch(expert_TK: Array, experts: int, size: int | None = None) -> Dispatch:
    """Sort picks by expert and pad every expert's picks to whole blocks of `size` rows.

    Args:
        expert_TK: the experts that each token chose, (T, K) int32.
        experts: how many there are.
        size: rows of a block; `block_size` if not given.
    """
    picks = expert_TK.size
    size = block_size(picks, experts) if size is None else size
    blocks = block_count(picks, experts, size)
    chosen = expert_TK.reshape(picks)
    everyone = jnp.arange(experts, dtype=jnp.int32)
    load = jnp.sum(chosen[:, None] == everyone[None, :], axis=0, dtype=jnp.int32)
    last_block = jnp.cumsum(-(-load // size), dtype=jnp.int32)
    first_block = last_block - -(-load // size)
    first_pick = jnp.cumsum(load, dtype=jnp.int32) - load

    past = last_block[None, :] <= jnp.arange(blocks, dtype=jnp.int32)[:, None]
    block_group = jnp.minimum(jnp.sum(past, axis=1, dtype=jnp.int32), experts - 1)

    order = jnp.argsort(chosen, stable=True).astype(jnp.int32)  # picks, by expert
    shift = first_block * size - first_pick  # from a place in that order to a row
    row_of_pick = (
        jnp.zeros((picks,), jnp.int32)
        .at[order]
        .set(jnp.arange(picks, dtype=jnp.int32) + shift[chosen[order]], unique_indices=True)
    )
    group = jnp.repeat(block_group, size, total_repeat_length=blocks * size)
    place = jnp.arange(blocks * size, dtype=jnp.int32) - shift[group]
    filled = place < first_pick[group] + load[group]
    pick_of_row = jnp.where(filled, order[jnp.minimum(place, picks - 1)], picks)
    return Dispatch(block_group, pick_of_row, row_of_pick.reshape(expert_TK.shape), load)


@jax.custom_vjp
def spread(x_TD: Array, pick_of_row: Array, row_of_pick: Array) -> Array:
    """Every token's vector to the rows of its K picks, zeros to unfilled rows: (R, D).

    The transpose of `collect`: both are lookups, which scatter-adds of autodiff are not.
    """
    token = pick_of_row // row_of_pick.shape[1]
    return x_TD.at[token].get(mode="fill", fill_value=0)


@jax.custom_vjp
def collect(x_RD: Array, pick_of_row: Array, row_of_pick: Array) -> Array:
    """The sum of the rows of each token's picks: (T, D). The transpose of `spread`."""
    return jnp.sum(x_RD[row_of_pick], axis=1)


def _keep_places(move: Move) -> Callable[[Array, Array, Array], tuple[Array, Places]]:
    return lambda x, pick_of_row, row_of_pick: (
        move(x, pick_of_row, row_of_pick),
        (pick_of_row, row_of_pick),
    )


spread.defvjp(_keep_places(spread), lambda places, dy: (collect(dy, *places), None, None))
collect.defvjp(_keep_places(collect), lambda places, dy: (spread(dy, *places), None, None))
