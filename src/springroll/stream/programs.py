"""What is compiled for a streamed step: once for every structure of layers, whatever their number.

Every program also returns a token, a number that is there when the program is done: the device
copy of a bundle may go when the tokens of its readers are ready, and tokens are never donated.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.models.protocols import Stages, read_part

Join = Callable[[Any, Any], Any]


def whole(moving: Any, still: Any) -> Any:
    """The `Join` of full gradients: all weights of a bundle are differentiated."""
    return moving


class Programs:
    """The compiled parts of a step of `model`; micro-batches are averaged over `parts`.

    Args:
        join: (what is differentiated, what is not) -> the weights of a bundle.
    """

    def __init__(self, model: Stages, parts: int = 1, join: Join = whole):
        self._model, self._parts, self._join = model, parts, join
        self.embed = jax.jit(self._embed)
        self.forward = jax.jit(self._forward)
        self.score = jax.jit(self._score)
        self.finish = jax.jit(self._finish, donate_argnums=5)
        self.backward = jax.jit(self._backward, donate_argnums=6)
        self.embed_backward = jax.jit(self._embed_backward, donate_argnums=4)
        self.square = jax.jit(square)
        self.narrow = narrow

    def _embed(self, moving: Any, still: Any, tokens: Array) -> tuple[Array, Array]:
        """x of the first layer."""
        x = self._model.embed(self._join(moving, still), read_part(tokens))
        return x, _token()

    def _forward(self, moving: Any, still: Any, x: Array, index: Array) -> tuple[Any, Any, Array]:
        """(x after the layer, its statistics, token)."""
        x, stats = self._model.block(self._join(moving, still), x, index)
        return x, stats, _token()

    def _score(self, moving: Any, still: Any, x: Array, stats: Any, tokens: Array) -> Any:
        """(loss, metrics); `stats` are a list over the layers."""
        return self._model.finish(self._join(moving, still), x, stacked(stats), tokens)

    def _finish(
        self, moving: Any, still: Any, x: Array, stats: Any, tokens: Array, grads: Any
    ) -> tuple[Array, Any, Any, Array, Any, Array]:
        """(loss, metrics, gradients added to `grads`, that of x, of the statistics, token)."""
        objective = lambda p, x, s: self._model.finish(self._join(p, still), x, stacked(s), tokens)
        loss, pull, metrics = jax.vjp(objective, moving, x, stats, has_aux=True)
        found, dx, d_stats = pull(jnp.full_like(loss, 1 / self._parts))
        return loss, metrics, self._added(grads, found), dx, _real(d_stats), _token()

    def _backward(
        self, moving: Any, still: Any, x: Array, index: Array, dx: Array, d_stats: Any, grads: Any
    ) -> tuple[Any, Array, Array]:
        """(gradients added to `grads`, dx of the layer before, token)."""
        block = lambda p, x: self._model.block(self._join(p, still), x, index)
        (out, stats), pull = jax.vjp(block, moving, x)
        found, dx = pull((dx, _cotangent(stats, d_stats)))
        return self._added(grads, found), _cotangent(out, dx), _token()

    def _embed_backward(
        self, moving: Any, still: Any, tokens: Array, dx: Array, grads: Any
    ) -> tuple[Any, Array]:
        embed = lambda p: self._model.embed(self._join(p, still), read_part(tokens))
        _, pull = jax.vjp(embed, moving)
        return jax.tree.map(lambda g, new: g + new.astype(g.dtype), grads, pull(dx)[0]), _token()

    def _added(self, grads: Any, found: Any) -> Any:
        """Several micro-batches are summed in float32."""
        if grads is None:
            wide = lambda g: g.astype(jnp.float32) if self._parts > 1 else g
            return jax.tree.map(wide, found)
        return jax.tree.map(lambda g, new: g + new.astype(g.dtype), grads, found)


def stacked(stats: Any) -> Any:
    """Statistics of the layers that have any, with a leading axis of layers."""
    there = [one for one in stats if jax.tree.leaves(one)] or stats[:1]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *there)


def _real(tree: Any) -> Any:
    """Cotangents without those of integers, which no program can return."""
    return jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, tree)


def _cotangent(values: Any, real: Any) -> Any:
    """The inverse: zeros, of the type that integers have for a cotangent, where there is None."""
    leaves, tree = jax.tree.flatten(values)
    given = tree.flatten_up_to(real)
    return tree.unflatten(
        [
            (jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else _none(x))
            if d is None
            else d
            for x, d in zip(leaves, given, strict=True)
        ]
    )


def _none(x: Array) -> Any:
    return np.zeros(x.shape, jax.dtypes.float0)


def square(grads: Any) -> Array:
    """Squared norm, float32."""
    return sum(
        (jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)),
        start=jnp.zeros((), jnp.float32),
    )


@jax.jit
def narrow(grads: Any, weights: Any) -> Any:
    """Gradients in the types of the weights: what crosses the link."""
    return jax.tree.map(lambda g, w: g.astype(w.dtype), grads, weights)


def _token() -> Array:
    return jnp.zeros((), jnp.int32)
