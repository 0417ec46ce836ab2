"""One layer of a stack after the other, in place: nothing is ever alive for a whole stack twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax


def each_layer(
    fn: Callable[[Any, Array], Any], whole: Any, layers: Array, count: Array, stacked: bool
) -> Any:
    """`whole` with fn(part, layer) in place of the part of each of the first `count` of `layers`.

    A part is an entry along the first axis of every array of `whole`, or, not `stacked`, all of
    it. The program is as long for a hundred layers as for one.
    """

    def one(i: Array, whole: Any) -> Any:
        layer = layers[i]
        if not stacked:
            return fn(whole, layer)
        put = lambda a, part: lax.dynamic_update_index_in_dim(a, part, layer, 0)
        return jax.tree.map(put, whole, fn(layer_of(whole, layer), layer))

    return lax.fori_loop(0, count, one, whole)


def layer_of(whole: Any, layer: Array) -> Any:
    """The entry along the first axis of every array of `whole`."""
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, layer, 0, keepdims=False), whole)
