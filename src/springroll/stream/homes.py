"""The places where a bundle may live: the memory of the device, that of the host, or a disk.

Each holds the fields of one bundle ("weights", "state"), trees of arrays, and answers to the same
calls, so that a store and all who write to it need not know where a bundle is.
"""

import contextlib
import ctypes
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np

from springroll.stream.bundles import Index
from springroll.stream.link import Link
from springroll.trees import PyTree

Fields: TypeAlias = dict[str, PyTree]  # field -> tree of arrays


class Home(Protocol):
    """Where one bundle lives."""

    def soon(self, fields: Sequence[str]) -> None:
        """These will be asked for, as often as they are named; begin to read them."""
        ...

    def arrays(self, fields: Sequence[str]) -> Fields:
        """What is to be sent to the device, or all there is where it is there already."""
        ...

    def views(self, fields: Sequence[str]) -> Fields:
        """The same as writable NumPy arrays on the host. Who wrote them says so by `changed`."""
        ...

    def changed(self) -> None:
        """What was handed out by `views` was written."""
        ...

    def structs(self, field: str) -> PyTree:
        """The tree of a field: its arrays, or only their shapes and types."""
        ...

    def leaf(self, field: str, index: int) -> np.ndarray:
        """One array of a field, as NumPy; not to be written."""
        ...

    def write(self, field: str, index: int, values: np.ndarray, at: Index) -> None:
        """leaf[at] = values, in the type that it has."""
        ...

    def replace(self, fields: Mapping[str, PyTree]) -> None:
        """Other arrays, where `arrays` are, in place of the old ones."""
        ...


class DeviceHome:
    """The memory of the device."""

    def __init__(self, link: Link, fields: Mapping[str, PyTree]):
        self._link = link
        self._fields = {name: jax.device_put(x, link.on_device) for name, x in fields.items()}

    def soon(self, fields: Sequence[str]) -> None:
        pass

    def arrays(self, fields: Sequence[str]) -> Fields:
        return dict(self._fields)

    def views(self, fields: Sequence[str]) -> Fields:
        raise AssertionError("the memory of the device has no views")

    def changed(self) -> None:
        pass

    def structs(self, field: str) -> PyTree:
        return self._fields[field]

    def leaf(self, field: str, index: int) -> np.ndarray:
        return np.asarray(jax.tree.leaves(self._fields[field])[index])

    def write(self, field: str, index: int, values: np.ndarray, at: Index) -> None:
        leaves, tree = jax.tree.flatten(self._fields[field])
        whole = values
        if values.shape != leaves[index].shape or at:
            whole = np.array(leaves[index])
            whole[at] = values
        same = np.asarray(whole, leaves[index].dtype)
        leaves[index] = jax.device_put(same, self._link.on_device)
        self._fields[field] = tree.unflatten(leaves)

    def replace(self, fields: Mapping[str, PyTree]) -> None:
        self._fields |= dict(fields)


class HostHome:
    """Host memory: `pinned_host` arrays of JAX, or plain ones of NumPy."""

    def __init__(self, link: Link, fields: Mapping[str, PyTree], locking: "Locking"):
        put = lambda x: locking.placed(link, owned(x))
        self._fields = {name: jax.tree.map(put, tree) for name, tree in fields.items()}

    def soon(self, fields: Sequence[str]) -> None:
        pass

    def arrays(self, fields: Sequence[str]) -> Fields:
        return {name: self._fields[name] for name in fields}

    def views(self, fields: Sequence[str]) -> Fields:
        return {name: jax.tree.map(writable, self._fields[name]) for name in fields}

    def changed(self) -> None:
        pass

    def structs(self, field: str) -> PyTree:
        return self._fields[field]

    def leaf(self, field: str, index: int) -> np.ndarray:
        return writable(jax.tree.leaves(self._fields[field])[index])

    def write(self, field: str, index: int, values: np.ndarray, at: Index) -> None:
        np.copyto(self.leaf(field, index)[(*at, ...)], values, casting="unsafe")

    def replace(self, fields: Mapping[str, PyTree]) -> None:
        self._fields |= dict(fields)


class Locking:
    """Whether host memory can be page-locked: as long as the system has allowed it."""

    def __init__(self) -> None:
        self._allowed = True

    def placed(self, link: Link, x: np.ndarray) -> Any:
        """The array in page-locked memory, if there is any."""
        if not self._allowed or link.on_host is None:
            return x
        try:
            return jax.block_until_ready(jax.device_put(x, link.on_host))
        except jax.errors.JaxRuntimeError as error:
            self._allowed = False
            warnings.warn(
                f"host memory could not be page-locked ({str(error).splitlines()[0]}); going "
                "on with pageable memory, which a GPU copies several times slower. Raise "
                "`ulimit -l` or XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB",
                stacklevel=2,
            )
            return x


def owned(x: Any) -> np.ndarray:
    """A copy of our own: on a CPU, JAX takes NumPy memory over as it is. One number that is
    repeated (see `repeated`) takes no memory until it is written, if it is zero."""
    if isinstance(x, np.ndarray) and not any(x.strides) and is_zero(x):
        return np.zeros(x.shape, x.dtype)
    return np.array(x, order="C")


def repeated(x: Any) -> np.ndarray:
    """An array whose numbers are all the same, as a view of the first; any other as it is."""
    x = np.asarray(x)
    if x.size < 2 or x.dtype.itemsize not in (1, 2, 4, 8):
        return x
    words = np.ascontiguousarray(x).reshape(-1).view(f"u{x.dtype.itemsize}")
    return np.broadcast_to(x.reshape(-1)[0], x.shape) if (words == words[0]).all() else x


def is_zero(x: np.ndarray) -> bool:
    """Whether the first number of an array has no bit set."""
    return x.size > 0 and not any(x[(0,) * x.ndim].tobytes())


def writable(x: np.ndarray | jax.Array) -> np.ndarray:
    """NumPy on the memory of an array that is on the host, which lives as long as the result."""
    if isinstance(x, np.ndarray):
        return x
    x.block_until_ready()
    size = x.size * x.dtype.itemsize
    memory: Any = (ctypes.c_byte * size).from_address(x.unsafe_buffer_pointer())
    memory.owner = x
    return np.frombuffer(memory, x.dtype).reshape(x.shape)


def on_processor() -> AbstractContextManager[object]:
    """Compute with JAX beside the device, whose queue is long."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # this process was started without
        return contextlib.nullcontext()
