"""Cross-entropy of a language model's head that never holds tokens x vocabulary.

The vocabulary is walked in slices of the head, with a running maximum and sum of the softmax
(Milakov and Gimelshein 2018). A slice's logits are computed, used and dropped, and computed again
for the gradient: one extra product with the head buys tokens x vocabulary x 4 bytes. Every slice of
the head sees all tokens at once, so that its gradient is one product, and the batch stays whole, so
that a sharded one stays where it is. When everything fits one slice nothing is computed twice.
"""

import functools
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll import compat
from springroll.models.layers import soft_cap

CHUNK = {"cpu": 1 << 22, "device": 1 << 24}  # logits alive at a time: 16, 64 MiB of float32
LEAST = 128  # rows of the head in a slice, if it has so many

Shaped: TypeAlias = tuple[float, float]  # cap and temperature of logits
Saved: TypeAlias = tuple[Array, Array, Array, Array]


def cross_entropy(
    x_BTD: Array,
    head_VD: Array,
    targets_BT: Array,
    chunk: int | None = None,
    cap: float = 0.0,
    count: Array | None = None,
) -> Array:
    """Mean of -log softmax(x head^T)[target] in nats, float32 ().

    Args:
        x_BTD: what the head is applied to (batch, time, width).
        head_VD: the head (vocabulary, width).
        targets_BT: token ids (batch, time); a negative one does not count.
        chunk: how many logits may be alive at a time; `LEAST` per token always are. Default:
            `CHUNK`.
        cap: of the logits, see `soft_cap`; 0: none.
        count: () float32, what the sum is divided by; None: by how many tokens count.
    """
    counted = jnp.maximum(jnp.sum(targets_BT >= 0), 1).astype(jnp.float32)
    counted = counted if count is None else count
    return jnp.sum(token_nats(x_BTD, head_VD, targets_BT, chunk=chunk, cap=cap)) / counted


def token_nats(
    x_BTD: Array,
    head_VD: "Array | HeadApart",
    targets_BT: Array,
    temperature: float = 1.0,
    chunk: int | None = None,
    cap: float = 0.0,
) -> Array:
    """-log softmax(x head^T / temperature)[target] of every token, float32 (batch, time).

    0 for negative targets. Arguments as those of `cross_entropy`.
    """
    if isinstance(head_VD, HeadApart):
        assert not cap, "a head whose gradient is apart has no cap"
        x_BTD = x_BTD / np.asarray(temperature, x_BTD.dtype)
        return _apart(
            slice_rows(head_VD.weight.shape[0], targets_BT.size, chunk), x_BTD, head_VD, targets_BT
        )
    if not cap:
        x_BTD, temperature = x_BTD / np.asarray(temperature, x_BTD.dtype), 1.0
    size = slice_rows(head_VD.shape[0], x_BTD.shape[0] * x_BTD.shape[1], chunk)
    if size == head_VD.shape[0]:
        return _formed((cap, temperature), x_BTD, head_VD, targets_BT)
    return _sliced((cap, temperature), size, x_BTD, head_VD, targets_BT)


