"""The grouped product: every block of rows is multiplied by the weight of its group.

This is what a mixture of experts computes. Rows are sorted by group and each group is padded to
whole blocks (`springroll.models.dispatch`), so the work is one plain product per block, whatever
the number of groups. `jax.lax.ragged_dot` on a CPU multiplies all rows by every group's weight.

Blocks of a few rows are put together by group first. Under `jax.vmap` with one weight for all, as
for the members of a population, those of all are: a weight is read once for all who chose it.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from springroll import compat
from springroll.models.dispatch import SMALLEST, block_size, collect, dispatch, spread
from springroll.thin.custom_product import product


@product(lambda transposed=False: "snm" if transposed else "smn")
def grouped_dot(x: Array, w: Array, block_group: Array, transposed: bool = False) -> Array:
    """y[block] = x[block] @ w[block_group[block]] for every block of rows.

    Args:
        x: (rows, k), rows = blocks * block size.
        w: a weight per group, (groups, k, n), or (groups, n, k) if `transposed`. It may be
            Factored under `springroll.thin`: then the thin term is two more grouped products.
        block_group: (blocks,) int32, the group of each block, in ascending order. Not every group
            needs a block; the gradient of a weight without one is exactly zero.
        transposed: whether w is stored (out, in). By keyword.

    Returns:
        (rows, n) in the type of x.

    Forward, the gradient of x and that of w cost 2 rows k n FLOPs each. The gradient of w is
    summed in float32 within a group.

    In `jax.shard_map` operands may vary along different axes of the mesh: rows dealt out, a weight
    that all devices hold. Its gradient is then summed over the devices.
    """
    operands = (x, w, block_group)
    x, w, block_group = (compat.vary_as(operand, *operands) for operand in operands)
    return _product(x, w, block_group, transposed)


Saved: TypeAlias = tuple[Array, Array, Array]  # x, w, block_group
Kernel: TypeAlias = Callable[[Array, Array, Array, int], Array]

THIN = 64  # a side of a weight up to which it is a factor of a low-rank term


def _own_gradient(fn: Callable[..., Array]) -> Any:
    return jax.custom_vjp(fn, nondiff_argnums=(3,))


@_own_gradient
def _product(x: Array, w: Array, block_group: Array, transposed: bool) -> Array:
    run = block_by_block if len(x) >= SMALLEST * len(block_group) else put_together
    return _of_members(run, x, w, block_group, 1 if transposed else 0)


def _of_members(run: Kernel, x: Array, w: Array, block_group: Array, axis: int) -> Array:
    """run(x, w, block_group, axis), under `jax.vmap` for all members at once."""
    batchable = jax.custom_batching.custom_vmap(lambda x, w, to: run(x, w, to, axis))

    @batchable.def_vmap
    def _(
        members: int, batched: Sequence[bool], x: Array, w: Array, block_group: Array
    ) -> tuple[Array, bool]:
        x, block_group = (
            v if is_batched else jnp.broadcast_to(v, (members, *v.shape))
            for v, is_batched in ((x, batched[0]), (block_group, batched[2]))
        )
        if batched[1]:
            own = jax.vmap(lambda x, w, to: with_own_weights(x, w, to, axis))
            return own(x, w, block_group), True
        rows, groups = x.reshape(-1, x.shape[-1]), block_group.reshape(-1)
        y = _of_members(put_together, rows, w, groups, axis)
        return y.reshape(*x.shape[:-1], -1), True

    return batchable(x, w, block_group)


def block_by_block(x: Array, w: Array, block_group: Array, axis: int) -> Array:
    """The product of blocks in any order, one after the other; axis of w (g, ., .) is summed."""

    def step(_: None, block: tuple[Array, Array]) -> tuple[None, Array]:
        rows, group = block
        return None, _dot(rows, _pick(w, group), 1, axis)

    return lax.scan(step, None, (_blocks(x, block_group), block_group))[1].reshape(x.shape[0], -1)


def put_together(x: Array, w: Array, block_group: Array, axis: int) -> Array:
    """The same of blocks that do not come by group: those of a group make larger ones first."""
    blocks, groups = len(block_group), len(w)
    if blocks <= groups:
        return block_by_block(x, w, block_group, axis)
    to = dispatch(block_group[:, None], groups, block_size(blocks, groups, len(x) // blocks))
    wide = spread(x.reshape(blocks, -1), to.pick_of_row, to.row_of_pick)
    y = block_by_block(wide.reshape(-1, x.shape[1]), w, to.block_group, axis)
    y = collect(y.reshape(len(to.pick_of_row), -1), to.pick_of_row, to.row_of_pick)
    return y.reshape(len(x), -1)


def with_own_weights(x: Array, w: Array, block_group: Array, axis: int) -> Array:
    """The same for one of many members with weights of its own. Those of all blocks are taken at
    once where they are thin, or where that is no more than there are."""
    if len(block_group) > len(w) and min(w.shape[1:]) > THIN:
        return block_by_block(x, w, block_group, axis)
    y = jnp.einsum(
        "bik,bkn->bin" if axis == 0 else "bik,bnk->bin", _blocks(x, block_group), w[block_group]
    )
    return y.reshape(len(x), -1)


def _forward(x: Array, w: Array, block_group: Array, transposed: bool) -> tuple[Array, Saved]:
    return _product(x, w, block_group, transposed), (x, w, block_group)


def _backward(transposed: bool, saved: Saved, dy: Array) -> tuple[Array, Array, None]:
    x, w, block_group = saved
    dx = _product(dy, w, block_group, not transposed)
    a, b = (dy, x) if transposed else (x, dy)
    return dx, _outer(a, b, block_group, w), None


_product.defvjp(_forward, _backward)


def _outer(a: Array, b: Array, block_group: Array, like: Array) -> Array:
    """The sum of a[block].T @ b[block] over the blocks of each group, shaped and typed as `like`.

    Group by group, so that each sum stays in one small buffer and is written once.
    """
    a, b = _blocks(a, block_group), _blocks(b, block_group)
    zeros = compat.vary_as(jnp.zeros(like.shape[1:], jnp.float32), a, like)
    groups = jnp.arange(like.shape[0], dtype=jnp.int32)
    ends = jnp.sum(block_group[None, :] <= groups[:, None], axis=1, dtype=jnp.int32)
    starts = jnp.concatenate([jnp.zeros((1,), jnp.int32), ends[:-1]])

    def one(_: None, span: tuple[Array, Array]) -> tuple[None, Array]:
        add = lambda i, total: total + _dot(_pick(a, i), _pick(b, i), 0, 0, jnp.float32)
        total = lax.fori_loop(*span, add, zeros)
        return None, total.astype(like.dtype)

    return lax.scan(one, None, (starts, ends))[1]


def _blocks(x: Array, block_group: Array) -> Array:
    blocks = block_group.shape[0]
    return x.reshape(blocks, x.shape[0] // blocks, x.shape[1])


def _pick(w: Array, group: Array) -> Array:
    return lax.dynamic_index_in_dim(w, group, keepdims=False)


def _dot(a: Array, b: Array, i: int, j: int, dtype: DTypeLike | None = None) -> Array:
    """Product of two matrices, summed over axis i of a and axis j of b."""
    return lax.dot_general(a, b, (((i,), (j,)), ((), ())), preferred_element_type=dtype)
