"""Files that are whole or absent, whenever the process or the machine dies or the disk is full, and
JSON that ends in an object or in one line. Imports no jax."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from springroll.bounded import opened, parse_json, read_bytes
from springroll.errors import InputError

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object as `json.loads` gives it."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, a quota or a limit of file sizes that is used up."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends: temporary name, fsync,
    rename.

    When the block raises, `path` is left as it was.

    Raises:
        OSError: it cannot be written, or is a pipe or a device, which must not be replaced;
            `filename` is set.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is no file, but a pipe or a device", str(path))
    with _written(path, path.with_name(path.name + ".tmp")) as (file, temporary):
        yield file
        _finished(file)
        os.replace(temporary, path)


@contextlib.contextmanager
def creating(path: Path) -> Iterator[BinaryIO]:
    """As `replacing`, but never in place of a file that is there, even if two processes try.

    Raises:
        FileExistsError: there is one.
    """
    # Two processes write to two files; `tmp` stays the ending by which leftovers are known.
    with _written(path, path.with_name(f"{path.name}.{os.getpid()}.tmp")) as (file, temporary):
        yield file
        _finished(file)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            os.replace(temporary, path)
        else:
            temporary.unlink()


@contextlib.contextmanager
def _written(path: Path, temporary: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A temporary file that is gone if the block raises."""
    try:
        with naming(path), open(temporary, "wb") as file:
            yield file, temporary
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _finished(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the operating system that name no file, as those of writing, name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def saving(path: Path) -> Iterator[None]:
    """What the disk refuses, as an InputError that says how a run goes on."""
    try:
        yield
    except OSError as error:
        remedy = "make room and go on" if error.errno in FULL else "mend that and go on"
        raise InputError(f"cannot write {os_line(error, path)}; {remedy} with --resume") from None


def os_line(error: OSError, path: object = "") -> str:
    """An error of the operating system as "file: what is wrong with it"."""
    where = error.filename if error.filename is not None else path
    where = os.fsdecode(where) if isinstance(where, bytes) else str(where)
    return f"{where}: {error.strerror or error}" if where else str(error.strerror or error)


def write_json(path: Path, data: Mapping[str, Any], *, new: bool = False) -> None:
    """Replace `path` by `data` as indented JSON; with `new` only where there is no such file."""
    with (creating if new else replacing)(path) as file:
        file.write((json.dumps(data, indent=2) + "\n").encode())


def read_json(path: Path) -> JsonObject:
    """The JSON object in `path`; InputError when it is missing, is none, or exceeds the bounds of
    `springroll.bounded`."""
    return json_object(read_bytes(path), path)


def json_object(content: bytes, where: object) -> JsonObject:
    """The JSON object that a text is; InputError, which begins with `where`, when it is none."""
    data = parse_json(content, str(where))
    if not isinstance(data, dict):
        raise InputError(f"{where} is not a JSON object")
    return data


def json_lines(path: Path) -> list[JsonObject]:
    """The JSON objects of a file, one a line; lines torn by a kill are left out, a missing file has
    none. InputError when it cannot be read."""
    if not path.exists():
        return []
    with opened(path) as file:
        lines = file.read().splitlines()
    objects = []
    for line in lines:
        with contextlib.suppress(InputError):
            objects.append(json_object(line, path))
    return objects


def _sync_folder(folder: Path) -> None:
    """A rename lasts only once the folder itself is on disk (Windows neither has nor needs it)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