def slice_rows(vocabulary: int, tokens: int, chunk: int | None = None) -> int:
    """Rows of the head in a slice, for so many tokens; all, where everything fits one slice."""
    if chunk is None:
        chunk = CHUNK["cpu" if compat.platform() == "cpu" else "device"]
    size = max(LEAST, chunk // tokens)
    if size >= vocabulary:
        return vocabulary
    return -(-vocabulary // -(-vocabulary // size))  # slices of about the same size


def _formed(shaped: Shaped, x: Array, head: Array, targets: Array) -> Array:
    logits = _shape(shaped, _product(x, head))
    picked = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return _counted(targets, jax.nn.logsumexp(logits, axis=-1) - picked)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sliced(shaped: Shaped, size: int, x: Array, head: Array, targets: Array) -> Array:
    return _forward(shaped, size, x, head, targets)[0]


def _forward(
    shaped: Shaped, size: int, x: Array, head: Array, targets: Array
) -> tuple[Array, Saved]:
    slices = _Slices(head.shape[0], size)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # where a thin head is differentiated
    def step(carry: tuple[Array, Array, Array], i: Array) -> tuple[tuple[Array, ...], None]:
        top, total, picked = carry
        logits = _shape(shaped, _product(x, slices.cut(head, i)))
        picked = picked + jnp.sum(jnp.where(slices.hit(targets, i), logits, np.float32(0)), axis=-1)
        logits = jnp.where(slices.new(i), logits, np.float32(-np.inf))
        highest = lax.stop_gradient(jnp.maximum(top, jnp.max(logits, axis=-1)))
        total = total * jnp.exp(top - highest)
        total = total + jnp.sum(jnp.exp(logits - highest[..., None]), axis=-1)
        return (highest, total, picked), None

    outside = targets >= head.shape[0]  # as where all logits are formed
    unpicked = jnp.where(outside, jnp.float32(np.nan), jnp.float32(0))
    start = (jnp.full(targets.shape, -np.inf, jnp.float32), jnp.zeros(targets.shape), unpicked)
    start = jax.tree.map(lambda a: compat.vary_as(a, x, head, targets), start)
    (top, total, picked), _ = lax.scan(step, start, slices.numbers)
    log = top + jnp.log(total)
    return _counted(targets, log - picked), (x, head, targets, log)


class HeadInputs(NamedTuple):
    """What the gradient of a head is made of.

    x: (B, T, D) what it is applied to; log: (B, T) float32 of the sum of the exponentials of its
    logits; gradient: (B, T) float32 of the nats.
    """

    x: Array
    log: Array
    gradient: Array


class HeadApart(NamedTuple):
    """A head whose gradient is not formed, in place of its weights.

    The cotangents of `inputs`, which are zeros, are not a derivative: they are what `head_gradient`
    makes that of `weight` of, slice by slice. The head is to be applied once.
    """

    weight: Array
    inputs: HeadInputs


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apart(size: int, x: Array, head: HeadApart, targets: Array) -> Array:
    return _forward((0.0, 1.0), size, x, head.weight, targets)[0]


def _apart_forward(size: int, x: Array, head: HeadApart, targets: Array) -> tuple[Array, Saved]:
    return _forward((0.0, 1.0), size, x, head.weight, targets)


def _apart_backward(size: int, saved: Saved, gradient: Array) -> tuple[Array, HeadApart, None]:
    x, head, targets, log = saved
    slices, inputs = _Slices(head.shape[0], size), HeadInputs(x, log, _counted(targets, gradient))

    def step(i: Array, dx: Array) -> Array:
        part, change = _change((0.0, 1.0), slices, head, targets, inputs, i)
        return dx + jnp.einsum("BTV,VD->BTD", change, part, preferred_element_type=jnp.float32)

    start = compat.vary_as(jnp.zeros(x.shape, jnp.float32), x, head, targets, gradient)
    dx = lax.fori_loop(0, len(slices.numbers), step, start)
    return dx.astype(x.dtype), HeadApart(jnp.zeros_like(head), inputs), None


_apart.defvjp(_apart_forward, _apart_backward)


def head_gradient(
    size: int, head_VD: Array, targets_BT: Array, inputs: HeadInputs, i: Array
) -> Array:
    """Slice i of the gradient of a head, (size, D) in its type: of the rows before V that begin at
    i size, the last of `size` rows; 0 for rows of the slice before."""
    slices = _Slices(head_VD.shape[0], size)
    _, change = _change((0.0, 1.0), slices, head_VD, targets_BT, inputs, i)
    added = jnp.einsum("BTV,BTD->VD", change, inputs.x, preferred_element_type=jnp.float32)
    return added.astype(head_VD.dtype)


def _change(
    shaped: Shaped, slices: "_Slices", head: Array, targets: Array, inputs: HeadInputs, i: Array
) -> tuple[Array, Array]:
    """(slice i of the head, gradient of its logits (B, T, size) in the type of the head)."""
    part = slices.cut(head, i)
    logits, pull = jax.vjp(functools.partial(_shape, shaped), _product(inputs.x, part))
    share = jnp.exp(logits - inputs.log[..., None]) - slices.hit(targets, i).astype(jnp.float32)
    gradient = inputs.gradient[..., None]
    (change,) = pull(jnp.where(slices.new(i), share * gradient, np.float32(0)))
    return part, change.astype(head.dtype)


def _backward(
    shaped: Shaped, size: int, saved: Saved, gradient: Array
) -> tuple[Array, Array, None]:
    x, head, targets, log = saved
    slices, inputs = _Slices(head.shape[0], size), HeadInputs(x, log, _counted(targets, gradient))

    def step(i: Array, made: tuple[Array, Array]) -> tuple[Array, Array]:
        dx, dhead = made
        part, change = _change(shaped, slices, head, targets, inputs, i)
        dx = dx + jnp.einsum("BTV,VD->BTD", change, part, preferred_element_type=jnp.float32)
        added = jnp.einsum("BTV,BTD->VD", change, x, preferred_element_type=jnp.float32)
        return dx, slices.add(dhead, added.astype(head.dtype), i)

    start = jnp.zeros(x.shape, jnp.float32), jnp.zeros_like(head)
    start = jax.tree.map(lambda a: compat.vary_as(a, x, head, targets, gradient), start)
    dx, dhead = lax.fori_loop(0, len(slices.numbers), step, start)
    return dx.astype(x.dtype), dhead, None


_sliced.defvjp(_forward, _backward)


class _Slices:
    """Rows of a head in slices of equal size, of which the last may begin in the one before."""

    def __init__(self, vocabulary: int, size: int):
        self.vocabulary, self.size = vocabulary, size
        self.numbers = np.arange(-(-vocabulary // size), dtype=np.int32)

    def cut(self, head: Array, i: Array) -> Array:
        return lax.dynamic_slice_in_dim(head, self._first(i), self.size)

    def add(self, head: Array, part: Array, i: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(head, self.cut(head, i) + part, self._first(i), 0)

    def new(self, i: Array) -> Array:
        """(1, 1, size) bool: which rows were not in the slice before."""
        return (self._rows(i) >= i * self.size)[None, None]

    def hit(self, targets_BT: Array, i: Array) -> Array:
        """(B, T, size) bool: where the target is."""
        return (targets_BT[..., None] == self._rows(i)[None, None]) & self.new(i)

    def _first(self, i: Array) -> Array:
        return jnp.minimum(i * self.size, self.vocabulary - self.size)

    def _rows(self, i: Array) -> Array:
        return self._first(i) + lax.iota(jnp.int32, self.size)


def _product(x: Array, head: Array) -> Array:
    return jnp.einsum("BTD,VD->BTV", x, head, preferred_element_type=jnp.float32)


def _shape(shaped: Shaped, logits: Array) -> Array:
    """Logits capped and divided by the temperature, where they are capped."""
    cap, temperature = shaped
    return soft_cap(logits, cap) / np.float32(temperature) if cap else logits


def _counted(targets: Array, nats: Array) -> Array:
    """Nats where a target counts, else 0."""
    return jnp.where(targets >= 0, nats, jnp.float32(0))


def bits_per_byte(logits: Array, rows: Array | np.ndarray) -> Array:
    """Mean -log2 of the probability of every byte after the first, float32 ().

    Args:
        logits: (n, T, 256).
        rows: (n, T + 1) uint8; the first byte of a row is only context.
    """
    labels = rows[:, 1:, None].astype(jnp.int32)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels, axis=-1)
    return -jnp.mean(chosen) / jnp.log(2.0)
