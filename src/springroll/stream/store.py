"""Where the bundles of a model live between their passages through the device.

A bundle is a dictionary of fields ("weights", "state"), each a tree of arrays. Host memory is
`pinned_host` arrays of JAX: the device copies them at the full speed of the link, and as nothing
else moves them, host code may write them in place through NumPy views. Where memory cannot be
page-locked they are plain NumPy arrays, three to five times slower to copy from a GPU. Bundles may
also be placed in the memory of the device, and are then never sent.

Layers may also stay in files that are only read (`MappedStore`): the system reads pages when a
layer is sent and may drop them when memory is short, so that a model of any size is evolved from a
disk. Steps are not written back; see `springroll.stream.streamed_population`.
"""

import ctypes
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np

from springroll.models.decoder import Decoder, stages
from springroll.models.hf.files import family_of, open_hf
from springroll.models.hf.load import read_layer, read_rest
from springroll.stream.link import Link
from springroll.trees import Params, PyTree

Fields: TypeAlias = dict[str, PyTree]  # field -> tree of arrays


class Store(Protocol):
    """What streaming reads from. A store of mapped files needs no more than this."""

    @property
    def bundles(self) -> int:
        """How many there are."""
        ...

    def arrays(self, bundle: int, fields: Sequence[str]) -> Fields:
        """What is to be sent; waits for what was promised."""
        ...

    def resident(self, bundle: int) -> bool:
        """Whether `arrays` are on the device already."""
        ...


class HostStore:
    """Bundles in memory, to be read and written.

    Bundles whose indices are in `on_device` live in the memory of the device.
    """

    def __init__(self, link: Link, on_device: Sequence[int] = ()):
        self._link = link
        self._on_device = frozenset(on_device)
        self._fields: list[Fields] = []
        self._promised: dict[int, Future[None]] = {}
        self._locked = link.on_host is not None

    @property
    def bundles(self) -> int:
        return len(self._fields)

    def append(self, fields: Mapping[str, PyTree]) -> None:
        """One more bundle, copied from trees of arrays."""
        self._fields.append(
            {name: self._placed(self.bundles, tree) for name, tree in fields.items()}
        )

    def arrays(self, bundle: int, fields: Sequence[str]) -> Fields:
        self.wait(bundle)
        own = self._fields[bundle]
        return dict(own) if self.resident(bundle) else {name: own[name] for name in fields}

    def resident(self, bundle: int) -> bool:
        return bundle in self._on_device

    def view(self, bundle: int, field: str) -> PyTree:
        """The same memory as writable NumPy arrays; only for bundles on the host.

        Waits for nothing: who writes is who promised.
        """
        return jax.tree.map(writable, self._fields[bundle][field])

    def tree(self, bundle: int, field: str) -> PyTree:
        """The arrays of a field, to look at their structure and shapes."""
        return self._fields[bundle][field]

    def leaf(self, bundle: int, field: str, index: int) -> np.ndarray:
        """One array of a field, as NumPy; not to be written."""
        x = jax.tree.leaves(self._fields[bundle][field])[index]
        return np.asarray(x) if bundle in self._on_device else writable(x)

    def write(self, bundle: int, field: str, index: int, values: np.ndarray) -> None:
        """Other values for one array of a field, in the type that it has."""
        leaves, tree = jax.tree.flatten(self._fields[bundle][field])
        if bundle in self._on_device:
            same = np.asarray(values, leaves[index].dtype)
            leaves[index] = jax.device_put(same, self._link.on_device)
            self._fields[bundle][field] = tree.unflatten(leaves)
        else:
            np.copyto(writable(leaves[index]), values, casting="unsafe")

    def replace(self, bundle: int, fields: Mapping[str, PyTree]) -> None:
        """Take these arrays, on the host (for resident bundles: on the device), in place of the
        old ones."""
        self._fields[bundle] = self._fields[bundle] | dict(fields)

    def promise(self, bundle: int, written: Future[None]) -> None:
        """The bundle is being written and must not be read before `written` is done."""
        self._promised[bundle] = written

    def wait(self, bundle: int) -> None:
        """Until nothing is promised; raises what went wrong while writing."""
        written = self._promised.get(bundle)
        if written is not None:
            written.result()
            self._promised.pop(bundle, None)

    def settle(self) -> None:
        """Wait for every bundle."""
        for bundle in list(self._promised):
            self.wait(bundle)

    def _placed(self, bundle: int, tree: PyTree) -> PyTree:
        if bundle in self._on_device:
            return jax.device_put(tree, self._link.on_device)
        # A copy of our own: on a CPU, JAX takes NumPy memory over as it is.
        tree = jax.tree.map(lambda x: np.array(x, order="C"), tree)
        if self._locked and self._link.on_host is not None:
            try:
                return jax.block_until_ready(jax.device_put(tree, self._link.on_host))
            except jax.errors.JaxRuntimeError as error:
                self._locked = False
                warnings.warn(
                    f"host memory could not be page-locked ({str(error).splitlines()[0]}); going "
                    "on with pageable memory, which a GPU copies several times slower. Raise "
                    "`ulimit -l` or XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB",
                    stacklevel=2,
                )
        return tree


def writable(x: np.ndarray | jax.Array) -> np.ndarray:
    """NumPy on the memory of an array that is on the host, which lives as long as the result."""
    if isinstance(x, np.ndarray):
        return x
    x.block_until_ready()
    size = x.size * x.dtype.itemsize
    memory: Any = (ctypes.c_byte * size).from_address(x.unsafe_buffer_pointer())
    memory.owner = x
    return np.frombuffer(memory, x.dtype).reshape(x.shape)


class MappedStore:
    """A model whose layers are views of memory-mapped files.

    Args:
        rest: parameters outside the layers.
        layer: index -> the weights of that layer, arrays without a layer axis.
        layers: how many.
        stack: where in the parameters layers are.
    """

    def __init__(
        self, rest: Params, layer: Callable[[int], Params], layers: int, stack: str = "layers"
    ):
        self._rest, self._layer, self._layers, self._stack = rest, layer, layers, stack

    @property
    def bundles(self) -> int:
        return self._layers

    @property
    def params(self) -> Params:
        """The rest as it is, and the stacked layers as shapes."""
        stacked = lambda x: jax.ShapeDtypeStruct((self._layers, *x.shape), x.dtype)
        return self._rest | {self._stack: jax.tree.map(stacked, self._layer(0))}

    def arrays(self, bundle: int, fields: Sequence[str]) -> Fields:
        """Weights as they lie in the file; a layer has no other state."""
        own: Fields = {"weights": self._layer(bundle), "state": {}}
        return {name: own[name] for name in fields}

    def resident(self, bundle: int) -> bool:
        return False


def mapped_model(folder: str | Path) -> tuple[Decoder, MappedStore]:
    """The model of a Hugging Face folder, its layers left in the files.

    Raises:
        InputError: what is wrong with the folder, before any weight is read.
    """
    checkpoint = open_hf(folder)
    model = stages(family_of(checkpoint.config).model(checkpoint.config))
    layer = lambda index: read_layer(checkpoint, index)
    store = MappedStore(read_rest(checkpoint), layer, checkpoint.config.layers)
    return model, store
