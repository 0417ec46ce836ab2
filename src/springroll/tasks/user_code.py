"""Code of the user's own, found by its name: `module:function` or `path/file.py:function`."""

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from springroll.errors import InputError, one_line, suggestion


def named_function(name: str, what: str = "the function") -> tuple[ModuleType, Callable[..., Any]]:
    """The module and the function in it.

    Modules are looked for where Python does and in the working folder.

    Args:
        what: it is, for messages: "the reward function".

    Raises:
        InputError: the module or file, or the function in it, is missing; importing it raises.
    """
    where, _, function_name = name.rpartition(":")
    if not where or not function_name.isidentifier():
        bare = what.removeprefix("the ")
        raise InputError(f"no {bare} {name!r}; expected module:function or file.py:function")
    find = _from_file if where.endswith(".py") else _from_module
    module = find(where, f"{what} {name}")
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [name for name, value in vars(module).items() if callable(value)]
        near = suggestion(function_name, functions, quoted=True)
        raise InputError(f"{where} has no function {function_name!r}{near}")
    return module, function


def arguments_taken(function: Callable[..., Any]) -> int:
    """How many arguments, of at most two, a function is to be given.

    A second parameter that stands for something else than nothing, such as `scale=2.0`, is an
    option and left alone.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built in
        return 1
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 2
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional[1:2] if p.default is p.empty or p.default is None]
    return len(positional[:1]) + len(required)


def raised_line(error: BaseException) -> str:
    """One line: what was raised, and where: `KeyError: 'a' (file.py:7)`."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{_one_line(error)}{place}"


def _from_module(where: str, asked: str) -> ModuleType:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name == where or where.startswith(f"{error.name}."):
            raise InputError(
                f"no module {where!r} for {asked}; run where it can be imported, or give "
                "path/file.py:function"
            ) from None
        raise InputError(f"cannot import {where}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        raise InputError(f"cannot import {where}: {_one_line(error)}") from None


def _from_file(where: str, asked: str) -> ModuleType:
    path = Path(where).expanduser()
    spec = importlib.util.spec_from_file_location(f"_given_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"no file {where} for {asked}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise InputError(f"cannot import {where}: {_one_line(error)}") from None
    return module


def _one_line(error: BaseException) -> str:
    try:
        said = str(error)
    except Exception:  # an error of the user's own that cannot even be printed
        said = ""
    message = one_line(said.strip().partition("\n")[0], 200)
    return f"{type(error).__name__}{': ' if message else ''}{message}"
