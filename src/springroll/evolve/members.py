"""A population as pair indices and thin factors, and its evaluation by an unmodified function."""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec

from springroll.compat import edge_jit
from springroll.errors import InputError, check_takes, expect, kind_of
from springroll.evolve.arguments import check_leaves, check_population
from springroll.evolve.perturbation import AXIS, Factors, Leaf, Perturbation, auto_mesh
from springroll.evolve.recompiled import notice
from springroll.evolve.rows import Groups
from springroll.thin.transform import factored
from springroll.trees import PyTree, is_numeric


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Members:
    """One generation's population: never weights, at most factors.

    Member `2 * p` is `params + sigma * E_p` and member `2 * p + 1` is `params - sigma * E_p`.
    """

    pairs: Array  # (P,) uint32, the counter each pair's noise is drawn at
    factors: Factors | None  # drawn factors of all pairs; None: drawn chunk by chunk where used
    seed: Array  # (2,) uint32
    epoch: Array  # () int32
    sigma: Array  # () float32
    perturbation: Perturbation = dataclasses.field(metadata={"static": True})
    first: Array | None = None  # () of a slice of stacked layers: which of the stack comes first

    @property
    def size(self) -> int:
        """N, the number of members."""
        return self.pairs.shape[0] * len(self.perturbation.signs)

    def drawn(self) -> Factors:
        """The factors of all these pairs: stored ones, or drawn now."""
        if self.factors is not None:
            return self.factors
        return self.perturbation.draw(self.seed, self.epoch, self.pairs, first=self.first)

    def factors_of(self, leaf: Leaf) -> tuple[Array, ...]:
        """The factors of one parameter: stored ones, or drawn now."""
        if self.factors is not None:
            return self.factors[leaf.path]
        draw = functools.partial(self.perturbation.draw, first=self.first)
        return draw(self.seed, self.epoch, self.pairs, (leaf,))[leaf.path]

    def groups(self, pair: Array | None = None) -> Groups:
        """Groups of rows, one for each pair; or for each of `pair` (G,) int32, which may repeat."""
        if pair is None:
            factors = self.drawn()
        elif self.factors is None:
            draw = functools.partial(self.perturbation.draw, first=self.first)
            factors = draw(self.seed, self.epoch, self.pairs[pair])
        else:
            axes = self.perturbation.pair_axes()
            factors = {
                path: tuple(jnp.take(x, pair, axis=axes[path], mode="clip") for x in group)
                for path, group in self.factors.items()
            }
        return Groups(factors, self.sigma, self.perturbation)

    def chunk(self, start: Array, count: int, only: Leaf | None = None) -> "Members":
        """`count` consecutive pairs from `start` on; with `only`, factors of that parameter."""
        factors = self.factors
        if factors is not None:
            axes = self.perturbation.pair_axes()
            factors = {
                path: tuple(lax.dynamic_slice_in_dim(x, start, count, axes[path]) for x in group)
                for path, group in factors.items()
                if only is None or path == only.path
            }
        pairs = lax.dynamic_slice_in_dim(self.pairs, start, count)
        return dataclasses.replace(self, pairs=pairs, factors=factors)

    def keep_factors(self) -> "Members":
        """The same members with their factors drawn and stored, on a mesh each device its own."""
        mesh = self.perturbation.mesh
        draw = lambda members: dataclasses.replace(members, factors=members.drawn())
        if mesh is None:
            return draw(self)
        drawn = jax.eval_shape(draw, self)
        return jax.shard_map(
            draw,
            mesh=mesh,
            in_specs=(members_spec(self),),
            out_specs=members_spec(drawn),
            check_vma=False,
        )(self)


def members_spec(members: Members) -> Members:
    """The structure of `members` in partition specs: pairs and factors over the population axis."""
    axes = members.perturbation.pair_axes()
    one = PartitionSpec()
    factors = members.factors and {
        path: tuple(PartitionSpec(*(None,) * axes[path], AXIS) for _ in group)
        for path, group in members.factors.items()
    }
    parts: dict[str, PyTree] = {"pairs": PartitionSpec(AXIS), "factors": factors}
    return dataclasses.replace(members, **parts, **dict.fromkeys(("seed", "epoch", "sigma"), one))


