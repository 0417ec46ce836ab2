"""Where the bundles of a model live between their passages through the device.

A bundle is a dictionary of fields ("weights", "state"), each a tree of arrays. Host memory is
`pinned_host` arrays of JAX: the device copies them at the full speed of the link, and as nothing
else moves them, host code may write them in place through NumPy views. Where memory cannot be
page-locked they are plain NumPy arrays, three to five times slower to copy from a GPU. Bundles may
also be placed in the memory of the device, and are then never sent, or on a disk, and are then
read before they are sent and written after they have changed (`homes`, `disk`).

Layers may also stay in files that are only read (`MappedStore`): the system reads pages when a
layer is sent and may drop them when memory is short, so that a model of any size is evolved from a
disk. Steps are not written back; see `springroll.stream.streamed_population`.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from springroll.errors import InputError
from springroll.models.decoder import Decoder, stages
from springroll.models.hf.files import family_of, open_hf
from springroll.models.hf.load import read_layer, read_rest
from springroll.stream.bundles import Index
from springroll.stream.disk import Disk, DiskHome
from springroll.stream.homes import DeviceHome, Fields, Home, HostHome, Locking
from springroll.stream.link import Link
from springroll.trees import Params, PyTree


class Store(Protocol):
    """What streaming reads from. A store of mapped files needs no more than this."""

    @property
    def bundles(self) -> int:
        """How many there are."""
        ...

    def soon(self, bundle: int, fields: Sequence[str]) -> None:
        """These will be asked for, as often as they are named; begin to read them."""
        ...

    def arrays(self, bundle: int, fields: Sequence[str]) -> Fields:
        """What is to be sent; waits for what was promised."""
        ...

    def resident(self, bundle: int) -> bool:
        """Whether `arrays` are on the device already."""
        ...


class HostStore:
    """Bundles in memory, or on a disk, to be read and written.

    Args:
        link: to the device.
        on_device: bundles that live in the memory of the device.
        on_disk: bundles that live in a file of `disk`.
    """

    def __init__(
        self,
        link: Link,
        on_device: Sequence[int] = (),
        disk: Disk | None = None,
        on_disk: Sequence[int] = (),
    ):
        if disk is None and on_disk:
            raise InputError(f"on_disk names bundle {min(on_disk)}; give disk, where it is to be")
        both = sorted({*on_device} & {*on_disk})
        if both:
            raise InputError(
                f"bundle {both[0]} is in on_device and in on_disk; leave it out of one"
            )
        self._link, self.disk = link, disk
        self._on_device, self._on_disk = frozenset(on_device), frozenset(on_disk)
        self._homes: list[Home] = []
        self._promised: dict[int, Future[None]] = {}
        self._locking = Locking()

    @property
    def bundles(self) -> int:
        return len(self._homes)

    def append(self, fields: Mapping[str, PyTree]) -> None:
        """One more bundle, copied from trees of arrays."""
        if self.bundles in self._on_device:
            home: Home = DeviceHome(self._link, fields)
        elif self.disk is not None and self.bundles in self._on_disk:
            home = DiskHome(self.disk, fields)
        else:
            home = HostHome(self._link, fields, self._locking)
        self._homes.append(home)

    def soon(self, bundle: int, fields: Sequence[str]) -> None:
        written = self._promised.get(bundle)
        if written is None or written.done():
            self._homes[bundle].soon(fields)

    def arrays(self, bundle: int, fields: Sequence[str]) -> Fields:
        self.wait(bundle)
        return self._homes[bundle].arrays(fields)

    def resident(self, bundle: int) -> bool:
        return bundle in self._on_device

    def views(self, bundle: int, fields: Sequence[str]) -> Fields:
        """The same memory as writable NumPy arrays; only for bundles that are not on the device.

        Waits for nothing that was promised: who writes is who promised, and says by `changed` that
        it has written.
        """
        return self._homes[bundle].views(fields)

    def changed(self, bundle: int) -> None:
        """What `views` of this bundle gave was written."""
        self._homes[bundle].changed()

    def tree(self, bundle: int, field: str) -> PyTree:
        """The arrays of a field, or what stands for them, to look at structure, shapes, types."""
        return self._homes[bundle].structs(field)

    def struct(self, bundle: int, field: str, index: int) -> Any:
        """One of them."""
        return jax.tree.leaves(self.tree(bundle, field))[index]

    def leaf(self, bundle: int, field: str, index: int) -> np.ndarray:
        """One array of a field, as NumPy; not to be written."""
        return self._homes[bundle].leaf(field, index)

    def write(
        self, bundle: int, field: str, index: int, values: np.ndarray, at: Index = ()
    ) -> None:
        """Other values for one array of a field, or for a part of it, in the type that it has."""
        self._homes[bundle].write(field, index, values, at)

    def replace(self, bundle: int, fields: Mapping[str, PyTree]) -> None:
        """Take these arrays, on the host (for resident bundles: on the device), in place of the
        old ones."""
        self._homes[bundle].replace(fields)

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

    def soon(self, bundle: int, fields: Sequence[str]) -> None:
        """The system reads ahead by itself."""

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
