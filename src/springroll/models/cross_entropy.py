"""Cross-entropy of a language model's head that never holds tokens x vocabulary.

The tokens are walked in chunks along time (the batch axis stays whole, so a sharded batch stays
where it is). A chunk's logits are computed, used and dropped, and computed again for the gradient:
one extra product with the head buys tokens x vocabulary x 4 bytes. When everything fits one chunk
nothing is computed twice.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll import compat
from springroll.models.layers import soft_cap

CHUNK = 1 << 22  # logits alive at a time: 16 MiB of float32


def cross_entropy(
    x_BTD: Array, head_VD: Array, targets_BT: Array, chunk: int = CHUNK, cap: float = 0.0
) -> Array:
    """Mean of -log softmax(x head^T)[target] in nats, float32 ().

    Args:
        x_BTD: what the head is applied to (batch, time, width).
        head_VD: the head (vocabulary, width).
        targets_BT: token ids (batch, time); a negative one does not count.
        chunk: how many logits may be alive at a time; at least one token per row always is.
        cap: of the logits, see `soft_cap`; 0: none.
    """
    counted = jnp.maximum(jnp.sum(targets_BT >= 0), 1).astype(jnp.float32)
    pieces = _pieces(x_BTD, head_VD, targets_BT, chunk)
    if pieces is None:
        return _nats(x_BTD, head_VD, targets_BT, cap) / counted
    step = jax.checkpoint(lambda x, t: _nats(x, head_VD, t, cap), prevent_cse=False)
    zero = compat.vary_as(jnp.float32(0), x_BTD, head_VD, targets_BT)
    total, _ = lax.scan(lambda sum, xt: (sum + step(*xt), None), zero, pieces)
    return total / counted


def token_nats(
    x_BTD: Array,
    head_VD: Array,
    targets_BT: Array,
    temperature: float = 1.0,
    chunk: int = CHUNK,
    cap: float = 0.0,
) -> Array:
    """-log softmax(x head^T / temperature)[target] of every token, float32 (batch, time).

    0 for negative targets. Arguments as those of `cross_entropy`.
    """
    if not cap:
        x_BTD, temperature = x_BTD / np.asarray(temperature, x_BTD.dtype), 1.0
    nats = lambda x, t: _token_nats(x, head_VD, t, cap, temperature)
    pieces = _pieces(x_BTD, head_VD, targets_BT, chunk)
    if pieces is None:
        return nats(x_BTD, targets_BT)
    step = jax.checkpoint(nats, prevent_cse=False)
    found = lax.map(lambda xt: step(*xt), pieces)
    return found.swapaxes(0, 1).reshape(targets_BT.shape[0], -1)[:, : targets_BT.shape[1]]


def _pieces(
    x_BTD: Array, head_VD: Array, targets_BT: Array, chunk: int
) -> tuple[Array, Array] | None:
    """Both cut along time, (pieces, batch, size, ...), padded with what does not count; None where
    everything fits one chunk."""
    batch, time, width = x_BTD.shape
    fits = max(1, chunk // (batch * head_VD.shape[0]))
    pieces = -(-time // fits)
    if pieces == 1:
        return None
    size = -(-time // pieces)
    missing = pieces * size - time
    x = jnp.pad(x_BTD, ((0, 0), (0, missing), (0, 0)))
    targets = jnp.pad(targets_BT, ((0, 0), (0, missing)), constant_values=-1)
    x = x.reshape(batch, pieces, size, width).swapaxes(0, 1)
    return x, targets.reshape(batch, pieces, size).swapaxes(0, 1)


def _nats(x_BTD: Array, head_VD: Array, targets_BT: Array, cap: float) -> Array:
    """Sum over the counted tokens, float32 ()."""
    return jnp.sum(_token_nats(x_BTD, head_VD, targets_BT, cap))


def _token_nats(
    x_BTD: Array, head_VD: Array, targets_BT: Array, cap: float, temperature: float = 1.0
) -> Array:
    """Nats of every token, 0 where it does not count, float32 (batch, time)."""
    logits = jnp.einsum("BTD,VD->BTV", x_BTD, head_VD, preferred_element_type=jnp.float32)
    if cap:
        logits = soft_cap(logits, cap) / np.float32(temperature)
    picked = jnp.take_along_axis(logits, jnp.maximum(targets_BT, 0)[..., None], axis=-1)[..., 0]
    nats = jax.nn.logsumexp(logits, axis=-1) - picked
    return jnp.where(targets_BT >= 0, nats, jnp.float32(0))


def bits_per_byte(logits: Array, rows: Array | np.ndarray) -> Array:
    """Mean -log2 of the probability of every byte after the first, float32 ().

    Args:
        logits: (n, T, 256).
        rows: (n, T + 1) uint8; the first byte of a row is only context.
    """
    labels = rows[:, 1:, None].astype(jnp.int32)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels, axis=-1)
    return -jnp.mean(chosen) / jnp.log(2.0)
