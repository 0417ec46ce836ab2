"""Bundles on a disk: read ahead of their use, written behind it, in a file that ends with the run.

The file has no name in its folder, so that no other run meets it and nothing of it is left, however
the process ends: it is working memory, and a run goes on from its checkpoint. All of its space is
taken when it is made; a disk that is too small is found before the first step.

What a bundle needs of a field is one stretch of the file and one buffer of host memory. Reading and
writing go past the page cache where the system can (O_DIRECT), so that host memory holds the
buffers alone. A `Disk` keeps within its memory: of the buffers that nobody has said to need again,
those that were used longest ago make room, and who comes when there are none waits until others are
written. So a step reads everything as often as the plan counts, and no more.
"""

import os
import shutil
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np

from springroll.atomic import os_line
from springroll.errors import InputError, as_path
from springroll.memory import spelt
from springroll.models.drawn import stretch
from springroll.ranges import Range
from springroll.stream.bundles import Index
from springroll.stream.homes import Fields, is_zero
from springroll.stream.unnamed_file import (
    SECTOR,
    PageBuffers,
    opened,
    read_whole,
    take,
    write_whole,
)
from springroll.trees import PyTree, tree_bytes
from springroll.typed_call import typed_call

BYTES = Range(at_least=0, below=2**63)
LINE = 64  # of a cache; JAX on a CPU takes arrays that begin with one over as they are


class Traffic(NamedTuple):
    """Bytes that were read and written so far, beside those that filled the file."""

    read: int = 0
    written: int = 0


@dataclass(frozen=True, eq=False)
class Region:
    """A stretch of the file that holds the arrays of a tree."""

    begin: int
    size: int
    tree: PyTree  # of jax.ShapeDtypeStruct
    places: tuple[int, ...]  # of its leaves, from the beginning

    def arrays(self, buffer: np.ndarray) -> PyTree:
        """The tree, of views of the memory that the stretch was read into."""
        leaves, tree = jax.tree.flatten(self.tree)
        return tree.unflatten(
            [
                buffer[place : place + tree_bytes(leaf)].view(leaf.dtype).reshape(leaf.shape)
                for place, leaf in zip(self.places, leaves, strict=True)
            ]
        )


@dataclass
class _Loaded:
    """A region in memory.

    users: those who write to it, or write it to the file.
    """

    buffer: Future[np.ndarray]
    users: int = 0


