"""Checkpoints: a training state, any pytree of arrays, as a safetensors file with a JSON beside it.

`000000042.safetensors` holds the leaves under their paths and follows from the state alone, so two
equal states give two equal files. `000000042.json` holds its SHA-256 and what else the loop wants
to know. Both are written to a temporary name, synced and renamed, the JSON last: a checkpoint
exists once its JSON does.

The file is written and read here rather than by the safetensors package because that one holds a
second copy of the whole state in memory and its NumPy side cannot read bfloat16. Any safetensors
reader opens it.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, TypeAlias, TypeGuard, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from springroll.atomic import JsonObject, replacing
from springroll.bounded import opened
from springroll.errors import InputError
from springroll.run.finite import refuse_not_finite
from springroll.run.sidecar import (
    VERSION_1,
    Damaged,
    files_of_checkpoints,
    read_sidecar,
    saved,
    write_sidecar,
)
from springroll.safetensors_map import DTYPES, read_header
from springroll.trees import PyTree, named_leaves

FORMAT = VERSION_1  # of the tensors, whose bytes are those of earlier versions

Leaf: TypeAlias = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct | bool | int | float
"""What a state is made of; typed keys are arrays."""


@runtime_checkable
class Overwritable(Protocol):
    """A leaf with memory of its own, which is written in place of making another."""

    def slices(self) -> Iterator[np.ndarray]:
        """Its values in pieces, in the order in which they lie in an array."""
        ...

    def overwrite(self, read: Callable[[np.ndarray], None]) -> PyTree:
        """Take other values: `read` fills the arrays that it is given, one piece after the other.
        Returns the leaf."""
        ...


# Names of the safetensors format; a dtype without one is stored as U8, its own name kept in the
# metadata.
_NAMES = {np.dtype(kind).name: name for name, kind in DTYPES.items()}


class Loaded(NamedTuple):
    """A state read back."""

    tree: PyTree
    generation: int
    meta: JsonObject


def save(
    folder: Path,
    generation: int,
    tree: PyTree,
    meta: JsonObject,
    *,
    keep: int = 2,
    finite: str | None = None,
    part: str = "",
) -> Path:
    """Write `tree` as the checkpoint of `generation` (so many are done); keep the newest few.

    Args:
        folder: the folder of checkpoints, which is made if it is missing.
        generation: names the file.
        tree: pytree of arrays of any dtype, typed PRNG keys among them, and Python numbers.
        meta: JSON values to find again in `Loaded.meta`.
        keep: how many checkpoints stay: this one and the newest others.
        finite: refuse to write leaves whose paths match this pattern where they hold NaN or
            infinity.
        part: write only what is under this path, such as `"state/params"`.

    Returns:
        The path of the JSON file, which is the checkpoint's name everywhere.

    Raises:
        NotFinite: such a leaf; no file was changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sidecar = folder / f"{generation:09d}.json"
    tensors = sidecar.with_suffix(".safetensors")
    with replacing(tensors) as file:
        digest, size = _write_tensors(file, tree, finite, part)
    write_sidecar(sidecar, digest=digest, size=size, meta=meta)
    others = [path.stem for path in saved(folder) if path != sidecar]
    clear(folder, {sidecar.stem, *others[max(0, len(others) - keep + 1) :]})
    return sidecar


def clear(folder: Path, keep: Container[str]) -> None:
    """Remove every checkpoint but those of these names, and what a kill left half written."""
    for path in files_of_checkpoints(folder):
        if path.stem not in keep:
            path.unlink()


