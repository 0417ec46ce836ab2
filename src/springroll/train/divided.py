"""A decoder whose weights are divided over devices and put together a layer at a time (FSDP).

Every device holds a part of each array. A layer is gathered where it is computed, forward and again
backward, so that one whole layer is alive at a time; the gradient of a layer is summed and divided
at once. Rows of a batch are divided as ever. Left to itself, the compiler would divide the products
instead, for which it gathers and sums the activations of all rows.

Source: arXiv 1910.02054 (ZeRO, stage 3), arXiv 2304.11277 (fully sharded data parallel).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from springroll.models.decoder import Decoder
from springroll.models.protocols import Metrics, read_part
from springroll.subspace.layerwise import parted
from springroll.trees import Params, PyTree

Cut = Callable[[Any], NamedSharding]  # an array -> how it is divided


class DividedStages:
    """The parts and the loss of a decoder on arrays that are divided.

    Args:
        cut: how an array of weights is divided.
        rows: how rows of a batch are.
    """

    stack = "layers"

    def __init__(self, model: Decoder, cut: Cut, rows: NamedSharding):
        self._model, self._cut, self._rows = model, cut, rows

    def embed(self, rest: Params, tokens: Array) -> Array:
        """As `Decoder.embed`."""
        return self._by_rows(self._model.embed(self._whole(rest), tokens))

    def block(self, layer: Params, x: Array, index: Array) -> tuple[Array, Params]:
        """As `Decoder.block`."""
        x, stats = self._model.block(self._whole(layer), x, index)
        return self._by_rows(x), stats

    def finish(self, rest: Params, x: Array, stats: Params, tokens: Array) -> tuple[Array, Metrics]:
        """As `Decoder.finish`."""
        return self._model.finish(self._whole(rest), x, stats, tokens)

    def loss(self, params: Params, tokens: Array) -> tuple[Array, Metrics]:
        """As `Decoder.loss`."""
        layers, rest = parted(params)
        depth = jax.tree.leaves(layers)[0].shape[0]
        keep = None if self._model.remat else _all_but_gathered
        step = jax.checkpoint(
            lambda x, at: self.block(at[0], x, at[1]), prevent_cse=False, policy=keep
        )
        numbers = jnp.arange(depth, dtype=jnp.int32)
        x, stats = lax.scan(step, self.embed(rest, read_part(tokens)), (layers, numbers))
        return self.finish(rest, x, stats, tokens)

    def _by_rows(self, x: Array) -> Array:
        return lax.with_sharding_constraint(x, self._rows)

    def _whole(self, tree: Params) -> Params:
        everywhere = NamedSharding(self._rows.mesh, PartitionSpec())
        return jax.tree.map(lambda w: _gathered(w, everywhere, self._cut(w)), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(w: Array, everywhere: NamedSharding, cut: NamedSharding) -> Array:
    """All of an array on every device; its gradient is divided as the array was."""
    return lax.with_sharding_constraint(w, everywhere)


def _forward(w: Array, everywhere: NamedSharding, cut: NamedSharding) -> tuple[Array, None]:
    return lax.with_sharding_constraint(w, everywhere), None


def _backward(everywhere: NamedSharding, cut: NamedSharding, _: None, dw: Array) -> tuple[Array]:
    return (lax.with_sharding_constraint(dw, cut),)


_gathered.defvjp(_forward, _backward)


def _all_but_gathered(primitive: Any, *_: PyTree, **__: PyTree) -> bool:
    """What the gradient of a layer may keep: whole weights are gathered again."""
    return primitive.name != "sharding_constraint"
