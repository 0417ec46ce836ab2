"""Environments by their ids: a few that are built in, and those of six suites.

A suite is imported when one of its environments is asked for, and never before.
"""

import difflib
import functools
import importlib
import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Collection
from importlib.resources import files
from typing import NamedTuple, Protocol, cast

from springroll.envs.cartpole import cartpole
from springroll.envs.environment import Environment
from springroll.envs.grid import grid
from springroll.envs.pendulum import pendulum
from springroll.errors import InputError
from springroll.program import pip_install

BUILT_IN: dict[str, Callable[..., Environment]] = {
    "CartPole-v1": cartpole,
    "Pendulum-v1": pendulum,
    "Grid-5x5": grid,
}
EXTRA = pip_install("rl")
# Kinetix' metadata asks for a jax of before 0.10 and a jax2d that breaks on later ones, though it
# runs on them, so no extra can name it.
KINETIX = (
    f"{EXTRA} grain hydra-core imageio seaborn wandb zarr && "
    "pip install --no-deps kinetix-env==3.0.2 jax2d==1.0.2 jaxgl==1.0.1"
)
SUITES = {
    "gymnax": EXTRA,
    "brax": EXTRA,
    "navix": EXTRA,
    "craftax": EXTRA,
    "jumanji": EXTRA,
    "kinetix": KINETIX,
}  # each with what installs it


class Adapter(Protocol):
    """A module for one suite."""

    def names(self) -> Collection[str]:
        """Its tasks as the suite spells them."""
        ...

    def build(self, name: str, **options: int | str) -> Environment: ...


class Listed(NamedTuple):
    """One line of `springroll rl --list`."""

    id: str
    suite: str  # "springroll": built in
    observation_size: int
    actions: str
    max_steps: int
    installed: bool


def environment(id: str, **options: int | str) -> Environment:
    """The environment of that id; the same object whenever it is asked for again.

    Args:
        id: as `listing` has it, or as its suite spells it, such as "brax/ant" or
            "Navix-DoorKey-8x8-v0"; the suite may be left out where no other has that name.
        options: `max_steps`, the longest an episode may be, and `backend` of brax.

    Raises:
        InputError: no environment has that id (the nearest ones are named), its suite is not
            installed (what installs it is named), or it has no such option.
    """
    suite, name = _find(id)
    return _built(suite, name, tuple(sorted(options.items())))


def listing() -> list[Listed]:
    """Every environment, the built-in ones first; imports no suite."""
    built_in = [_listed(id) for id in BUILT_IN]
    available = {suite: installed(suite) for suite in SUITES}
    return built_in + [
        Listed(
            task.id,
            task.suite,
            task.observation_size,
            task.actions,
            task.max_steps,
            available[task.suite],
        )
        for task in known()
    ]


def installed(suite: str) -> bool:
    """Whether a suite can be imported, found out without doing so."""
    return importlib.util.find_spec(suite) is not None


def _listed(id: str) -> Listed:
    env = environment(id)
    return Listed(id, "springroll", env.observation_size, str(env.actions), env.max_steps, True)


@functools.cache
def _by_key() -> dict[str, tuple[str, str]]:
    """Suite and name by every key. Where two share one the built-in has it, or nobody."""
    tasks_of: dict[str, set[tuple[str, str]]] = {}
    for task in known():
        for each in keys(task.suite, task.name):
            tasks_of.setdefault(each, set()).add((task.suite, task.name))
    unique = {each: next(iter(tasks)) for each, tasks in tasks_of.items() if len(tasks) == 1}
    return unique | {each: ("springroll", id) for id in BUILT_IN for each in keys("springroll", id)}


