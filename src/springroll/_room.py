"""Rooms that bear the name of the function they hold: `sr.factored(fn)`, `sr.factored.discover`.

Python binds a package over whatever had its name as soon as anything in it is imported, so which of
the two `sr.factored` is would depend on what came first. A callable package is both.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class _CallableRoom(ModuleType):
    """A package that passes calls on to one function, which is imported at the first of them."""

    function: str  # its module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = importlib.import_module(self.function)
        return getattr(module, self.__name__.rpartition(".")[2])(*args, **kwargs)


def callable_room(room: str, function: str) -> None:
    """Let the package named `room` be called as the function of its own name in module `function`.

    For a package's `__init__`: `callable_room(__name__, "springroll.factored.interpret")`.
    """
    module = sys.modules[room]
    module.__class__ = _CallableRoom
    vars(module)["function"] = function