def load(sidecar: Path, template: PyTree, *, prefix: str = "") -> Loaded:
    """Read a checkpoint into the structure of `template`.

    Args:
        sidecar: its JSON file.
        template: pytree of arrays (or `jax.ShapeDtypeStruct`) with the structure, shapes, dtypes
            and placement the result shall have; its values are not used.
        prefix: read only the part of the saved tree under this path, e.g. `"state/params"`.

    Raises:
        Damaged: the bytes are not those that were saved.
        InputError: the saved tree is another one; the first path that differs is named.
    """
    about = read_sidecar(sidecar)
    tensors = sidecar.with_suffix(".safetensors")
    with opened(tensors, Damaged) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"]:
            raise Damaged(f"{tensors} is damaged: its checksum does not hold")
        leaves = _read_header(file, tensors)
        wanted = _described(template)
        _compare(tensors, leaves, wanted, prefix)
        like, structure = jax.tree.flatten(template)
        tree = structure.unflatten(
            [
                _restored(file, leaves[_join(prefix, name)], leaf)
                for name, leaf in zip(wanted, like, strict=True)
            ]
        )
    return Loaded(tree, about["generation"], about["meta"])


def load_newest(
    folder: Path, template: PyTree, *, at_most: int | None = None, prefix: str = ""
) -> tuple[Loaded | None, list[str]]:
    """The newest checkpoint that is whole, and one line for each newer one that is not.

    Args:
        at_most: skip checkpoints of later generations than this.
    """
    notes = []
    for sidecar in reversed(saved(folder)):
        if at_most is not None and int(sidecar.stem) > at_most:
            notes.append(f"passed over {sidecar}, which is later than generation {at_most}")
            continue
        try:
            return load(sidecar, template, prefix=prefix), notes
        except Damaged as damage:
            notes.append(f"{damage}; falling back to the checkpoint before it")
    return None, notes


def differing_paths(left: PyTree, right: PyTree) -> list[str]:
    """The paths whose arrays are not equal bit for bit, of two trees of one structure."""
    pairs = zip(_named_leaves(left).items(), jax.tree.leaves(right), strict=True)
    return [name for (name, a), b in pairs if _raw(a).tobytes() != _raw(b).tobytes()]


class _Description(NamedTuple):
    """What is known of one array without its values."""

    dtype: str  # numpy's name, or "key<implementation>"
    shape: tuple[int, ...]  # of the stored array: for keys the shape of their data
    offset: int = 0  # in the file
    bytes: int = 0  # there

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def _named_leaves(tree: PyTree) -> dict[str, Leaf]:
    named = named_leaves(tree)
    if len(named) != len(jax.tree.leaves(tree)):
        raise TypeError("two leaves of the state share one path; rename one of them")
    return named


