"""Finding what makes a Gymnasium environment: a registered id, or a function of the user's."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from springroll.errors import InputError
from springroll.program import pip_install
from springroll.tasks.user_code import named_function

PREFIX = "gymnasium-"


@dataclass(frozen=True)
class Maker:
    name: str
    make: Callable[[], Any]
    version: str = ""  # of gymnasium, where that makes it
    file: str = ""  # the source, where a function of the user's makes it


def maker(name: str) -> Maker:
    """What makes the environment `gymnasium-ID`, `module:function` or `file.py:function`.

    Raises:
        InputError: there is none, or gymnasium is not installed.
    """
    if name.startswith(PREFIX):
        return _registered(name)
    module, function = named_function(name, "the environment")
    return Maker(name, function, file=getattr(module, "__file__", None) or "")


def _registered(name: str) -> Maker:
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        if error.name != "gymnasium":
            raise
        raise InputError(
            f"{name} needs gymnasium, which is not installed: {pip_install('rl')}"
        ) from None
    id = name.removeprefix(PREFIX)
    if ":" not in id and id not in gymnasium.registry:
        near = difflib.get_close_matches(id, gymnasium.registry, n=3, cutoff=0.3)
        names = ", ".join(f"{PREFIX}{each}" for each in near) or "none; gymnasium.pprint_registry()"
        raise InputError(f"no environment {name!r}; nearest: {names}")
    # The checker of every step costs more than the step; ours checks what matters here.
    make = lambda: gymnasium.make(id, disable_env_checker=True)
    return Maker(name, make, version=f"gymnasium {gymnasium.__version__}")