def chunks_of(pairs: int, limit: int | None) -> tuple[int, int]:
    """(number of chunks, pairs per chunk): a divisor of `pairs` where a good one exists."""
    if limit is None or pairs <= limit:
        return 1, pairs
    limit = max(1, limit)
    divisor = next(c for c in range(limit, 0, -1) if pairs % c == 0)
    if 2 * divisor >= limit:
        return pairs // divisor, divisor
    count = -(-pairs // limit)
    return count, -(-pairs // count)


class HasParams(Protocol):
    """A state whose `params` are the model; that of every strategy."""

    @property
    def params(self) -> PyTree: ...


@overload
def evaluate(
    fn: Callable[..., PyTree],
    state: HasParams,
    members: Members,
    *args: PyTree,
    in_axes: PyTree = None,
    has_aux: Literal[False] = False,
    pairs_per_chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Array: ...
@overload
def evaluate(
    fn: Callable[..., PyTree],
    state: HasParams,
    members: Members,
    *args: PyTree,
    in_axes: PyTree = None,
    has_aux: Literal[True],
    pairs_per_chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Array, PyTree]: ...
def evaluate(
    fn: Callable[..., PyTree],
    state: HasParams,
    members: Members,
    *args: PyTree,
    in_axes: PyTree = None,
    has_aux: bool = False,
    pairs_per_chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Array | tuple[Array, PyTree]:
    """Score every member: `fn(member's params, *args)` for all of them at once.

    `fn` runs on `state.params` plus thin terms through `sr.factored`, so no weight is ever formed
    per member.

    Args:
        fn: Any JAX function that returns a scalar, or with `has_aux` a scalar and a pytree. Higher
            fitness is better.
        state: A strategy's; its `params` are what `members` perturb.
        members: A generation's N members, as `es.ask` gives them.
        *args: What `fn` takes beside the parameters, pytrees of arrays.
        in_axes: Which of `args` differ between members: 0 for a leading axis of N, as for
            `jax.vmap`, None (the default) for shared. One entry for all, or a tuple with one each.
        has_aux: Whether `fn` returns an auxiliary pytree beside its fitness.
        pairs_per_chunk: How many pairs run at once, to bound the memory of activations; None: what
            the strategy chose.
        mesh: With an axis "population" over which pairs are split, without any collective; None:
            the strategy's.

    Returns:
        Fitness (N,), int32 if `fn` returns integers and float32 otherwise; with `has_aux` also the
        auxiliary pytree with a leading axis of N.

    Raises:
        InputError: An argument is no array or its leading axis is not N, `fn` does not return a
            scalar, or the pairs do not divide over the mesh.

    Warns once if `fn` is a new function in every call, such as a lambda made in the loop: each is
    compiled.
    """
    check_population(state, members, "sr.evaluate(fn, state, members, *args)")
    expect(callable(fn), "fn", fn, "a function of (params, *args)")
    check_takes(fn, "fn", state.params, *args)
    check_leaves(args)
    notice(fn)
    finish = _fitness_and_aux if has_aux else _fitness
    options = {"pairs_per_chunk": pairs_per_chunk, "mesh": mesh, "finish": finish}
    return each_member(fn, state.params, members, *args, in_axes=in_axes, **options)


def each_member(
    fn: Callable[..., PyTree],
    params: PyTree,
    members: Members,
    *args: PyTree,
    in_axes: PyTree = None,
    pairs_per_chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    finish: Callable[[PyTree], PyTree] | None = None,
) -> PyTree:
    """`fn(member's params, *args)` of every member: its pytree, with a leading axis of N.

    `evaluate` without the demand for a scalar; `finish` is applied to what `fn` returns. The
    arguments are those of `evaluate`; `params` are the ones that `members` perturb.
    """
    mesh = members.perturbation.mesh if mesh is None else auto_mesh(mesh)
    batched = per_member_leaves(args, in_axes)
    leaves, treedef = jax.tree.flatten(args)
    for x, per_member in zip(leaves, batched, strict=True):
        if per_member and (jnp.ndim(x) < 1 or jnp.shape(x)[0] != members.size):
            raise InputError(
                f"an argument with in_axes 0 has shape {list(jnp.shape(x))}; "
                f"expected {members.size} members along its first axis"
            )
    pairs = members.pairs.shape[0]
    if mesh is not None and pairs % mesh.shape[AXIS]:
        raise InputError(
            f"{pairs} pairs do not divide over {mesh.shape[AXIS]} devices; "
            "choose a pop_size that does"
        )
    if not isinstance(fn, Hashable):
        call = fn
        fn = lambda *args: call(*args)  # e.g. a module that holds arrays: compiled anew each time
    limit = pairs_per_chunk or members.perturbation.pairs_per_chunk
    return _each_member(_Call(fn, treedef, batched, finish, limit), mesh, params, members, leaves)


@dataclass(frozen=True)
class _Call:
    """What a program is compiled for, beside shapes."""

    fn: Callable[..., PyTree]
    treedef: Any  # jax.tree_util.PyTreeDef of the arguments
    batched: tuple[bool, ...]  # for each of their leaves, whether it differs between members
    finish: Callable[[PyTree], PyTree] | None
    limit: int | None  # pairs at once


def per_member_leaves(args: tuple[PyTree, ...], in_axes: PyTree) -> tuple[bool, ...]:
    """For every array in `args`, whether it has a leading axis of members."""
    if not isinstance(in_axes, tuple):
        in_axes = (in_axes,) * len(args)
    if len(in_axes) != len(args):
        raise InputError(f"in_axes has {len(in_axes)} entries for {len(args)} arguments")
    axes, treedef = jax.tree.flatten(in_axes, is_leaf=lambda x: x is None)
    flags: list[bool] = []
    for axis, part in zip(axes, treedef.flatten_up_to(args), strict=True):
        if axis is not None and axis != 0:
            raise InputError(f"in_axes holds {axis!r}; expected 0 (per member) or None (shared)")
        flags += [axis is not None] * len(jax.tree.leaves(part))
    return tuple(flags)


@functools.partial(edge_jit, static_argnums=(0, 1))
def _each_member(
    call: _Call,
    mesh: jax.sharding.Mesh | None,
    params: PyTree,
    members: Members,
    leaves: list[Array],
) -> PyTree:
    run = functools.partial(_on_device, call)
    if mesh is None:
        return run(params, members, leaves)
    per_member = [PartitionSpec(AXIS) if b else PartitionSpec() for b in call.batched]
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(PartitionSpec(), members_spec(members), per_member),
        out_specs=PartitionSpec(AXIS),
        check_vma=False,
    )(params, members, leaves)


def _on_device(call: _Call, params: PyTree, members: Members, leaves: list[Array]) -> PyTree:
    """All members that live on this device, chunk after chunk."""
    pairs, signs = members.pairs.shape[0], len(members.perturbation.signs)
    count, size = chunks_of(pairs, call.limit)
    run = functools.partial(_at_once, call, params)
    if count == 1:
        return run(members, leaves)
    # A last chunk that would run over the end starts earlier; its overlap is computed twice.
    starts = jnp.asarray(np.minimum(np.arange(count) * size, pairs - size), jnp.int32)

    def step(carry: None, start: Array) -> tuple[None, PyTree]:
        part = [
            lax.dynamic_slice_in_dim(x, start * signs, size * signs) if b else x
            for x, b in zip(leaves, call.batched, strict=True)
        ]
        return carry, run(members.chunk(start, size), part)

    _, out = lax.scan(step, None, starts)
    out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
    overlap = count * size - pairs
    if not overlap:
        return out
    last = (count - 1) * size
    keep = np.r_[: last * signs, (last + overlap) * signs : count * size * signs]
    return jax.tree.map(lambda x: x[keep], out)


def _at_once(call: _Call, params: PyTree, members: Members, leaves: list[Array]) -> PyTree:
    signs = jnp.asarray(members.perturbation.signs, jnp.float32)
    pairs = members.pairs.shape[0]
    thin = factored(call.fn)

    def member(weights: PyTree, *leaves: Array) -> PyTree:
        result = thin(weights, *jax.tree.unflatten(call.treedef, leaves))
        return result if call.finish is None else call.finish(result)

    split = [
        x.reshape(pairs, len(signs), *x.shape[1:]) if b else x
        for x, b in zip(leaves, call.batched, strict=True)
    ]
    axes = tuple(0 if b else None for b in call.batched)
    with jax.named_scope("evaluate"):
        out = members.groups().each_row(member, params, signs, *split, in_axes=axes)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)


def _fitness(result: PyTree) -> Array:
    if isinstance(result, tuple | list) and len(result) == 2:
        raise InputError(
            f"fn returned a {type(result).__name__} of 2; expected a scalar: for (fitness, aux) "
            "give has_aux=True"
        )
    if not is_numeric(result):
        raise InputError(f"fn returned {kind_of(result)} as fitness; expected a scalar")
    fitness = jnp.asarray(result)
    if fitness.shape != ():
        raise InputError(f"fn returned fitness of shape {list(fitness.shape)}; expected a scalar")
    if jnp.issubdtype(fitness.dtype, jnp.complexfloating):
        raise InputError(f"fn returned {fitness.dtype} as fitness; expected a real scalar")
    kind = jnp.int32 if jnp.issubdtype(fitness.dtype, jnp.integer) else jnp.float32
    return fitness.astype(kind)


def _fitness_and_aux(result: PyTree) -> tuple[Array, PyTree]:
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise InputError(
            f"fn returned {kind_of(result)}; with has_aux=True expected (fitness, aux)"
        )
    fitness, aux = result
    return _fitness(fitness), aux
