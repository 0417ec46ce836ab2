"""The tasks that suites have, without importing a suite: their ids and spaces.

`catalog.json` was written by `tests/golden/make_catalog.py` from the newest version of each suite
that was at hand. A suite that is installed in another version may lack some or have more; it is
asked where that matters.
"""

import functools
import json
import re
from importlib.resources import files
from typing import NamedTuple


class Task(NamedTuple):
    """One task of a suite."""

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