def _is_key(leaf: Leaf) -> TypeGuard[jax.Array]:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _raw(leaf: Leaf) -> np.ndarray:
    """The leaf as a NumPy array on the host, keys as their words."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _key_parts(key: jax.Array) -> tuple[str, jax.ShapeDtypeStruct]:
    """The implementation of a typed key and the shape of its words; abstract keys have them too."""
    implementations: list[str] = []

    def look(key: jax.Array) -> jax.Array:
        implementations.append(cast(str, jax.random.key_impl(key)))
        return jax.random.key_data(key)

    words = jax.eval_shape(look, key)
    return implementations[0], words


def _describe(leaf: Leaf) -> _Description:
    if _is_key(leaf):
        implementation, words = _key_parts(leaf)
        return _Description(f"key<{implementation}>", words.shape)
    if isinstance(leaf, bool | int | float):
        leaf = np.asarray(leaf)
    return _Description(np.dtype(leaf.dtype).name, tuple(leaf.shape))


def _described(tree: PyTree) -> dict[str, _Description]:
    return {name: _describe(leaf) for name, leaf in _named_leaves(tree).items()}


def _write_tensors(file: BinaryIO, tree: PyTree, finite: str | None, part: str) -> tuple[str, int]:
    """Write the safetensors file, one leaf on the host at a time; its SHA-256 and bytes."""
    inside = part and f"{part}/"
    named = {name: leaf for name, leaf in _named_leaves(tree).items() if name.startswith(inside)}
    header: JsonObject = {"__metadata__": {"format": FORMAT}}
    offset = 0
    for name, leaf in named.items():
        about = _describe(leaf)
        kind = np.dtype("uint32" if about.dtype.startswith("key<") else about.dtype)
        end = offset + kind.itemsize * math.prod(about.shape)
        stored = _NAMES.get(kind.name, "U8")
        header[name] = {"dtype": stored, "shape": about.shape, "data_offsets": [offset, end]}
        if stored != _NAMES.get(about.dtype):
            header["__metadata__"][name] = about.dtype
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    size = 0
    for raw in (len(text).to_bytes(8, "little"), text):
        size += file.write(raw)
        digest.update(raw)
    for name, leaf in named.items():
        for array in leaf.slices() if isinstance(leaf, Overwritable) else (_raw(leaf),):
            if finite is not None and re.match(finite, name):
                refuse_not_finite(name, array)
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            size += file.write(raw.data)
            digest.update(raw.data)
    return digest.hexdigest(), size


def _read_header(file: BinaryIO, path: Path) -> dict[str, _Description]:
    """What the file holds, as the reader of models finds it."""
    file.seek(0)
    try:
        header = read_header(file, path)
    except InputError as error:
        raise Damaged(str(error)) from None
    return {
        name: _Description(
            header.metadata.get(name, np.dtype(DTYPES[entry.dtype]).name),
            entry.shape,
            entry.begin,
            entry.end - entry.begin,
        )
        for name, entry in header.entries.items()
    }


def _restored(file: BinaryIO, leaf: _Description, like: Leaf) -> PyTree:
    """A leaf of the file, as the kind of leaf that `like` is."""
    dtype = np.dtype("uint32" if leaf.dtype.startswith("key<") else leaf.dtype)
    if math.prod(leaf.shape) * dtype.itemsize != leaf.bytes:
        raise Damaged(f"{file.name} is damaged: {leaf} has {leaf.bytes} bytes there")
    file.seek(leaf.offset)
    read = lambda out: file.readinto(out.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]
    if isinstance(like, Overwritable):
        return like.overwrite(read)
    array = np.empty(leaf.shape, dtype)
    read(array)
    return _placed(array, like)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}/{name}" if prefix and name else prefix or name


def _compare(
    tensors: Path,
    saved: Mapping[str, _Description],
    wanted: Mapping[str, _Description],
    prefix: str,
) -> None:
    """Raise unless the file holds just the wanted leaves under the prefix."""
    names = [_join(prefix, name) for name in wanted]
    for name, leaf in zip(names, wanted.values(), strict=True):
        stored = saved.get(name)
        if stored is None:
            raise InputError(_mismatch(tensors, name, "missing", leaf))
        if stored[:2] != leaf[:2]:
            raise InputError(_mismatch(tensors, name, stored, leaf))
    inside = prefix and f"{prefix}/"
    for name, leaf in saved.items():
        if name.startswith(inside) and name not in names:
            raise InputError(_mismatch(tensors, name, leaf, "absent"))


def _mismatch(tensors: Path, name: str, stored: object, wanted: object) -> str:
    return (
        f"{tensors} is of another model: {name} is {stored} there and {wanted} here; "
        f"use the options it was trained with (config.json beside it has them)"
    )


def _placed(array: np.ndarray, like: Leaf) -> PyTree:
    """The array as the kind of leaf that `like` is, where `like` is."""
    if _is_key(like):
        implementation, words = _key_parts(like)
        key = jax.random.wrap_key_data(_placed(array, words), impl=implementation)
        return jax.device_put(key, like.sharding) if _committed(like) else key
    if isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        # An uncommitted array stays one, so that it may still follow others to their devices.
        return jax.device_put(array, like.sharding) if _committed(like) else jnp.asarray(array)
    if isinstance(like, np.ndarray | np.generic):
        return array if isinstance(like, np.ndarray) else array[()]
    return type(like)(array.item())


def _committed(like: Leaf) -> bool:
    if isinstance(like, jax.Array):
        return like.committed
    return getattr(like, "sharding", None) is not None
