"""AdamW on weights that live in host memory: in place, exact, at the speed of the memory.

Weights are either float32, or a split master: bfloat16 high halves, which the device computes with,
and int16 low halves beside them (see `quant.split_master`), together the exact float32. The
arithmetic is that of `optax.adamw` in float32, operation by operation:

    g = scale * gradient                                   (clipping, a mean over micro-batches)
    m = (1 - b1) g + b1 m          v = (1 - b2) g^2 + b2 v
    w = w - lr (m / (1 - b1^(t+1)) / (sqrt(v / (1 - b2^(t+1))) + eps) + weight_decay w)

Bytes of memory traffic per number with a bfloat16 gradient: high 2, low 2, m 4, v 4 read and
written, gradient 2 read: 26. The work is handed out as chunks for threads (`jobs`); the result does
not depend on the chunks or the threads in any bit.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from springroll.errors import InputError
from springroll.program import pip_install
from springroll.ranges import SHARE, check_rate, check_scalar
from springroll.trees import PyTree

CHUNK = 1 << 19  # numbers: 13 MB of traffic, half a millisecond: both cores share, few calls


class Moments(NamedTuple):
    """What AdamW keeps beside one leaf: low int16 (None beside float32 weights), m, v float32."""

    low: np.ndarray | None
    m: np.ndarray
    v: np.ndarray


@dataclass(frozen=True)
class AdamW:
    """The settings of `optax.adamw`; `lr` may be a schedule, a function of the step (0 first)."""

    lr: float | Callable[[int], float | jax.Array | np.generic]
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        check_rate("lr", self.lr)
        for name in ("b1", "b2"):
            check_scalar(name, getattr(self, name), SHARE)
        for name in ("eps", "weight_decay"):
            check_scalar(name, getattr(self, name))

    def update(
        self,
        weights: np.ndarray,
        state: Moments,
        grads: np.ndarray,
        *,
        step: int,
        scale: float = 1.0,
        decay: bool = True,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        """Update the numbers [start:stop] of a leaf, in place.

        Args:
            weights: bfloat16 with `state.low`, or float32 without; any shape, contiguous.
            state: `low`, `m` and `v`, of the same shape.
            grads: bfloat16 or float32, of the same shape; only read.
            step: how many updates were made before, 0 at first; `optax` counts alike.
            scale: every gradient is multiplied by it first, in float32.
            decay: whether this leaf decays.

        Raises:
            InputError: another dtype, another shape, memory that is not contiguous or not writable.
        """
        for call in self._calls(weights, state, grads, step, scale, decay, start, stop, None):
            call()

    def jobs(
        self,
        weights: PyTree,
        state: dict[str, PyTree],
        grads: PyTree,
        *,
        step: int,
        scale: float = 1.0,
        decay: bool | PyTree = True,
        chunk: int = CHUNK,
    ) -> Iterator[Callable[[], None]]:
        """The update of a tree of leaves, as calls that may run in any order and in any thread.

        Args:
            weights: tree of arrays, views of the memory that is to change.
            state: {"low", "m", "v"}: trees like `weights` (see `zeros`); "low" may be left out, and
                has None beside float32 leaves.
            decay: one bool, or a tree of them.
            chunk: numbers per call.

        Raises:
            InputError: as `update`, while the calls are made: before anything is written.
        """
        leaves, tree = jax.tree.flatten(weights)
        low = tree.flatten_up_to(state["low"]) if "low" in state else [None] * len(leaves)
        m, v, g = (tree.flatten_up_to(x) for x in (state["m"], state["v"], grads))
        decays = [decay] * len(leaves) if isinstance(decay, bool) else tree.flatten_up_to(decay)
        calls = [
            self._calls(w, Moments(*kept), g_leaf, step, scale, d, 0, None, chunk)
            for w, *kept, g_leaf, d in zip(leaves, low, m, v, g, decays, strict=True)
        ]
        return (call for leaf in calls for call in leaf)

    def constants(self, step: int, decay: bool) -> tuple[np.float32, ...]:
        """What the kernels multiply with, rounded to float32 where optax rounds it."""
        lr = self.lr(step) if callable(self.lr) else self.lr
        b1, b2 = np.float32(self.b1), np.float32(self.b2)
        return (
            *(b1, np.float32(1 - self.b1), b2, np.float32(1 - self.b2)),
            *(_correction(b1, step + 1), _correction(b2, step + 1)),
            np.float32(self.eps),
            np.float32(self.weight_decay if decay else 0.0),
            np.float32(-np.float32(lr)),
        )

    def _calls(
        self,
        weights: np.ndarray,
        state: Moments,
        grads: np.ndarray,
        step: int,
        scale: float,
        decay: bool,
        start: int,
        stop: int | None,
        chunk: int | None,
    ) -> list[Callable[[], None]]:
        if weights.dtype == jnp.bfloat16:
            if state.low is None:
                raise InputError("AdamW on bfloat16 weights needs their low halves; see `zeros`")
            written, kernel = {"weights": weights, "low": state.low}, kernels().update_split
        elif weights.dtype == np.float32:
            written, kernel = {"weights": weights}, kernels().update_plain
        else:
            raise InputError(f"AdamW on weights of {weights.dtype}; expected bfloat16 or float32")
        if grads.dtype not in (jnp.bfloat16, np.float32):
            raise InputError(f"gradients of {grads.dtype}; expected bfloat16 or float32")
        written |= {"m": state.m, "v": state.v}
        arrays = [_flat(name, array, weights.shape) for name, array in written.items()]
        arrays.append(_flat("gradients", grads, weights.shape, write=False))
        constants = (np.float32(scale), *self.constants(step, decay))
        stop = weights.size if stop is None else stop
        chunk = chunk or max(stop - start, 1)
        return [
            functools.partial(kernel, *(a[i : min(i + chunk, stop)] for a in arrays), *constants)
            for i in range(start, stop, chunk)
        ]


def zeros(weights: PyTree) -> dict[str, PyTree]:
    """A new state, {"low", "m", "v"}: trees of NumPy arrays like `weights`, all zero.

    "low" is int16 beside bfloat16 leaves and None beside float32 ones. Ten bytes per number, or
    eight beside float32; the pages are taken when they are first written.
    """
    kept = lambda dtype: jax.tree.map(lambda w: np.zeros(w.shape, dtype), weights)
    low = lambda w: np.zeros(w.shape, np.int16) if w.dtype == jnp.bfloat16 else None
    return {
        "low": jax.tree.map(low, weights),
        "m": kept(np.float32),
        "v": kept(np.float32),
    }


def split(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`quant.split_master.split` on the host: float32 -> (bfloat16, int16), the same bits."""
    high, low = np.empty(weights.shape, jnp.bfloat16), np.empty(weights.shape, np.int16)
    shape = weights.shape
    kernels().split_into(
        _flat("weights", weights, shape, write=False),
        _flat("high", high, shape),
        _flat("low", low, shape),
    )
    return high, low


