"""Several texts in one row, kept apart: a batch of them, and where each token stands in its text.

A text is a segment of its row: its tokens see each other and none of their neighbours', positions
begin at 0, and no token is predicted from another text. The loss of a packed batch is therefore
that of its texts, each alone.

Letters: B batch, T time, D width of the model.
"""

from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll.trees import PyTree


class Packed(NamedTuple):
    """A batch of rows of texts.

    The loss of some of the rows is the sum over their targets, divided by the sum of `counted`.
    As `counted` is the same number for every row of a step, the mean of the losses of equal parts
    of the step (micro-batches, devices) is the mean over all of its targets, however they are
    spread over its rows.
    """

    tokens: PyTree  # (B, T) integers
    targets: PyTree  # (B, T) int32: what follows each token; negative: not learnt
    segments: PyTree  # (B, T) int32: the text, by a number that differs from its neighbours'
    counted: PyTree  # (B,) float32: targets of a whole step that are learnt, over its rows


class Within(NamedTuple):
    """A residual stream, and which text of its row each position belongs to."""

    x: Array  # (B, T, D)
    segments: Array  # (B, T) int32


Batch: TypeAlias = Array | Packed
"""Tokens (B, T + 1), each row one text of which everything is learnt, or packed rows."""
Stream: TypeAlias = PyTree
"""A residual stream (B, T, D), or `Within`."""


def read_tokens(part: Batch) -> tuple[Array, Array | None]:
    """What `protocols.read_part` gives of a batch: tokens (B, T), and segments where there are."""
    return (part.tokens, part.segments) if isinstance(part, Packed) else (part, None)


def with_read(batch: PyTree, tokens: PyTree) -> PyTree:
    """A batch on the host of which other tokens (B, T) are read; its targets are what they were."""
    if isinstance(batch, Packed):
        return batch._replace(tokens=tokens)
    return np.concatenate([tokens, np.asarray(batch)[:, -1:]], axis=1)


def learnt(batch: Batch) -> tuple[Array, Array | None]:
    """Targets (B, T), and () float32 what their nats are divided by; None: by their number."""
    if isinstance(batch, Packed):
        return batch.targets, jnp.maximum(jnp.sum(batch.counted), 1e-6)
    return batch[:, 1:], None


def opened(x: Stream) -> tuple[Array, Array | None]:
    """The stream, and the segments of its positions where there are several."""
    return (x.x, x.segments) if isinstance(x, Within) else (x, None)


def closed(x_BTD: Array, segments: Array | None) -> Stream:
    """The inverse of `opened`."""
    return x_BTD if segments is None else Within(x_BTD, segments)


def places(segments: Array) -> tuple[Array, Array]:
    """(position within its text, length of that text) of every token: (B, T) int32 both."""
    time = segments.shape[1]
    at = jnp.broadcast_to(lax.iota(jnp.int32, time)[None], segments.shape)
    changes = segments[:, 1:] != segments[:, :-1]
    edge = jnp.ones((segments.shape[0], 1), bool)
    first = jnp.concatenate([edge, changes], axis=1)
    last = jnp.concatenate([changes, edge], axis=1)
    start = lax.cummax(jnp.where(first, at, 0), axis=1)
    end = lax.cummin(jnp.where(last, at + 1, time), axis=1, reverse=True)
    return at - start, end - start