def _find(id: str) -> tuple[str, str]:
    """Suite and name of an id; asks the suite itself when the table has no such id."""
    if exact := _by_key().get(key(id)):
        return exact
    suite = key(id).split("-")[0]
    if suite in SUITES and installed(suite):
        for name in _adapter(suite).names():
            if key(id) in keys(suite, name):
                return suite, name
    near = [each for each in _by_key() if key(id) in each]
    near += difflib.get_close_matches(key(id), _by_key(), n=9, cutoff=0.6)
    ids = list(dict.fromkeys(_id(*_by_key()[each]) for each in near))[:3]
    nearest = f"nearest: {', '.join(ids)}; " if ids else ""
    raise InputError(f"no environment {id!r}; {nearest}all of them: springroll rl --list")


def _id(suite: str, name: str) -> str:
    return name if suite == "springroll" else shown(suite, name)


@functools.cache
def _built(suite: str, name: str, options: tuple[tuple[str, int | str], ...]) -> Environment:
    build = BUILT_IN[name] if suite == "springroll" else _builder(suite, name)
    takes = [option for option in inspect.signature(build).parameters if option != "name"]
    for option, value in options:
        if option not in takes:
            raise InputError(f"{name} has no option {option!r}; it takes {', '.join(takes)}")
        if option == "max_steps" and not (isinstance(value, int) and value > 0):
            raise InputError(f"max_steps is {value!r}; expected a whole number of 1 or more")
    return build(**dict(options))


def _builder(suite: str, name: str) -> Callable[..., Environment]:
    if not installed(suite):
        raise InputError(f"{shown(suite, name)} needs {suite}, not installed here: {SUITES[suite]}")
    adapter = _adapter(suite)
    try:
        names = adapter.names()
    except ImportError as error:
        raise InputError(f"{suite} cannot be imported: {error}; try {SUITES[suite]}") from error
    if name not in names:
        raise InputError(f"the {suite} installed here has no {name!r}; another version may have it")
    return functools.partial(adapter.build, name)


def _adapter(suite: str) -> Adapter:
    return cast(Adapter, importlib.import_module(f"springroll.envs.{suite}_suite"))


class Task(NamedTuple):
    """One task of a suite, known without importing it.

    `catalog.json` was written by `tests/golden/make_catalog.py` from the newest version of each
    suite that was at hand. A suite that is installed in another version may lack some or have more;
    it is asked where that matters.
    """

    suite: str
    name: str  # as the suite spells it
    observation_size: int
    actions: str
    max_steps: int

    @property
    def id(self) -> str:
        return shown(self.suite, self.name)


def shown(suite: str, name: str) -> str:
    """The id of a suite's task: the suite's name before its own, less version and repetition.

    >>> shown("navix", "Navix-DoorKey-8x8-v0"), shown("jumanji", "Snake-v1")
    ('navix-DoorKey-8x8', 'jumanji-Snake')
    >>> shown("kinetix", "l/hard_pinball")
    'kinetix-l-hard_pinball'
    """
    own = re.sub(rf"^{suite}-", "", _unversioned(name), flags=re.IGNORECASE)
    return f"{suite}-{own.replace('/', '-')}"


@functools.cache
def known() -> tuple[Task, ...]:
    """All of them, suite by suite."""
    table = json.loads((files("springroll.envs") / "catalog.json").read_text())
    return tuple(Task(suite, *row) for suite, rows in table.items() for row in rows)


def keys(suite: str, name: str) -> set[str]:
    """What finds a task, in lower case and with "-" between words: its id or its own name, with
    and without the suite's name before it and the version after it."""
    version = name.removeprefix(_unversioned(name))
    short = shown(suite, name)
    spelled = (short, short.removeprefix(f"{suite}-"), f"{suite}-{_unversioned(name)}")
    return {key(each + end) for each in spelled for end in ("", version)}


def key(id: str) -> str:
    """An id as `keys` has it.

    >>> key("kinetix/l/hard_pinball"), key("Snake-v1")
    ('kinetix-l-hard-pinball', 'snake-v1')
    """
    return re.sub(r"[^a-z0-9]+", "-", id.lower())


def _unversioned(name: str) -> str:
    return re.sub(r"-v\d+$", "", name)
