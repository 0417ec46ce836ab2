"""The slices of a stack as arrays of their own that share its memory.

XLA knows no views: a slice of an array is a copy. DLPack, by which libraries hand arrays to one
another, describes an array as an address, a shape and an offset. So a stack is handed out and
taken in again, once per slice, with another offset. JAX keeps the memory as long as a view lives,
and does not write in the place of a stack that has views: it is copied then.

Source: https://dmlc.github.io/dlpack/latest/c_api.html, DLTensor.
"""

import ctypes
from typing import Any

import jax
import jax.core
from jax import Array

ALIGNED = 256  # bytes: what XLA wants an array to begin at, at most
SHARED = ("cpu", "gpu", "cuda", "rocm")  # platforms whose arrays DLPack can describe


class _Tensor(ctypes.Structure):
    """A DLTensor, the first field of what a capsule points to."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint8 * 4),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_INT64 = 8


class _Slice:
    """One slice along the first axis, as DLPack describes it."""

    def __init__(self, stack: Array, index: int) -> None:
        self._stack: Any = stack
        self._index = index

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self._stack.__dlpack_device__()

    def __dlpack__(self, *, stream: int | Any | None = None, **_: Any) -> Any:
        capsule = self._stack.__dlpack__(stream=stream)
        address = _pointer(capsule, b"dltensor")
        assert address is not None
        tensor = _Tensor.from_address(address)
        tensor.byte_offset += self._index * (self._stack.nbytes // self._stack.shape[0])
        tensor.ndim -= 1
        tensor.shape += _INT64
        if tensor.strides:
            tensor.strides += _INT64
        return capsule


def slices(stack: Array) -> list[Array]:
    """The slices of a stack along its first axis, without a copy where they can share its memory.

    They can on a single CPU or GPU, if each begins at a multiple of `ALIGNED` bytes.
    """
    if _can_share(stack):
        shared = [jax.dlpack.from_dlpack(_Slice(stack, i)) for i in range(stack.shape[0])]
        if shared[0].devices() == stack.devices():  # DLPack numbers devices in its own way
            return shared
    return list(_copies(stack))


def _can_share(stack: Array) -> bool:
    if isinstance(stack, jax.core.Tracer) or not isinstance(stack, jax.Array):
        return False
    devices = stack.devices()
    one = len(devices) == 1 and next(iter(devices)).platform in SHARED
    return one and stack.size > 0 and stack.nbytes // stack.shape[0] % ALIGNED == 0


@jax.jit
def _copies(stack: Array) -> tuple[Array, ...]:
    return tuple(stack[i] for i in range(stack.shape[0]))
