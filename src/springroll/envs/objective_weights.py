"""Weights on their way to a worker and back: nested containers of arrays as a shape and bytes.

Containers are dicts with string keys, lists and tuples; leaves are float32 arrays, which lie one
behind the other, dicts in the order of their sorted keys, as JAX has it.
"""

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from springroll.errors import InputError

Weights: TypeAlias = Any  # nested containers of arrays
Layout: TypeAlias = (
    Any  # JSON: ["dict", {key: layout}], ["list", [layouts]], ["tuple", ...], ["array", shape]
)


def packed(weights: Weights, of: str) -> tuple[Layout, bytes]:
    """The layout of weights and their bytes.

    Args:
        of: what returned them, for messages: "initial_weights".

    Raises:
        InputError: a container is none of the three; a leaf is no float32 array or not finite.
    """
    arrays: list[np.ndarray] = []
    layout = _layout(weights, "", of, arrays)
    if not arrays:
        raise InputError(f"{of} returned no weights; expected a dict of float32 arrays")
    return layout, b"".join(array.tobytes() for array in arrays)


def unpacked(layout: Layout, payload: bytes | bytearray) -> Weights:
    """The weights again, each array a view of the payload: writable where that is."""
    numbers = np.frombuffer(payload, np.float32)
    starts = _Cuts()
    weights = _built(layout, numbers, starts)
    if starts.at != numbers.size:
        raise ValueError(f"{numbers.size} numbers for a layout of {starts.at}")
    return weights


def shapes(layout: Layout) -> Iterator[tuple[int, ...]]:
    """Shapes of all arrays in order."""
    kind, inside = layout
    if kind == "array":
        yield tuple(inside)
        return
    for each in inside.values() if kind == "dict" else inside:
        yield from shapes(each)


class _Cuts:
    at = 0


def _built(layout: Layout, numbers: np.ndarray, cuts: _Cuts) -> Weights:
    kind, inside = layout
    if kind == "dict":
        return {key: _built(each, numbers, cuts) for key, each in inside.items()}
    if kind == "array":
        first, cuts.at = cuts.at, cuts.at + math.prod(inside)
        return numbers[first : cuts.at].reshape(inside)
    parts = [_built(each, numbers, cuts) for each in inside]
    return tuple(parts) if kind == "tuple" else parts


def _layout(weights: Weights, path: str, of: str, arrays: list[np.ndarray]) -> Layout:
    inner = lambda key, each: _layout(each, f"{path}/{key}" if path else str(key), of, arrays)
    if type(weights) is dict:
        if odd := [key for key in weights if not isinstance(key, str)]:
            raise InputError(f"{of} has the key {odd[0]!r}; expected names, which are strings")
        return ["dict", {key: inner(key, weights[key]) for key in sorted(weights)}]
    if type(weights) in (list, tuple):
        return [type(weights).__name__, [inner(i, each) for i, each in enumerate(weights)]]
    arrays.append(_array(weights, path, of))
    return ["array", list(arrays[-1].shape)]


def _array(weights: Weights, path: str, of: str) -> np.ndarray:
    name = f"{of}: {path or 'the weight'}"
    if not hasattr(weights, "dtype"):
        raise InputError(
            f"{name} is of type {type(weights).__name__}; expected a float32 array (in dicts, "
            "lists or tuples)"
        )
    array = np.asarray(weights)
    if array.dtype != np.float32:
        raise InputError(f"{name} is {array.dtype}; expected float32: give .astype('float32')")
    if not array.size or not np.isfinite(array).all():
        what = "is empty" if not array.size else "holds NaN or infinity"
        raise InputError(f"{name} {what}; expected finite numbers")
    return array
