"""What a reward function is given: it follows from the names of its parameters.

| parameter | is given, a list of one entry per text |
|---|---|
| `texts`, `completions`, or a first one of any other name | the texts to judge |
| `prompts` | their prompts |
| `records` | the records of the prompts, dicts |
| the name of a field of the records | that field of each record; None where it lacks the field |
| `*others` | by position: what of texts and records comes behind the parameters before it |
| `**others` | by name: the prompts, and the fields that no other parameter takes |

A parameter of another name keeps its default; without one the function is refused. So functions
written for TRL, `f(prompts, completions, **kwargs)` and `f(completions, answer, **kwargs)`, are
given what they mean.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from springroll.atomic import JsonObject
from springroll.errors import InputError

TEXTS = ("texts", "completions")
OURS = (*TEXTS, "prompts", "records")
VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
SIGNATURES = "(texts), (texts, records) or (prompts, completions, **fields of the records)"


@dataclass(frozen=True)
class Arguments:
    """Which lists a function is given; each is one of `OURS` or a field of the records."""

    positional: tuple[str, ...]
    named: Mapping[str, str]  # parameter -> what it is given

    def of(
        self, texts: Sequence[str], records: Sequence[JsonObject]
    ) -> tuple[list[list[Any]], dict[str, list[Any]]]:
        """The positional and the named arguments of a call."""

        def column(name: str) -> list[Any]:
            if name in TEXTS:
                return list(texts)
            if name == "records":
                return list(records)
            field = "prompt" if name == "prompts" else name
            return [record.get(field) for record in records]

        named = {parameter: column(name) for parameter, name in self.named.items()}
        return [column(name) for name in self.positional], named


def arguments_of(function: Callable[..., Any], name: str, fields: Iterable[str]) -> Arguments:
    """What a function is given.

    Args:
        name: of the function, for messages.
        fields: of the records.

    Raises:
        InputError: it takes no texts, or a parameter is nothing that can be given.
    """
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):  # some built in
        return Arguments(("texts",), {})
    variable = {each.kind for each in parameters} & {*VARIABLE}
    plain = [each for each in parameters if each.kind not in VARIABLE]
    if not parameters or len(variable) == len(VARIABLE):
        raise _refused(name, parameters, "which does not say what it wants")
    known = {each: each for each in (*fields, *OURS)}
    if plain and not {each.name for each in plain} & {*TEXTS}:
        known.setdefault(plain[0].name, "texts")
    positional: list[str] = []
    named: dict[str, str] = {}
    for place, each in enumerate(plain):
        if each.name not in known:
            if each.default is not each.empty:
                continue
            there = ", ".join(sorted(fields))
            why = f"but the records have no field {each.name!r} (they have {there})"
            raise _refused(name, parameters, why)
        if each.kind is each.KEYWORD_ONLY or len(positional) < place:
            named[each.name] = known[each.name]
        else:
            positional.append(known[each.name])
    taken = {*positional, *named.values()}
    if inspect.Parameter.VAR_POSITIONAL in variable and len(positional) == len(plain) < 2:
        positional += ["texts", "records"][len(positional) :]
    if inspect.Parameter.VAR_KEYWORD in variable:
        texts = [] if taken & {*TEXTS} else ["completions"]
        others = [each for each in fields if each not in (*OURS, "prompt")]
        named |= {each: each for each in (*texts, "prompts", *others) if each not in taken}
    if not {*positional, *named.values()} & {*TEXTS}:
        raise _refused(name, parameters, "so it is given no texts")
    return Arguments(tuple(positional), named)


def _refused(name: str, parameters: list[inspect.Parameter], why: str) -> InputError:
    taken = ", ".join(str(each).partition(":")[0].partition("=")[0] for each in parameters)
    return InputError(f"the reward function {name} takes ({taken}), {why}; expected {SIGNATURES}")
