"""Decay towards the weights a run began with, as an optax transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Anchor(NamedTuple):
    """The state of `anchored`."""

    first: Any  # the weights to go back to, in the tree and dtypes of the params


def anchored(share: float) -> optax.GradientTransformation:
    """Add `-share (W - W_0)` to every update: a pull back to the first weights, against forgetting.

    To be put last in a chain, where updates are what is added to the weights. With it a constant
    push ends at a distance of push / share instead of growing for ever. Costs a copy of the
    weights.

    Source: anchored weight decay, arXiv 2605.30148.
    """

    def init(params: Any) -> Anchor:
        return Anchor(jax.tree.map(jnp.array, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("anchored needs the params that it pulls back")
        pull = lambda u, w, first: u - jnp.asarray(share, u.dtype) * (w - first).astype(u.dtype)
        return jax.tree.map(pull, updates, params, state.first), state

    return optax.GradientTransformation(init, update)
