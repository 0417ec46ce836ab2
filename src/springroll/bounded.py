"""Files that somebody else wrote, read within bounds: regular files of a size, JSON of a depth.

A folder may hold anything. A pipe would be waited for, a device never ends, and a file of some
megabytes can be JSON that takes gigabytes. Each of them is one InputError instead. Imports no jax.
"""

import contextlib
import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from springroll.errors import InputError, brief
from springroll.memory import check_fits

JSON_BYTES = 32_000_000  # of a file; the index of a model with 100,000 tensors has a third
JSON_DEPTH = 64  # objects and lists within each other
JSON_PARTS = 500_000  # objects and lists; each may take 100 bytes and its share of clearing up
_PARSED = 20  # bytes of memory for another byte of JSON, at most


@contextlib.contextmanager
def opened(
    path: str | Path, failure: Callable[[str], Exception] = InputError
) -> Iterator[io.BufferedReader]:
    """A file to read.

    Args:
        path: of a regular file, or a link to one.
        failure: what to raise instead of an InputError.

    Raises:
        InputError: there is none, it is of another kind, or it cannot be read, also while the block
            reads it.
    """
    try:
        file = open(path, "rb", opener=_not_waiting)  # noqa: SIM115  (closed below)
    except OSError as error:
        raise failure(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # a zero byte, half a character
        raise failure(f"cannot read {path}: no file has such a name ({error})") from None
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise failure(f"cannot read {path}: it is no file, but a pipe or a device")
        try:
            yield file
        except OSError as error:
            raise failure(f"cannot read {path}: {error.strerror or error}") from None


def read_bytes(path: str | Path, most: int = JSON_BYTES) -> bytes:
    """The content of a file.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        InputError: it cannot be read or is larger.
    """
    with opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"cannot read {path}: it is larger than {most / 1e6:g} MB")
    return content


def read_text(path: str | Path, most: int) -> str:
    """The content of a file as text in UTF-8; InputError as `read_bytes`, or when it is none."""
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: it is no text in UTF-8 ({error})") from None


def parse_json(content: bytes | str, where: str, *, distinct: bool = False) -> Any:
    """The value that JSON stands for.

    Args:
        content: of a file whose size was checked.
        where: it comes from, for messages: a path, or "line 3 of x.jsonl".
        distinct: refuse an object that has a name twice; by default the last one counts.

    Raises:
        InputError: it is not JSON, nested deeper than `JSON_DEPTH`, made of more than `JSON_PARTS`,
            or could take more memory than is left.
    """
    if len(content) > 1_000_000:
        raw = content.encode(errors="replace") if isinstance(content, str) else content
        if raw.count(b"{") + raw.count(b"[") > JSON_PARTS:
            raise InputError(f"{where} is JSON of more than {JSON_PARTS:,} objects and lists")
        check_fits(_PARSED * len(content), f"the JSON of {where}")
    value, deep = None, True
    try:
        value = json.loads(content, object_pairs_hook=_distinct if distinct else None)
        deep = _deep(value)
    except RecursionError:
        pass  # deeper than Python can read
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}") from None
    if deep:
        raise InputError(f"{where} is JSON that is nested deeper than {JSON_DEPTH} levels")
    return value


def _deep(value: object) -> bool:
    """Whether it is nested deeper than `JSON_DEPTH`; looks at one level after the other."""
    holders = (dict, list)
    level = [value] if isinstance(value, holders) else []
    for _ in range(JSON_DEPTH):
        inside = [node.values() if type(node) is dict else node for node in level]
        level = [x for nodes in inside for x in nodes if type(x) in holders]
        if not level:
            return False
    return True


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"it has the name {brief(twice)} twice")
    return found


def _not_waiting(path: str, flags: int) -> int:
    """Opening a pipe that nobody writes to would wait for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
