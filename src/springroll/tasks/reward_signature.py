"""What a reward function is given: it follows from the names of its parameters.

| parameter | is given, a list of one entry per text |
|---|---|
| `texts`, or a first one of any other name | the texts to judge |
| `completions` | the texts; of a prompt of messages `[{"role": "assistant", "content": text}]` |
| `prompts` | their prompts: text, or lists of messages |
| `records` | the records of the prompts, dicts |
| the name of a field of the records | that field of each record; None where it lacks the field |
| `*others` | by position: what of texts and records comes behind the parameters before it |
| `**others` | by name: the prompts, and the fields that no other parameter takes |

A parameter of another name keeps its default; without one the function is refused. So functions
written for TRL, `f(prompts, completions, **kwargs)` and `f(completions, answer, **kwargs)`, are
given what they mean.

A function with a parameter `solution_str` is one written for verl. It is called for every text by
itself and is given single values by name:

| parameter | is given |
|---|---|
| `solution_str` | the text |
| `ground_truth` | `ground_truth` in the field `reward_model`, else that field, else `answer` |
| `data_source`, `extra_info` | the field; None, or {}, where the record lacks it |

One with a parameter `solution_strs` is verl's for batches: it is given lists, and each name has an
s more.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from springroll.atomic import JsonObject
from springroll.errors import InputError

Give: TypeAlias = Callable[[str, JsonObject], Any]
"""(text, record) -> what the function is given for it."""

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
SIGNATURES = (
    "(texts), (texts, records), (prompts, completions, **fields of the records) as of TRL, or "
    "(data_source, solution_str, ground_truth, extra_info) as of verl"
)


def _completion(text: str, record: JsonObject) -> Any:
    """A conversation goes on by a message; one that the prompt began is whole in it."""
    prompt = record.get("prompt")
    if not isinstance(prompt, list):
        return text
    last = prompt[-1]
    begun = last.get("content") or "" if last.get("role") == "assistant" else ""
    return [{"role": "assistant", "content": begun + text}]


def _truth(text: str, record: JsonObject) -> Any:
    del text
    model = record.get("reward_model")
    if isinstance(model, dict) and "ground_truth" in model:
        return model["ground_truth"]
    return record.get("ground_truth", record.get("answer"))


def _field(name: str, otherwise: Any = None) -> Give:
    return lambda text, record: otherwise if record.get(name) is None else record[name]


OURS: Mapping[str, Give] = {
    "texts": lambda text, record: text,
    "completions": _completion,
    "prompts": _field("prompt"),
    "records": lambda text, record: record,
}
VERL: Mapping[str, Give] = {
    "solution_str": lambda text, record: text,
    "ground_truth": _truth,
    "data_source": _field("data_source"),
    "extra_info": _field("extra_info", {}),
}
TRUTHS = {"reward_model", "ground_truth", "answer"}  # fields, one of which `_truth` needs
TEXTS = {"texts", "completions", "solution_str", "solution_strs"}


@dataclass(frozen=True)
class Arguments:
    """What a function is given."""

    positional: tuple[Give, ...]
    named: Mapping[str, Give]
    alone: bool = False
    """It is called for every text by itself, and returns one result."""

    def of(
        self, texts: Sequence[str], records: Sequence[JsonObject]
    ) -> tuple[list[list[Any]], dict[str, list[Any]]]:
        """The positional and the named arguments of a call, lists of one entry per text."""
        pairs = list(zip(texts, records, strict=True))
        column = lambda give: [give(text, record) for text, record in pairs]
        named = {parameter: column(give) for parameter, give in self.named.items()}
        return [column(give) for give in self.positional], named


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
        return Arguments((OURS["texts"],), {})
    variable = {each.kind for each in parameters} & {*VARIABLE}
    plain = [each for each in parameters if each.kind not in VARIABLE]
    if not parameters or len(variable) == len(VARIABLE):
        raise _refused(name, parameters, "which does not say what it wants")
    fields, names = [*fields], {each.name for each in plain}
    verl = _verl(names, fields)
    known = {each: _field(each) for each in fields} | {**OURS} | verl
    texts = TEXTS & names
    if plain and not texts:
        texts = {plain[0].name} - {*known}
        known = {each: OURS["texts"] for each in texts} | known
    positional: list[str] = []
    named: list[str] = []
    for place, each in enumerate(plain):
        if each.name not in known:
            if each.default is not each.empty:
                continue
            there = ", ".join(sorted(fields))
            why = f"but the records have no field {each.name!r} (they have {there})"
            raise _refused(name, parameters, why)
        by_name = each.kind is each.KEYWORD_ONLY or len(positional) < place
        (named if by_name else positional).append(each.name)
    if inspect.Parameter.VAR_POSITIONAL in variable and len(positional) == len(plain) < 2:
        positional += ["texts", "records"][len(positional) :]
        texts = texts or {"texts"}
    if inspect.Parameter.VAR_KEYWORD in variable and not verl:
        others = [each for each in fields if each not in (*OURS, "prompt")]
        others = [*([] if texts else ["completions"]), "prompts", *others]
        texts = texts or {"completions"}
        named += [each for each in others if each not in (*positional, *named)]
    if not texts:
        raise _refused(name, parameters, "so it is given no texts")
    return Arguments(
        positional=tuple(known[each] for each in positional),
        named={each: known[each] for each in named},
        alone="solution_str" in names,
    )


def _verl(names: set[str], fields: Sequence[str]) -> dict[str, Give]:
    """What parameters of verl's names mean, in a function that was written for verl."""
    given = {name: give for name, give in VERL.items() if name != "ground_truth"}
    if TRUTHS & {*fields}:
        given["ground_truth"] = _truth
    if "solution_str" in names:
        return given
    lists = {f"{name}s": give for name, give in given.items()}
    return lists if "solution_strs" in names else {}


def _refused(name: str, parameters: list[inspect.Parameter], why: str) -> InputError:
    taken = ", ".join(str(each).partition(":")[0].partition("=")[0] for each in parameters)
    return InputError(f"the reward function {name} takes ({taken}), {why}; expected {SIGNATURES}")
