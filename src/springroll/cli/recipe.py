"""`--recipe NAME`: the options of a command line, over those of a recipe."""

from collections.abc import Sequence
from typing import Any, TypeVar

from springroll.cli.options import parse, taken
from springroll.errors import InputError, suggestion
from springroll.recipes import RECIPES
from springroll.run.config import RunConfig

C = TypeVar("C", bound=RunConfig)


def config_of(kind: type[C], argv: Sequence[str], description: str) -> C:
    """The config of a command line: a recipe's or the defaults, with the given options.

    Args:
        description: what --help says before the recipes and the options.

    Raises:
        InputError: an unknown recipe, and as `parse`.
    """
    recipes = RECIPES[kind.command]
    name, rest = taken(argv, "--recipe")
    if name is not None and name not in recipes:
        raise InputError(
            f"unknown recipe {name!r}{suggestion(name, recipes)}; there are {', '.join(recipes)}"
        )
    default: Any = None if name is None else recipes[name]()
    return parse(
        kind,
        rest,
        prog=f"springroll {kind.command}",
        default=default,
        description=f"{description}\n\n{listing(kind.command)}",
        others=["--recipe"],
    )


def listing(command: str) -> str:
    """The recipes of a command, for --help."""
    first = lambda recipe: (recipe.__doc__ or "").splitlines()[0]
    lines = [f"  --recipe {name}: {first(make)}" for name, make in RECIPES[command].items()]
    return "\n".join(["A recipe sets all options; those given beside it override it.", *lines])
