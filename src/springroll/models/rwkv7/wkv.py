"""The recurrence of RWKV-7, token by token and in chunks.

Letters: B batch, T time, H heads, N width of a head; in the state (B, H, N, N) the first N is that
of the value, the second that of the key.

    u_t = S_{t-1} p_t
    S_t = S_{t-1} diag(exp(log_w_t)) + u_t q_t^T + v_t k_t^T
    y_t = S_t r_t

with p = -kappa and q = kappa * a of the paper (arXiv 2503.14456, section 4). The state and all of
this is float32 whatever the model is: it sums over the whole past.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll import compat

LONGEST = 128  # tokens in a chunk: exp(0.61 * 128) = 7e33 is still a float32


class Inputs(NamedTuple):
    """What a layer feeds to the recurrence, all (B, T, H, N) float32; log_w lies in (-0.61, 0)."""

    r: Array
    log_w: Array
    k: Array
    v: Array
    p: Array
    q: Array


def by_token(inputs: Inputs, state: Array) -> tuple[Array, Array]:
    """(y (B, T, H, N), state after the last token), one token after the other."""
    steps = jax.tree.map(lambda x: x.swapaxes(0, 1), inputs)
    state, y = lax.scan(_token, compat.vary_as(state, inputs.r), steps)
    return y.swapaxes(0, 1), state


def _token(state: Array, at: Inputs) -> tuple[Array, Array]:
    """One token: inputs (B, H, N)."""
    u = jnp.sum(state * at.p[:, :, None], axis=-1)
    state = state * jnp.exp(at.log_w)[:, :, None]
    state = state + u[..., None] * at.q[:, :, None] + at.v[..., None] * at.k[:, :, None]
    return state, jnp.sum(state * at.r[:, :, None], axis=-1)


def by_chunk(inputs: Inputs, state: Array, chunk: int = 32) -> tuple[Array, Array]:
    """The same as `by_token` in T / chunk steps of small matrix products.

    Within a chunk that starts at the state S, with c_t = sum of log_w up to t (c_0 before the
    first token),

        S_t = (S + sum_{s <= t} (u_s q_s^T + v_s k_s^T) / exp(c_s)) diag(exp(c_t))

    so that u solves the unit lower triangular system (I - A_pq) u = P S^T + A_pk V, where
    P_t = exp(c_{t-1}) p_t and A_pq[t, s] = P_t . (q_s / exp(c_s)) for s < t, A_pk likewise: the WY
    form. It is solved for all chunks at once, for P and for A_pk V, before the walk over chunks.
    log_w > -0.61 keeps exp(-c) a float32 up to `LONGEST`; the ratios of it are all that is used.
    """
    batch, time, heads, width = inputs.r.shape
    chunk = min(chunk, time)
    count = -(-time // chunk)

    def cut(x: Array) -> Array:
        """(B, T, H, N) -> (chunks, B, H, chunk, N); zeros behind the end leave the state alone."""
        x = jnp.pad(x, ((0, 0), (0, count * chunk - time), (0, 0), (0, 0)))
        return x.reshape(batch, count, chunk, heads, width).transpose(1, 0, 3, 2, 4)

    r, log_w, k, v, p, q = map(cut, inputs)
    decay = jnp.cumsum(log_w, axis=-2)
    rise = jnp.exp(-decay)
    early, late, q_up, k_up = p * jnp.exp(decay - log_w), r * jnp.exp(decay), q * rise, k * rise
    before = np.tri(chunk, k=-1, dtype=bool)[None, None, None]
    up_to = np.tri(chunk, dtype=bool)[None, None, None]
    a_pq = jnp.where(before, _dot(early, q_up), np.float32(0))
    a_pk = jnp.where(before, _dot(early, k_up), np.float32(0))
    a_rq = jnp.where(up_to, _dot(late, q_up), np.float32(0))
    a_rk = jnp.where(up_to, _dot(late, k_up), np.float32(0))
    solve = _inverse(a_pq)
    of_state, own = _times(solve, early), _times(solve, _times(a_pk, v))
    total = decay[..., -1:, :]
    left = jnp.exp(total - decay)
    parts = (of_state, own, late, a_rq, _times(a_rk, v), q * left, _sum(v, k * left))

    def step(state: Array, part: tuple[Array, ...]) -> tuple[Array, Array]:
        of_state, own, late, a_rq, y, q_left, added, total = part
        u = _dot(of_state, state) + own
        y = y + _dot(late, state) + _times(a_rq, u)
        return state * jnp.exp(total) + _sum(u, q_left) + added, y

    state, y = lax.scan(step, compat.vary_as(state, total), (*parts, total))
    y = y.transpose(1, 0, 3, 2, 4).reshape(batch, count * chunk, heads, width)
    return y[:, :time], state


@jax.custom_vjp
def _inverse(a: Array) -> Array:
    """(I - a)^-1 of strictly lower triangular matrices, from blocks of 1, 2, 4, ... rows.

    [[P, 0], [-C, Q]]^-1 = [[P', 0], [Q' C P', Q']]: as stable as substitution, but of products.
    """
    size = a.shape[-1]
    row, column = np.indices((size, size))
    inverse = jnp.broadcast_to(jnp.eye(size, dtype=a.dtype), a.shape)
    for level in range((size - 1).bit_length()):
        corner = (row >> level) == (column >> level) + 1
        corner &= (row >> level + 1) == (column >> level + 1)
        between = a * corner.astype(np.float32).reshape((1,) * (a.ndim - 2) + corner.shape)
        inverse = inverse + _times(inverse, _times(between, inverse))
    return inverse


def _inverse_forward(a: Array) -> tuple[Array, Array]:
    inverse = _inverse(a)
    return inverse, inverse


def _inverse_backward(inverse: Array, gradient: Array) -> tuple[Array]:
    return (_sum(inverse, _dot(gradient, inverse)),)


_inverse.defvjp(_inverse_forward, _inverse_backward)

_EXACT = lax.Precision.HIGHEST  # an accelerator's short floats would lose the small ends of decays


def _dot(x: Array, y: Array) -> Array:
    """x y^T."""
    return jnp.einsum("...tn,...sn->...ts", x, y, precision=_EXACT)


def _times(x: Array, y: Array) -> Array:
    """x y."""
    return jnp.einsum("...ts,...sn->...tn", x, y, precision=_EXACT)


def _sum(x: Array, y: Array) -> Array:
    """x^T y: the sum over time of outer products."""
    return jnp.einsum("...tv,...tk->...vk", x, y, precision=_EXACT)