def join(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """The float32 weights that were split."""
    whole, shape = np.empty(high.shape, np.float32), high.shape
    kernels().join_into(
        _flat("high", high, shape, write=False),
        _flat("low", low, shape, write=False),
        _flat("weights", whole, shape),
    )
    return whole


@functools.cache
def kernels() -> ModuleType:
    """The compiled loops; numba is imported here, for it takes a second and is an extra."""
    try:
        return importlib.import_module("springroll.stream.adamw_kernels")
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        raise InputError(
            f"AdamW on the host needs numba, which is not installed; run {pip_install('stream')}"
        ) from None


def _correction(decay: np.float32, count: int) -> np.float32:
    """1 - decay^count, with the power rounded to float32 as XLA has it: at the first steps its
    rounding is a large part of the difference."""
    return np.float32(1) - np.float32(float(decay) ** count)


def _flat(name: str, array: np.ndarray, shape: tuple[int, ...], write: bool = True) -> np.ndarray:
    """A flat view of the same memory, of a type that numba knows."""
    if array.shape != shape:
        raise InputError(f"{name} has the shape {array.shape}, the weights have {shape}")
    if not array.flags.c_contiguous or (write and not array.flags.writeable):
        raise InputError(f"{name} {shape} is not contiguous, writable memory; give a view of it")
    flat = array.reshape(-1)
    if flat.dtype == jnp.bfloat16:
        flat = flat.view(np.uint16)
    if not write:
        flat = flat.view()
        flat.flags.writeable = False  # always: numba compiles for each kind of array
    return flat
