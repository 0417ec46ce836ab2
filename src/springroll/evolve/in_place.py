"""`tell` in the memory of the weights: a slice of one parameter at a time, written in its place.

A whole update needs, beside old and new weights, the sum of the members, the weights and the step
of all parameters in float32: eight times the weights of a model in bfloat16. Where the optimizer
moves every number by itself, none of these is needed for more than one number at a time. So each
parameter is cut along its first axis (layers of a stack, rows of a matrix) into slices of at most
`SLICE_BYTES` in float32. A slice is a population of its own (see `layer_population`): the same
noise, the same rounding, its own part of the optimizer's state.

The length of the step, by which `max_step_ratio` shortens it, takes a pass of its own: what is
moved afterwards is computed again. Slices follow one another from Python, each a short program:
in a loop of one program XLA copies what it should write in place.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.stages import Traced

from springroll.errors import InputError, expect
from springroll.evolve.members import Members
from springroll.evolve.perturbation import Leaf, Perturbation, values_path
from springroll.evolve.shaping import finite
from springroll.evolve.step import Guard, guard
from springroll.evolve.strategy import EvolutionState, Parts, Step, Strategy, fitness_metrics
from springroll.quant.int8_weights import is_int8
from springroll.ranges import COUNT, check_number
from springroll.trees import Metrics, PyTree, map_named, named_leaves, path_of

SLICE_BYTES = 1 << 26  # a handful of arrays of this size are alive at a time

Arrays: TypeAlias = dict[str, Array]  # of a state, by path
Tell: TypeAlias = Callable[[EvolutionState, Members, Array], tuple[EvolutionState, Metrics]]


def tell_in_place(strategy: Strategy, slice_bytes: int = SLICE_BYTES) -> Tell:
    """`strategy.tell` in little more memory than that of the state, which it uses up.

    The arrays of the state that is handed over are deleted, and with the first one the parameters
    that it was made of: their memory becomes that of the state that is returned. The result is that
    of `strategy.tell` up to the order of float32 sums. Models that are no larger than a slice are
    updated whole, by one program.

    Args:
        strategy: made by `sr.eggroll` or `sr.open_es`, without a mesh, with an optimizer that moves
            every number by itself, such as `optax.sgd` or `optax.adam`.
        slice_bytes: of what is updated at a time, in float32.

    Returns:
        tell(state, members, fitness) -> (state, metrics), to be called outside of `jax.jit`. It
        raises InputError if the optimizer looks at more than one number at a time.

    Raises:
        InputError: the strategy sums no members, or has a mesh.
    """
    expect(isinstance(strategy, Strategy), "strategy", strategy, "one such as sr.eggroll(...)")
    check_number("slice_bytes", slice_bytes, int, COUNT)
    parts = strategy.parts
    step = None if isinstance(parts, str) else parts.step
    if isinstance(parts, str) or step is None:
        why = parts if isinstance(parts, str) else "its step does not follow a sum of members"
        raise InputError(f"this strategy cannot be told in place: {why}; use its tell")
    if parts.population.mesh is not None:
        raise InputError("a strategy with a mesh cannot be told in place; use its tell")

    @functools.lru_cache
    def parameters(perturbation: Perturbation, shapes: _Shapes) -> list[_Parameter]:
        make = functools.partial(_Parameter, parts, perturbation, shapes.state(), slice_bytes)
        return [make(leaf) for leaf in perturbation.evolved]

    whole = jax.jit(strategy.tell, donate_argnums=0)

    def tell(
        state: EvolutionState, members: Members, fitness: Array
    ) -> tuple[EvolutionState, Metrics]:
        if evolved_bytes(members.perturbation) <= slice_bytes:
            return whole(state, members, fitness)
        cut = parameters(members.perturbation, _Shapes.of(state))
        arrays, squares = named_leaves(state), jnp.zeros((2,), jnp.float32)
        for one in cut:
            for rows, first in one.slices():
                squares = one.squares(one.of(arrays, members), fitness, first, squares, rows=rows)
        bound, metrics = _bound(squares, fitness, members.sigma, limit=step.limit)
        shared: Arrays = {}
        for one in cut:
            inputs = one.of(arrays, members)
            for rows, first in one.slices():
                after, shared = one.move(inputs, fitness, first, bound, rows=rows)
                before = inputs.own
                own = _put(before, after, first) if first is not None else _instead(before, after)
                inputs = inputs._replace(own=own)
            arrays |= inputs.own
        arrays |= shared
        return map_named(lambda path, _: arrays[path], state), metrics

    return tell


def evolved_bytes(perturbation: Perturbation) -> int:
    """Of the parameters that are perturbed, in float32."""
    return 4 * sum(math.prod(leaf.shape) for leaf in perturbation.evolved)


def programs_in_place(
    strategy: Strategy,
    state: EvolutionState,
    members: Members,
    slice_bytes: int = SLICE_BYTES,
) -> Iterator[Traced]:
    """The programs of `tell_in_place`, two for each parameter, to ask how much they take.

    `state` and `members` may be of `jax.ShapeDtypeStruct`s.
    """
    parts, perturbation = strategy.parts, members.perturbation
    assert not isinstance(parts, str)
    shape = jax.ShapeDtypeStruct
    fitness, squares = shape((members.size,), jnp.float32), shape((2,), jnp.float32)
    guard_of = jax.eval_shape(lambda: guard(jnp.ones((2,)), 1.0))
    for leaf in perturbation.evolved:
        one = _Parameter(parts, perturbation, state, slice_bytes, leaf)
        rows, first = next(one.slices())
        given = (one.of(named_leaves(state), members), fitness, first)
        yield one.squares.trace(*given, squares, rows=rows)
        yield one.move.trace(*given, guard_of, rows=rows)


@functools.partial(jax.jit, static_argnames="limit")
def _bound(
    squares: Array, fitness: Array, sigma: Array, limit: float | None
) -> tuple[Guard, Metrics]:
    """The guard of a step, and the metrics of a generation."""
    bound = guard(squares, limit)
    valid = finite(fitness)
    ratio = jnp.where(valid.any(), bound.ratio, 0.0)
    return bound, fitness_metrics(fitness, valid) | {"sigma": sigma, "step_ratio": ratio}


@functools.partial(jax.jit, donate_argnums=0)
def _put(whole: Arrays, rows: Arrays, first: Array) -> Arrays:
    """Rows in their place. A program of its own: in that which computes them from what was there,
    XLA copies the whole."""
    put = lambda x, part: lax.dynamic_update_slice_in_dim(x, part, first, 0)
    return jax.tree.map(put, whole, rows)


def _instead(old: Arrays, new: Arrays) -> Arrays:
    """`new`, for which the memory of `old` is given up. What a program hands through is both."""
    for path, x in old.items():
        if new[path] is not x:
            x.delete()
    return new


@dataclass(frozen=True)
class _Shapes:
    """Structure, shapes and types of a state, hashable."""

    tree: PyTree  # its structure
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, state: EvolutionState) -> "_Shapes":
        leaves, tree = jax.tree.flatten(state)
        return cls(tree, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves))

    def state(self) -> EvolutionState:
        return jax.tree.unflatten(self.tree, self.leaves)


class _Inputs(NamedTuple):
    """own: what belongs to a parameter, by path. shared: what is the same for all, such as counts.
    members: with the factors of this parameter alone."""

    own: Arrays
    shared: Arrays
    members: Members


class _Parameter:
    """One parameter, cut along its first axis into slices that are updated by themselves."""

    def __init__(
        self,
        parts: Parts,
        perturbation: Perturbation,
        shapes: EvolutionState,
        slice_bytes: int,
        leaf: Leaf,
    ) -> None:
        self._parts, self._perturbation, self._leaf = parts, perturbation, leaf
        self._key, self._param = _node(shapes.params, leaf)
        self._length = leaf.shape[0] if leaf.shape else 1
        paths = named_leaves(self._strategy(self._length)[1])
        belongs = lambda path: f"/{self._key}/" in f"/{path}/"
        self._own = tuple(path for path in paths if belongs(path))
        self._shared = tuple(path for path in paths if not belongs(path))
        row = 4 * math.prod(leaf.shape[1:])
        rows = max(1, min(self._length, slice_bytes // max(1, row)))
        self._rows = rows if self._divides(named_leaves(shapes), rows) else self._length
        self.squares = jax.jit(self._squares, static_argnames="rows")
        self.move = jax.jit(self._move, static_argnames="rows")

    def slices(self) -> Iterator[tuple[int, np.int32 | None]]:
        """(how many rows, the first of them); None where it is the whole parameter."""
        if self._rows == self._length:
            yield self._length, None
            return
        for first in range(0, self._length, self._rows):
            yield min(self._rows, self._length - first), np.int32(first)

    def of(self, arrays: Arrays, members: Members) -> _Inputs:
        """What the parameter's programs take of a whole state."""
        factors = members.factors and {self._leaf.path: members.factors[self._leaf.path]}
        own = {path: arrays[path] for path in self._own}
        shared = {path: arrays[path] for path in self._shared}
        return _Inputs(own, shared, replace(members, factors=factors))

    def _squares(
        self, inputs: _Inputs, fitness: Array, first: Array | None, squares: Array, rows: int
    ) -> Array:
        step, state, members = self._slice(inputs, first, rows)
        return squares + step.squares(state, members, fitness)

    def _move(
        self, inputs: _Inputs, fitness: Array, first: Array | None, bound: Guard, rows: int
    ) -> tuple[Arrays, Arrays]:
        """(what belongs to these rows, what is the same for all) after the step."""
        step, state, members = self._slice(inputs, first, rows)
        after = named_leaves(step.move(state, members, fitness, bound))
        some = lambda paths: {path: after[path] for path in paths}
        return some(self._own), some(self._shared)

    def _slice(
        self, inputs: _Inputs, first: Array | None, rows: int
    ) -> tuple[Step, EvolutionState, Members]:
        """The step of so many rows, their state and their members."""
        own, shared, members = inputs
        strategy, like, leaf = self._strategy(rows)
        if first is not None:
            own = {path: lax.dynamic_slice_in_dim(x, first, rows) for path, x in own.items()}
        state = map_named(lambda path, _: own.get(path, shared.get(path)), like)
        part = replace(members.perturbation, leaves=(leaf,))
        factors = members.factors and {leaf.path: self._factors(members, first, rows)}
        assert not isinstance(strategy.parts, str) and strategy.parts.step is not None
        members = replace(members, perturbation=part, factors=factors, first=first)
        return strategy.parts.step, state, members

    def _factors(self, members: Members, first: Array | None, rows: int) -> tuple[Array, ...]:
        """The kept factors of so many rows."""
        leaf = self._leaf
        assert members.factors is not None
        factors = members.factors[leaf.path]
        if first is None:
            return factors
        axis = 0 if leaf.stacked else 1  # pairs are behind the shared axes
        cut = lambda x: lax.dynamic_slice_in_dim(x, first, rows, axis)
        if leaf.kind == "dense" or leaf.stacked:
            return tuple(cut(x) for x in factors)
        sides = zip(factors, "mn", strict=True)
        return tuple(cut(x) if side == leaf.roles[0] else x for x, side in sides)

    def _strategy(self, rows: int) -> tuple[Strategy, EvolutionState, Leaf]:
        """The strategy for so many rows of the parameter, its state in shapes, and the rows."""
        leaf = self._leaf
        if rows < self._length:
            leaf = replace(leaf, shape=(rows, *leaf.shape[1:]), stack=self._length)
        population = self._parts.population.of_part(replace(self._perturbation, leaves=(leaf,)))
        strategy = self._parts.make(population)
        shape = lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]) if x.shape else (), x.dtype)
        key = jax.eval_shape(lambda: jax.random.key(0))
        params = {self._key: jax.tree.map(shape, self._param)}
        return strategy, jax.eval_shape(strategy.init, key, params), leaf

    def _divides(self, shapes: dict[str, jax.ShapeDtypeStruct], rows: int) -> bool:
        """Whether all that belongs to the parameter has its first axis; block codes need not."""
        cut = named_leaves(self._strategy(rows)[1])
        whole = lambda path: shapes[path].shape
        return all(
            whole(path)[:1] == (self._length,) and cut[path].shape == (rows, *whole(path)[1:])
            for path in self._own
        )


def _node(params: PyTree, leaf: Leaf) -> tuple[str, PyTree]:
    """(path, the parameter) of a leaf: an array, or the `Int8` whose values it is."""
    nodes, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_int8)
    path_in = lambda path, x: values_path(path) if is_int8(x) else path_of(path)
    return next((path_of(path), x) for path, x in nodes if path_in(path, x) == leaf.path)
