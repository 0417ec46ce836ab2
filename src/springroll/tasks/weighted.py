"""Several reward functions with weights, in one line: `a.py:f*0.7 + b.py:g*0.3`."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from springroll.errors import InputError, brief
from springroll.ranges import LARGEST
from springroll.tasks.reward_function import Failed, Outcome
from springroll.tasks.verdicts import Verdict

_TERM = re.compile(r"\s*(?P<name>.+?:\w*)\s*(?:\*\s*(?P<weight>[^\s+]*))?\s*(?P<more>\+|$)")


class Term(NamedTuple):
    """A reward function and its weight."""

    name: str  # see `load_function`
    weight: float
    short: str  # for figures, distinct among the terms


def terms_of(line: str) -> list[Term]:
    """The terms of a sum.

    >>> [(term.name, term.weight) for term in terms_of("a.py:f*0.7 + b.py:g")]
    [('a.py:f', 0.7), ('b.py:g', 1.0)]

    Raises:
        InputError: it is none, a weight is 0 or no finite number, or a function stands in it twice.
    """
    found: list[tuple[str, float]] = []
    at, more = 0, True
    while more:
        match = _TERM.match(line, at)
        if match is None:
            raise InputError(
                f"no reward function {brief(line[at:])}; expected module:function or "
                "file.py:function, and of several a sum such as a.py:f*0.7+b.py:g*0.3"
            )
        found.append((match["name"], _weight(match["weight"], match["name"])))
        at, more = match.end(), match["more"]
    names = [name for name, _ in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"the reward function {twice} stands in the sum twice; give it one weight")
    last = [name.rpartition(":")[2] for name in names]
    many = Counter(last)
    short = [
        b if many[b] == 1 else re.sub(r"\W+", "_", a) for a, b in zip(names, last, strict=True)
    ]
    return [Term(name, weight, each) for (name, weight), each in zip(found, short, strict=True)]


def _weight(text: str | None, name: str) -> float:
    try:
        weight = 1.0 if text is None else float(text)
    except ValueError:
        weight = math.nan
    if not 0 < abs(weight) <= LARGEST:
        raise InputError(
            f"the weight of {name} is {brief(text)}; expected a finite number other than 0"
        )
    return weight


def weighted(weights: Sequence[float], outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of one text from those of the functions.

    The reward is the sum of weight times reward over the functions that apply, that is, do not
    return None. If none applies, or one of them fails, the text cannot be scored. It is correct
    (and formatted) if all that apply say so.
    """
    failed = [each for each in outcomes if isinstance(each, Failed)]
    broken = [each for each in failed if each.kind != "none"]
    applied = [each for each in outcomes if isinstance(each, Verdict)]
    if broken or not applied:
        return (broken or failed)[0]
    several = outcomes if len(outcomes) > 1 else ()
    parts = tuple(x.reward if isinstance(x, Verdict) else math.nan for x in several)
    pairs = zip(weights, outcomes, strict=True)
    reward = math.fsum(w * x.reward for w, x in pairs if isinstance(x, Verdict))
    if not abs(reward) <= LARGEST:
        return Failed("nan", "the sum of its weighted rewards is too large for a float of 32 bits")
    return Verdict(
        reward, all(x.correct for x in applied), all(x.formatted for x in applied), parts
    )
