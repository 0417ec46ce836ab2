"""AdamW over flat arrays, compiled by numba; `host_adamw` calls these from its own threads.

Each kernel is one loop over one stretch of memory: every array is read and written once, so that
memory is the limit. The loop runs without Python's lock and without numba's own threads, whose
default layer must not be entered by two callers at once.

The order of the operations is optax's and nothing is contracted or reassociated (no `fastmath`);
`error_model="numpy"` lets a division give inf or NaN instead of raising, without which no compiler
may vectorise the loop.
"""

from typing import Any

import numpy as np
from numba import njit
from numba.core import types
from numba.extending import overload

_compiled: Any = njit(nogil=True, cache=True, error_model="numpy")
_QUIET_NAN = np.uint32(0x7FC00000)
_HALF = np.uint32(0x8000)
_LOW = np.uint32(0xFFFF)
_16 = np.uint32(16)


def _number(x):
    """A gradient in float32: it is one, or it is the bits of a bfloat16."""
    raise NotImplementedError("compiled code only")


@overload(_number, inline="always")
def _number_of(x):
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << _16).view(np.float32)
    return lambda x: x


@_compiled
def _moved(w, x, m, v, i, b1, one_b1, b2, one_b2, c1, c2, eps, decay, minus_lr):
    """The new weight; the moments at `i` are updated in place."""
    m_i = one_b1 * x + b1 * m[i]
    v_i = one_b2 * (x * x) + b2 * v[i]
    m[i] = m_i
    v[i] = v_i
    step = (m_i / c1) / (np.sqrt(v_i / c2) + eps) + decay * w
    return w + minus_lr * step


@_compiled
def _join(high, low):
    return np.uint32((np.uint32(high) << _16) + np.uint32(np.int32(low))).view(np.float32)


@_compiled
def _split(w, high, low, i):
    """As `quant.split_master.split`: the nearest bfloat16, ties away from zero, one NaN."""
    word = np.float32(w).view(np.uint32)
    if w != w:
        word = _QUIET_NAN
    high[i] = np.uint16((word + _HALF) >> _16)
    low[i] = np.int16(word & _LOW)


@_compiled
def update_split(high, low, m, v, g, scale, b1, one_b1, b2, one_b2, c1, c2, eps, decay, minus_lr):
    """Weights as uint16 (the bits of bfloat16) and int16; 26 bytes per number with a bfloat16 g."""
    for i in range(high.size):
        w, x = _join(high[i], low[i]), _number(g[i]) * scale
        w = _moved(w, x, m, v, i, b1, one_b1, b2, one_b2, c1, c2, eps, decay, minus_lr)
        _split(w, high, low, i)


@_compiled
def update_plain(weights, m, v, g, scale, b1, one_b1, b2, one_b2, c1, c2, eps, decay, minus_lr):
    """Weights in float32; 28 bytes per number with a float32 g."""
    for i in range(weights.size):
        w, x = weights[i], _number(g[i]) * scale
        weights[i] = _moved(w, x, m, v, i, b1, one_b1, b2, one_b2, c1, c2, eps, decay, minus_lr)


@_compiled
def split_into(weights, high, low):
    for i in range(weights.size):
        _split(weights[i], high, low, i)


@_compiled
def join_into(high, low, weights):
    for i in range(high.size):
        weights[i] = _join(high[i], low[i])
