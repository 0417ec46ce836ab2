"""Where the model is that a run of `springroll train` goes on from, if it is no new one."""

import functools
from pathlib import Path

from springroll.hub import hf_folder, on_an_index
from springroll.models.hf.files import is_hf_folder


def folder_of(model: str) -> Path | None:
    """The folder, or lone file, of a pretrained model; None for a shape by its name.

    A name on the hub or on the package index is downloaded, if it was not before.

    Raises:
        InputError: it cannot be, or there is no such model.
    """
    if is_hf_folder(model):
        return Path(model)
    return _downloaded(model) if on_an_index(model) else None


@functools.cache
def _downloaded(name: str) -> Path:
    """The folder of a name, which a run asks for many times and the hub for once."""
    return hf_folder(name)
