"""Moving the weights: what the optimizer sees, the guard, and rounding to the stored dtype.

Trees here have the structure of the model's parameters. A place that has no value (a frozen leaf, a
leaf without a master copy) holds `optax.MaskedNode()`, which optax and `jax.tree` treat as empty.
"""

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array

from springroll.errors import InputError
from springroll.evolve import counter
from springroll.evolve.perturbation import Perturbation, path_of
from springroll.quant.stochastic_rounding import round_stochastically

Master: TypeAlias = Literal["float32", "stochastic"] | None
_NOTHING = optax.MaskedNode()


def check_master(master: Master) -> None:
    if master not in ("float32", "stochastic", None):
        raise InputError(f"master is {master!r}; expected 'float32', 'stochastic' or None")


def master_copies(perturbation: Perturbation, params: Any, master: Master) -> Any:
    """float32 copies of evolved bfloat16 and float16 parameters, with master "float32"."""
    evolved = {leaf.path for leaf in perturbation.evolved}

    def one(path: Any, x: Array) -> Any:
        wanted = master == "float32" and path_of(path) in evolved and _is_short(x)
        return x.astype(jnp.float32) if wanted else _NOTHING

    return jax.tree_util.tree_map_with_path(one, params)


def working_weights(perturbation: Perturbation, params: Any, copies: Any) -> Any:
    """What the optimizer moves: the master copy where there is one, else the parameter.

    In float32, or float64 where the parameter is.
    """
    evolved = {leaf.path for leaf in perturbation.evolved}

    def one(path: Any, x: Array, copy: Any) -> Any:
        if path_of(path) not in evolved:
            return _NOTHING
        if not _is_nothing(copy):
            return copy
        return x if x.dtype == jnp.float64 else x.astype(jnp.float32)

    return jax.tree_util.tree_map_with_path(one, params, copies)


def by_path(params: Any, values: dict[str, Array]) -> Any:
    """`values` by path as a tree of the structure of `params`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: values.get(path_of(path), _NOTHING), params
    )


def norm(tree: Any) -> Array:
    """Euclidean norm over all leaves, float32."""
    squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.float32(0)))


def guarded(updates: Any, weights: Any, max_step_ratio: float | None) -> tuple[Any, Array]:
    """(updates, |updates| / |weights|), scaled down where the ratio is above `max_step_ratio`.

    Norms are over all evolved parameters together. Weights that are all zero have no scale to
    compare with: the ratio is 0 and nothing is scaled.
    """
    size = norm(weights)
    ratio = jnp.where(size > 0, norm(updates) / jnp.where(size > 0, size, 1.0), 0.0)
    if max_step_ratio is None:
        return updates, ratio
    shrink = max_step_ratio / jnp.maximum(ratio, max_step_ratio)
    return jax.tree.map(lambda u: u * shrink.astype(u.dtype), updates), ratio * shrink


def stored(
    params: Any,
    moved: Any,
    copies: Any,
    master: Master,
    seed: Array,
    generation: Array,
    first: Array | None = None,
) -> tuple[Any, Any]:
    """(params, master copies) that keep the `moved` working weights, in the model's own dtypes.

    With `first` () the params are a slice of stacked layers that begins there; rounding is then
    that of the whole stack.
    """

    def one(path: Any, x: Array, weight: Any) -> Array:
        if _is_nothing(weight):
            return x
        if master == "stochastic" and x.dtype == jnp.bfloat16:
            words = counter.stream(seed, generation, path_of(path) + "#rounding")
            before = 0 if first is None else first.astype(jnp.uint32) * (x.size // x.shape[0])
            bits = counter.bits(words, jnp.zeros((1,), jnp.uint32), x.size, before)
            return round_stochastically(weight, bits.reshape(x.shape))
        return weight.astype(x.dtype)

    new = jax.tree_util.tree_map_with_path(one, params, moved)
    keep = lambda _, copy, weight: copy if _is_nothing(copy) else weight
    return new, jax.tree.map(keep, params, copies, moved)


def _is_short(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32


def _is_nothing(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)
