"""Moving the weights: what the optimizer sees, the guard, and rounding to the stored dtype.

Trees here have the structure of the model's parameters. A place that has no value (a frozen leaf, a
leaf without a master copy) holds `optax.MaskedNode()`, which optax and `jax.tree` treat as empty.
In the place of an `Int8` weight stands an `Int8` node with what is meant as its values, no scale.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array

from springroll.errors import InputError
from springroll.evolve.perturbation import Perturbation, values_path
from springroll.noise import counter
from springroll.quant.int8_weights import (
    Int8,
    is_int8,
    nearest,
    no_residual,
    packed,
    real,
    rounded,
    unpacked,
    values_and_residual,
    values_only,
)
from springroll.quant.stochastic_rounding import round_stochastically
from springroll.trees import KeyPath, PyTree, map_named, path_of

Master: TypeAlias = Literal["float32", "stochastic", "error_feedback", "error_feedback_4bit"] | None
RESIDUAL_BITS = {"error_feedback": 8, "error_feedback_4bit": 4}
_NOTHING = optax.MaskedNode()


def check_master(master: Master) -> None:
    if master not in (*get_args(get_args(Master)[0]), None):
        raise InputError(
            f"master is {master!r}; expected 'float32', 'stochastic' or None, or "
            "'error_feedback' or 'error_feedback_4bit' for int8 weights"
        )


def master_copies(perturbation: Perturbation, params: PyTree, master: Master) -> PyTree:
    """What is kept beside evolved parameters of few bits, to lose nothing of small steps.

    float32 copies with master "float32"; with "error_feedback" the residuals of `Int8` weights, of
    8 bits or 4 (see `quant.int8_weights.values_and_residual`), which are 0 at first.
    """
    evolved = {leaf.path for leaf in perturbation.evolved}

    def one(path: KeyPath, x: PyTree) -> PyTree:
        if is_int8(x):
            new_copy = _NOTHING
            if values_path(path) in evolved and master == "float32":
                new_copy = real(x)
            elif values_path(path) in evolved and master in RESIDUAL_BITS:
                new_copy = no_residual(x.values, RESIDUAL_BITS[master])
            return values_only(x, new_copy, _NOTHING)
        wanted = master == "float32" and path_of(path) in evolved and _is_short(x)
        return x.astype(jnp.float32) if wanted else _NOTHING

    return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_int8)


def working_weights(perturbation: Perturbation, params: PyTree, copies: PyTree) -> PyTree:
    """What the optimizer moves: the master copy where there is one, else the parameter.

    In float32, or float64 where the parameter is. Of `Int8` weights the floats they stand for, in
    the place of the values, residual included.
    """
    evolved = {leaf.path for leaf in perturbation.evolved}

    def one(path: KeyPath, x: PyTree, copy: PyTree) -> PyTree:
        if is_int8(x):
            known = values_path(path) in evolved
            return values_only(x, _floats(x, copy.values) if known else _NOTHING, _NOTHING)
        if path_of(path) not in evolved:
            return _NOTHING
        if not _is_nothing(copy):
            return copy
        return x if x.dtype == jnp.float64 else x.astype(jnp.float32)

    return jax.tree_util.tree_map_with_path(one, params, copies, is_leaf=is_int8)


def by_path(params: PyTree, values: dict[str, Array]) -> PyTree:
    """`values` by path as a tree of the structure of `params`."""
    return map_named(lambda path, _: values.get(path, _NOTHING), params)


def finite_or(new: Array, old: Array) -> Array:
    """`new`, and `old` where that is NaN or infinite: entry by entry, in the loop that makes it."""
    return jnp.where(jnp.isfinite(new), new, old) if _is_floating(new) else new


def moved(weights: PyTree, updates: PyTree) -> PyTree:
    """The sum of both; a weight that would not be finite stays as it was.

    Not so `Int8` weights, which `stored` keeps if they would not be finite.
    """

    def one(w: PyTree, u: PyTree) -> PyTree:
        if is_int8(w):
            return jax.tree.map(lambda w, u: w + u.astype(w.dtype), w, u)
        return finite_or(w + u.astype(w.dtype), w)

    return jax.tree.map(one, weights, updates, is_leaf=is_int8)


class Guard(NamedTuple):
    """What the length of a step does to it: `shrink` () multiplies it, and `ratio` () is
    |step| / |weights| after that."""

    shrink: Array
    ratio: Array


def guard(squares: Array, max_step_ratio: float | None) -> Guard:
    """The guard of a step, from the `squares` (2,) of the norms of all updates and all weights.

    Norms are over all evolved parameters together. Weights that are all zero have no scale to
    compare with: the ratio is 0 and nothing is scaled. Updates whose norm overflows become zero,
    or NaN where they are infinite.
    """
    length, size = jnp.sqrt(squares[0]), jnp.sqrt(squares[1])
    ratio = jnp.where(size > 0, length / jnp.where(size > 0, size, 1.0), 0.0)
    if max_step_ratio is None:
        return Guard(jnp.ones((), jnp.float32), ratio)
    shrink = max_step_ratio / jnp.maximum(ratio, max_step_ratio)
    return Guard(shrink, ratio * shrink)


def stored(
    params: PyTree,
    moved: PyTree,
    copies: PyTree,
    master: Master,
    seed: Array,
    generation: Array,
    first: Array | None = None,
) -> tuple[PyTree, PyTree]:
    """(params, master copies) that keep the `moved` working weights, in the model's own dtypes.

    With `first` () the params are a slice of stacked layers that begins there; rounding is then
    that of the whole stack.
    """

    def bits(path: str, x: Array) -> Array:
        words = counter.stream(seed, generation, path + "#rounding")
        before = 0 if first is None else first.astype(jnp.uint32) * (x.size // x.shape[0])
        drawn = counter.bits(words, jnp.zeros((1,), jnp.uint32), x.size, before)
        return drawn.reshape(x.shape)

    def one(path: KeyPath, x: PyTree, weight: PyTree, copy: PyTree) -> tuple[PyTree, PyTree]:
        if is_int8(x):
            if _is_nothing(weight.values):
                return x, copy
            draw = lambda: bits(values_path(path), x.values)
            values, new_copy = _on_grid(x, weight.values, copy.values, master, draw)
            return dataclasses.replace(x, values=values), values_only(x, new_copy, _NOTHING)
        if _is_nothing(weight):
            return x, copy
        new_copy = copy if _is_nothing(copy) else weight
        if master in ("stochastic", *RESIDUAL_BITS) and x.dtype == jnp.bfloat16:
            return round_stochastically(weight, bits(path_of(path), x)), new_copy
        return weight.astype(x.dtype), new_copy

    pairs = jax.tree_util.tree_map_with_path(one, params, moved, copies, is_leaf=is_int8)
    structure = jax.tree.structure(params, is_leaf=is_int8)
    new, new_copies = zip(*structure.flatten_up_to(pairs), strict=True)
    return structure.unflatten(new), structure.unflatten(new_copies)


def _floats(x: Int8, copy: PyTree) -> Array:
    """An `Int8` weight as floats: its copy, or its values and their residual."""
    if _is_nothing(copy):
        return real(x)
    return copy if copy.dtype == jnp.float32 else real(x, copy)


def _on_grid(
    x: Int8, weight: Array, copy: PyTree, master: Master, draw: Callable[[], Array]
) -> tuple[Array, PyTree]:
    """(values, what is kept beside them) of an `Int8` that is to hold the float32 `weight`."""
    steps = weight / x.scale[..., None]
    keep = lambda new, old: jnp.where(jnp.isfinite(steps), new, old)
    if master in RESIDUAL_BITS:
        width = RESIDUAL_BITS[master]
        values, residual = values_and_residual(steps, draw(), width)
        residual = keep(residual, unpacked(copy, x.values.shape[-1]))
        return keep(values, x.values), packed(residual, width)
    if master == "stochastic":
        return keep(nearest(rounded(steps, draw())), x.values), copy
    return keep(nearest(steps), x.values), copy if _is_nothing(copy) else finite_or(weight, copy)


def _is_short(x: Array) -> bool:
    return _is_floating(x) and jnp.finfo(x.dtype).bits < 32


def _is_floating(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _is_nothing(x: PyTree) -> bool:
    return isinstance(x, optax.MaskedNode)
