"""A data set: a file, a folder of files, or one of the hub; some have a held-out part."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from springroll.errors import InputError, as_path
from springroll.hub import data_set
from springroll.tasks.records import file_digest
from springroll.tasks.tables import READERS, Row, plain_rows, read_table

HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval")  # the first that there is counts
_NAME = re.compile(r"\w[\w.-]*/\w[\w-]*")  # OWNER/NAME, as no file with an ending is called
DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


class DataSet(NamedTuple):
    """The rows of a data set."""

    train: list[Row]
    held_out: list[Row]  # none where the data set has no such part
    digest: str


def read_data(source: str) -> DataSet:
    """The rows of `source`: a file (see `read_table`), a folder of such files, or a data set as
    `hub:OWNER/NAME[:CONFIG[:SPLIT]]`; the configuration may be empty, the split is `train`.

    In a folder the files whose name, or whose folder's name, begins with `test` are held out; where
    there are none, those of `validation` (`valid`, `val`), `dev` or `eval`. Files of more than one
    of these names: the others are left out. All the rest is for training.

    Raises:
        InputError: it cannot be read, or holds no records.
    """
    path, source = Path(os.path.expanduser(as_path(source, "the data"))), str(source)
    if source.startswith("hub:"):
        return _of_hub(source)
    if os.path.isdir(path):  # which takes names of any length
        return _of_folder(path)
    if not os.path.lexists(path) and _NAME.fullmatch(source):
        raise InputError(f"no file or folder {source}; a data set of the hub is hub:{source}")
    return DataSet(read_table(path), [], file_digest(path))


def files_below(root: Path, skip: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The files below a folder by name, its own before its folders'; hidden ones are left out."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in skip and name[0] != ".")
        for name in sorted(files):
            path = Path(folder, name)
            if name[0] != "." and path.is_file():  # no pipe or device: reading one may never end
                yield path


def _of_folder(root: Path) -> DataSet:
    files = [path for path in files_below(root) if path.suffix.lower() in READERS]
    files = [path for path in files if path.name not in DESCRIPTIONS]
    if not files:
        raise InputError(f"{root} holds no file that ends in {', '.join(READERS)}")
    part = {path: _part(path.relative_to(root)) for path in files}
    held_out = next((name for name in HELD_OUT if name in part.values()), None)
    train = [path for path in files if part[path] is None]
    if not train:  # parts of a name, and nothing beside them
        train, held_out = files, None
    kept = [path for path in files if held_out is not None and part[path] == held_out]
    digest = " ".join(file_digest(path) for path in [*train, *kept])
    if len(train) + len(kept) > 2:
        digest = hashlib.sha256(digest.encode()).hexdigest()[:16]
    rows = lambda paths: [row for path in paths for row in read_table(path)]
    return DataSet(rows(train), rows(kept), digest)


def _part(path: Path) -> str | None:
    """The held-out part that a file belongs to by its name or its folders' names."""
    for name in reversed(path.parts):
        word = re.split(r"[^a-z]", name.lower())[0]
        if word in HELD_OUT:
            return word
    return None


def _of_hub(source: str) -> DataSet:
    name, config, split = [*source.removeprefix("hub:").split(":", 2), "", ""][:3]
    if name.count("/") != 1:
        raise InputError(f"the data are {source!r}; expected hub:OWNER/NAME[:CONFIG[:SPLIT]]")
    instead = "--data PATH takes JSON, CSV and parquet files, and folders of them"
    found = data_set(name, config or None, instead, split=split or "train")
    rows = list(plain_rows(found, source))
    if not rows:
        raise InputError(f"{source} holds no records")
    whole = hashlib.sha256()
    for _, record in rows:
        whole.update(json.dumps(record, sort_keys=True).encode())
    return DataSet(rows, [], whole.hexdigest()[:16])