class Disk:
    """A file that holds regions, and those of them that are in memory.

    Args:
        folder: where the file is made; the folder is made if it is missing.
        memory: bytes of host memory that regions may take; a single bundle may take more.

    Raises:
        InputError: no file can be made there.
    """

    @typed_call
    def __init__(self, folder: str | Path, memory: Annotated[int, BYTES]):
        self.folder, self._memory = as_path(folder), memory
        self._file, self._straight = opened(self.folder)
        for descriptor in (self._file, self._straight):
            weakref.finalize(self, os.close, descriptor)
        self._size, self._buffers = 0, PageBuffers(memory)
        self.traffic = Traffic()
        self._loaded: OrderedDict[Region, _Loaded] = OrderedDict()  # those used last are last
        self._promised: Counter[Region] = Counter()  # uses to come
        self._changed = threading.Condition()
        self._failure: InputError | None = None
        self._reading = ThreadPoolExecutor(2, "springroll-read")
        self._writing = ThreadPoolExecutor(1, "springroll-write")  # in order

    def reserve(self, tree: PyTree) -> Region:
        """A region for arrays like these, zero at first.

        Raises:
            InputError: the disk is full.
        """
        structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)
        places, end = [], 0
        for leaf in jax.tree.leaves(structs):
            places.append(end)
            end += -(-tree_bytes(leaf) // LINE) * LINE
        region = Region(self._size, -(-end // SECTOR) * SECTOR, structs, tuple(places))
        if region.size:
            try:
                take(self._file, region.begin, region.size)
            except OSError as error:
                raise InputError(
                    f"weights and optimizer state do not fit on the disk of {self.folder} "
                    f"({os_line(error)}) after {spelt(self._size)}; make room, or name another "
                    "--disk"
                ) from None
        self._size += region.size
        return region

    def soon(self, region: Region, uses: int = 1) -> None:
        """It will be loaded or held so often; begin to read, if there is room."""
        with self._changed:
            self._promised[region] = uses
            if region not in self._loaded and self._room(region.size):
                self._begin(region)

    def load(self, region: Region) -> Future[np.ndarray]:
        """What the region holds, in memory."""
        with self._changed:
            self._come(region)
            fits = lambda: region in self._loaded or self._room(region.size)
            self._changed.wait_for(lambda: self._failure or fits() or not self._used())
            self._check()
            if region not in self._loaded:
                self._room(region.size, force=True)
                self._begin(region)
            self._loaded.move_to_end(region)
            return self._loaded[region].buffer

    def hold(self, regions: Sequence[Region]) -> list[np.ndarray]:
        """The same, to be written to until `changed`."""
        with self._changed:
            self._wait_for_room(sum(region.size for region in regions))
            absent = [region for region in regions if region not in self._loaded]
            for region in regions:
                self._come(region)
                if region not in absent:
                    self._loaded[region].users += 1
            self._room(sum(region.size for region in absent), force=True)
            for region in absent:
                self._begin(region)
                self._loaded[region].users += 1
        return [self._loaded[region].buffer.result() for region in regions]

    def changed(self, region: Region) -> None:
        """What was held is to be written to the file."""
        self._writing.submit(self._write, region, self._loaded[region])

    def replace(self, region: Region, arrays: PyTree) -> None:
        """Other arrays for a region; returns while they are written to the file."""
        with self._changed:
            self._wait_for_room(region.size)
            self._loaded.pop(region, None)
            self._room(region.size, force=True)
            buffer = self._buffers.take(region.size)
            for own, new in zip(
                jax.tree.leaves(region.arrays(buffer)), jax.tree.leaves(arrays), strict=True
            ):
                np.copyto(own, np.asarray(new))
            done: Future[np.ndarray] = Future()
            done.set_result(buffer)
            self._loaded[region] = _Loaded(done, users=1)
            self._loaded.move_to_end(region)
        self.changed(region)

    def leaf(self, region: Region, index: int) -> np.ndarray:
        """One array of a region, which need not be in memory."""
        with self._changed:
            loaded = self._loaded.get(region)
        if loaded is not None:
            return jax.tree.leaves(region.arrays(loaded.buffer.result()))[index]
        struct = jax.tree.leaves(region.tree)[index]
        buffer = np.empty(tree_bytes(struct), np.uint8)
        self._read_into(buffer, region.begin + region.places[index], self._file)
        return buffer.view(struct.dtype).reshape(struct.shape)

    def write(self, region: Region, index: int, values: np.ndarray, at: Index = ()) -> None:
        """leaf[at] = values, in the file: a region that is not in use."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or not self._users(region))
            self._check()
            self._loaded.pop(region, None)
        struct = jax.tree.leaves(region.tree)[index]
        start, _ = stretch(struct.shape, at)
        raw = np.ascontiguousarray(values, struct.dtype).reshape(-1).view(np.uint8)
        place = region.begin + region.places[index] + start * struct.dtype.itemsize
        try:
            write_whole(self._file, raw, place)
        except OSError as error:
            raise self._failed("write", error) from None

    def _come(self, region: Region) -> None:
        """One of the uses that were promised is here."""
        self._promised[region] = max(0, self._promised[region] - 1)

    def _begin(self, region: Region) -> None:
        self._loaded[region] = _Loaded(self._reading.submit(self._read, region))

    def _read(self, region: Region) -> np.ndarray:
        buffer = self._buffers.take(region.size)
        try:
            self._read_into(buffer, region.begin, self._straight)
        except InputError as error:
            self._stop(error)
            raise
        with self._changed:
            self.traffic = self.traffic._replace(read=self.traffic.read + region.size)
        return buffer

    def _read_into(self, buffer: np.ndarray, place: int, file: int) -> None:
        try:
            read_whole(file, buffer, place)
        except OSError as error:
            raise self._failed("read", error) from None

    def _write(self, region: Region, loaded: _Loaded) -> None:
        try:
            write_whole(self._straight, loaded.buffer.result(), region.begin)
        except OSError as error:
            self._stop(self._failed("write", error))
            return  # it stays in memory
        with self._changed:
            loaded.users -= 1
            self.traffic = self.traffic._replace(written=self.traffic.written + region.size)
            self._changed.notify_all()

    def _stop(self, failure: InputError) -> None:
        """Let everybody fail who waits, or comes later."""
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    def _failed(self, what: str, error: OSError) -> InputError:
        return InputError(
            f"cannot {what} the store in {self.folder}: {os_line(error)}; mend that and go on from "
            "the newest checkpoint with --resume"
        )

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _users(self, region: Region) -> int:
        loaded = self._loaded.get(region)
        return 0 if loaded is None else loaded.users

    def _used(self) -> int:
        """Bytes that are written to, or to the file."""
        return sum(region.size for region, loaded in self._loaded.items() if loaded.users)

    def _wait_for_room(self, size: int) -> None:
        """Until so many bytes fit beside those in use, or nothing else is."""
        fits = lambda: not self._used() or self._used() + size <= self._memory
        self._changed.wait_for(lambda: self._failure or fits())
        self._check()

    def _room(self, size: int, force: bool = False) -> bool:
        """Drop regions that nobody uses or has promised to use, the oldest first, if so many bytes
        fit then; whether they do. With `force` those of all promises go as well, the newest first,
        and it need not suffice."""
        lacking = sum(region.size for region in self._loaded) + size - self._memory
        idle = [r for r, each in self._loaded.items() if not each.users and each.buffer.done()]
        goes = [region for region in idle if not self._promised[region]]
        if force:
            goes += reversed([region for region in idle if self._promised[region]])
        elif lacking > sum(region.size for region in goes):
            return False
        for region in goes:
            if lacking <= 0:
                break
            del self._loaded[region]
            lacking -= region.size
        return lacking <= 0


class DiskHome:
    """A bundle on a disk; see `homes.Home`."""

    def __init__(self, disk: Disk, fields: Mapping[str, PyTree]):
        self._disk = disk
        self._regions = {name: disk.reserve(tree) for name, tree in fields.items()}
        self._held: tuple[Region, ...] = ()
        for name, tree in fields.items():
            for index, x in enumerate(jax.tree.leaves(tree)):
                x = np.asarray(x)
                if any(x.strides) or not is_zero(x):
                    self.write(name, index, x, ())

    def soon(self, fields: Sequence[str]) -> None:
        for name, uses in Counter(fields).items():
            self._disk.soon(self._regions[name], uses)

    def arrays(self, fields: Sequence[str]) -> Fields:
        coming = {name: self._disk.load(self._regions[name]) for name in fields}
        return {name: self._regions[name].arrays(x.result()) for name, x in coming.items()}

    def views(self, fields: Sequence[str]) -> Fields:
        self._held = tuple(self._regions[name] for name in fields)
        buffers = self._disk.hold(self._held)
        each = zip(fields, self._held, buffers, strict=True)
        return {name: region.arrays(buffer) for name, region, buffer in each}

    def changed(self) -> None:
        for region in self._held:
            self._disk.changed(region)
        self._held = ()

    def structs(self, field: str) -> PyTree:
        return self._regions[field].tree

    def leaf(self, field: str, index: int) -> np.ndarray:
        return self._disk.leaf(self._regions[field], index)

    def write(self, field: str, index: int, values: np.ndarray, at: Index) -> None:
        self._disk.write(self._regions[field], index, values, at)

    def replace(self, fields: Mapping[str, PyTree]) -> None:
        for name, tree in fields.items():
            self._disk.replace(self._regions[name], tree)


def free_on_disk(folder: str | Path) -> int:
    """Bytes that are free where a folder is or would be made.

    Raises:
        InputError: it is no folder, or cannot be looked at.
    """
    path = as_path(folder, "disk").absolute()
    try:
        there = next(each for each in (path, *path.parents) if each.exists())
        if not there.is_dir():
            raise InputError(f"disk is {folder}; {there} is a file, expected a folder")
        return shutil.disk_usage(there).free
    except OSError as error:
        raise InputError(f"disk cannot be {os_line(error, folder)}; name another folder") from None
