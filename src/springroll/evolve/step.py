"""Applying a direction to the weights: the optimizer, the guard, and rounding to the stored dtype."""

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


def is_low_precision(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32


def select(perturbation: Perturbation, params: Any) -> Any:
    """`params` with nothing in the place of frozen leaves: what an optimizer sees."""
    evolved = {leaf.path for leaf in perturbation.evolved}
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x if path_of(path) in evolved else _NOTHING, params
    )


def masters(perturbation: Perturbation, params: Any, master: Master) -> Any:
    """float32 copies of evolved low-precision parameters; nothing in the place of all others."""
    if master != "float32":
        return jax.tree.map(lambda _: _NOTHING, params)
    return jax.tree.map(
        lambda x: x.astype(jnp.float32) if is_low_precision(x) else _NOTHING,
        select(perturbation, params),
    )


def working_weights(perturbation: Perturbation, params: Any, master: Any) -> Any:
    """What the optimizer moves: the master where there is one, else the parameter in float32."""
    return jax.tree.map(
        lambda x, copy: _widest(x, copy),
        select(perturbation, params),
        _under(master, select(perturbation, params)),
        is_leaf=_is_nothing,
    )


def _widest(x: Any, copy: Any) -> Any:
    if _is_nothing(x):
        return x
    return x.astype(jnp.float32) if _is_nothing(copy) else copy


def _under(master: Any, like: Any) -> Any:
    return jax.tree.map(lambda _, m: m, like, master, is_leaf=_is_nothing)


def _is_nothing(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def norm(tree: Any) -> Array:
    """Euclidean norm over all leaves, float32."""
    squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.float32(0)))


def guarded(updates: Any, weights: Any, max_step_ratio: float | None) -> tuple[Any, Array]:
    """(updates, |updates| / |weights|), scaled down if the ratio would be above `max_step_ratio`."""
    size = norm(weights)
    ratio = norm(updates) / jnp.maximum(size, jnp.finfo(jnp.float32).tiny)
    if max_step_ratio is None:
        return updates, ratio
    # All-zero weights have no scale to compare with.
    allowed = jnp.where(size > 0, max_step_ratio / jnp.maximum(ratio, max_step_ratio), 1.0)
    return jax.tree.map(lambda u: u * allowed.astype(u.dtype), updates), ratio * allowed


def stored(
    params: Any, weights: Any, master: Any, policy: Master, seed: Array, epoch: Array
) -> tuple[Any, Any]:
    """(params, master) after the step: moved weights in the dtypes the model keeps."""

    def one(path: Any, x: Array, weight: Any) -> Array:
        if _is_nothing(weight):
            return x
        if policy == "stochastic" and x.dtype == jnp.bfloat16:
            words = counter.stream(seed, epoch, path_of(path) + "#rounding")
            bits = counter.bits(words, jnp.zeros((1,), jnp.uint32), x.size).reshape(x.shape)
            return round_stochastically(weight, bits)
        return weight.astype(x.dtype)

    new = jax.tree_util.tree_map_with_path(one, params, weights)
    kept = jax.tree.map(
        lambda m, w: m if _is_nothing(m) else w, master, weights, is_leaf=_is_nothing
    )
    return new, kept
