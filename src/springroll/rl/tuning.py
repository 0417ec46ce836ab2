"""Random search over a method's settings with successive halving. Imports no JAX.

Every trial draws its settings from the paper's search space; all are scored on a small budget, the
best of them on a larger one, and so on. What a trial draws follows from the seed and its number, so
a search that was killed draws the same again and scores only what it has not.

Sources: arXiv 2511.16652v2, appendix N.4 (the space; 20 trials); Karnin, Koren and Somekh,
"Almost optimal exploration in multi-armed bandits", 2013 (halving).
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, TypeVar

from springroll.bounded import JSON_BYTES, parse_json, read_text
from springroll.errors import InputError
from springroll.rl.config import RLConfig, half_life_of
from springroll.run.options import Range, check_ranges, option, renamed_options

C = TypeVar("C")
Setting: TypeAlias = bool | int | float | str | None
Settings: TypeAlias = Mapping[str, Setting]
"""Options by name; those of a part of the config as "ppo.lr"."""
Space: TypeAlias = Mapping[str, tuple[Setting, ...]]

# The paper's factors per generation.
HALF_LIVES = tuple(half_life_of(factor) for factor in (0.995, 0.999, 0.9995, 1.0))
DRAWN_AS = {"lr_half_life": "lr_decay", "sigma_half_life": "sigma_decay"}
"""Names that options are drawn under, so that a search draws what it drew under their old names."""
_EVOLUTION: dict[str, tuple[Setting, ...]] = {
    "pop_size": (512, 1024, 2048, 4096),
    "episodes": (1, 4, 8),
    "rank": (1, 2, 4),
    "optimizer": ("adamw", "sgd", "adam"),
    "lr": (1e-3, 1e-2, 1e-1),
    "lr_half_life": HALF_LIVES,
    "sigma": (0.05, 0.2, 0.5),
    "sigma_half_life": HALF_LIVES,
    "ranks": (False, True),
    "deterministic": (False, True),
}
SPACES: Mapping[str, Space] = MappingProxyType(
    {
        "eggroll": _EVOLUTION,
        "openes": {name: choices for name, choices in _EVOLUTION.items() if name != "rank"},
        # The paper gives what it chose, from which these ranges are.
        "ppo": {
            "ppo.lr": (1e-4, 3e-4, 1e-3),
            "ppo.gamma": (0.95, 0.99, 0.995, 0.999),
            "ppo.clip": (0.1, 0.2, 0.3),
            "ppo.num_envs": (64, 128, 256),
            "ppo.num_steps": (64, 128, 256),
            "ppo.epochs": (4, 8, 16),
            "ppo.minibatches": (16, 32, 64),
            "ppo.entropy": (0.0, 0.01),
            "normalise": (False, True),
        },
    }
)
OF_THE_SEARCH = ("env", "method", "seed", "seconds", "generations")  # and not of its settings
SHAPES = ("pop_size", "episodes", "rank", "deterministic", "ppo.num_envs", "ppo.num_steps")


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How much is searched."""

    trials: int = option(20, Range(at_least=2, at_most=10**6))
    """Settings that are drawn."""
    factor: int = option(3, Range(at_least=2))
    """Of each round, one in so many goes on to the next, with so many times the budget."""

    def __post_init__(self) -> None:
        check_ranges(self)


class Rung(NamedTuple):
    """One round."""

    trials: int
    budget: float  # seconds (or generations) of training of each, over all rounds so far


class Record(NamedTuple):
    """One trial after one round."""

    trial: int
    rung: int
    budget: float
    score: float  # higher is better; -inf for a trial that failed
    settings: Settings
    note: str = ""  # why it failed


def space(method: str, config: RLConfig | None = None) -> Space:
    """What is searched: the method's space, less what `config` sets itself.

    An option of `config` that is not its default stays as it is.
    """
    whole = SPACES[method]
    if config is None:
        return whole
    default = type(config)()
    return {name: each for name, each in whole.items() if _get(config, name) == _get(default, name)}


def draw(seed: int, trial: int, space: Space) -> Settings:
    """The settings of a trial; every choice follows from the seed, the trial and its name."""

    def drawn(name: str, choices: tuple[Setting, ...]) -> Setting:
        key = f"{seed}/{trial}/{DRAWN_AS.get(name, name)}"
        digest = hashlib.sha256(key.encode()).digest()
        return choices[int.from_bytes(digest[:8], "little") % len(choices)]

    return {name: drawn(name, choices) for name, choices in space.items()}


def rungs(tuning: Tuning, budget: float) -> list[Rung]:
    """The rounds: `factor` times fewer trials in each, down to no less than two, the last of which
    have the whole `budget`.

    >>> rungs(Tuning(trials=20, factor=3), 90.0)
    [Rung(trials=20, budget=10.0), Rung(trials=7, budget=30.0), Rung(trials=3, budget=90.0)]
    """
    counts = [tuning.trials]
    while (after := math.ceil(counts[-1] / tuning.factor)) >= 2 and after < counts[-1]:
        counts.append(after)
    last = len(counts) - 1
    return [Rung(count, budget / tuning.factor ** (last - i)) for i, count in enumerate(counts)]


def halving(
    drawn: Sequence[Settings],
    plan: Sequence[Rung],
    score: Callable[[int, float], float],
    known: Iterable[Record] = (),
    told: Callable[[Record], object] = lambda record: None,
) -> list[Record]:
    """The newest record of every trial, the best first.

    Trials that went further come before those that did not, whatever their scores.

    Args:
        drawn: the settings of each trial.
        plan: the rounds.
        score: the figure of merit of a trial at a budget; more than before, never less. It may
            raise InputError, which loses the trial; NaN does too.
        known: records of an earlier sitting, which are not made again.
        told: called with each new record.
    """
    records = {(each.trial, each.rung): each for each in known}
    ranked = list(range(len(drawn)))
    for index, rung in enumerate(plan):
        going = ranked[: rung.trials]
        # Those of one shape in a row share programs that are compiled already.
        for trial in sorted(going, key=lambda trial: (shape(drawn[trial]), trial)):
            if (trial, index) not in records:
                value, note = _scored(score, trial, rung.budget)
                record = Record(trial, index, rung.budget, value, drawn[trial], note)
                records[trial, index] = record
                told(record)
        by_score = sorted(going, key=lambda trial: (-records[trial, index].score, trial))
        ranked = by_score + ranked[rung.trials :]
    newest = {trial: record for (trial, _), record in sorted(records.items())}
    return [newest[trial] for trial in ranked]


def shape(settings: Settings) -> str:
    """Trials of the same shape run the same programs."""
    return repr([settings.get(name) for name in SHAPES])


def applied(config: C, settings: Settings) -> C:
    """The config with the settings."""
    for name, value in settings.items():
        part, _, inner = name.rpartition(".")
        if part:
            value = replace(getattr(config, part), **{inner: value})
        config = replace(config, **{part or inner: value})  # type: ignore[type-var]
    return config


def nested(settings: Settings) -> dict[str, Any]:
    """The settings as a config's JSON has them: `{"ppo": {"lr": 0.001}}`."""
    out: dict[str, Any] = {}
    for name, value in settings.items():
        part, _, inner = name.rpartition(".")
        (out.setdefault(part, {}) if part else out)[inner] = value
    return out


def command_line(config: RLConfig, settings: Settings = MappingProxyType({})) -> str:
    """The command whose config this is: `springroll rl --env ...`, what is not default in it."""
    given = changed(applied(config, settings), type(config)())
    rest = {name: value for name, value in given.items() if name not in ("env", "method")}
    words = ["springroll", config.command, "--env", config.env, "--method", config.method]
    return " ".join(words + flags(rest))


def flags(settings: Settings) -> list[str]:
    """The settings as words of a command line."""
    words = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            part, dot, inner = flag.rpartition(".")
            words.append(f"--{flag}" if value else f"--{part}{dot}no-{inner}")
        else:
            words += [f"--{flag}", str(value)]
    return words


def changed(config: Any, default: Any) -> dict[str, Any]:
    """The options of `config` that are not the default's."""
    found = {}
    for each in fields(config):
        value, usual = getattr(config, each.name), getattr(default, each.name)
        if is_dataclass(value):
            inner = changed(value, usual)
            found |= {f"{each.name}.{name}": value for name, value in inner.items()}
        elif value != usual:
            found[each.name] = value
    return found


def read_records(path: Path, drawn: Sequence[Settings]) -> list[Record]:
    """The records of an earlier sitting; a line torn by a kill is left out.

    Args:
        path: of `json_line`s.
        drawn: the settings of each trial.

    Raises:
        InputError: the file cannot be read, or a whole line is no record of one of these trials.
    """
    records = []
    text = read_text(path, JSON_BYTES) if path.exists() else ""
    for number, line in enumerate(text.splitlines(), 1):
        where = f"line {number} of {path}"
        with contextlib.suppress(InputError):
            records.append((where, parse_json(line, where)))
    return [_record(row, where, drawn) for where, row in records]


def _record(row: Any, where: str, drawn: Sequence[Settings]) -> Record:
    """The record that a line's JSON stands for."""
    refused = InputError(f"{where} is no record of a trial of this search; remove the line")
    types = {"trial": int, "rung": int, "budget": float, "settings": dict, "note": str}
    if not isinstance(row, dict) or row.keys() != {*types, "score"}:
        raise refused
    if any(type(row[name]) is not kind for name, kind in types.items()):
        raise refused
    if row["score"] is None:
        row["score"] = -math.inf
    elif type(row["score"]) not in (int, float) or not math.isfinite(row["score"]):
        raise refused
    row["settings"] = renamed_options(RLConfig, row["settings"])[0]
    if not 0 <= row["trial"] < len(drawn) or row["settings"] != drawn[row["trial"]]:
        raise refused
    return Record(**row)


def json_line(record: Record) -> str:
    """A record as a line of JSON; a trial that failed has the score null."""
    score = record.score if math.isfinite(record.score) else None
    return json.dumps(record._asdict() | {"score": score, "settings": dict(record.settings)}) + "\n"


def cells(records: Sequence[Record], unit: str = "seconds") -> list[list[str]]:
    """A table of trials, its head first; budgets are in `unit`."""
    names = list(dict.fromkeys(name for record in records for name in record.settings))
    return [
        ["trial", unit, "return", *(name.replace("_", " ") for name in names)],
        *(
            [
                str(record.trial),
                f"{record.budget:.3g}",
                f"{record.score:.4g}" if math.isfinite(record.score) else f"failed: {record.note}",
                *(_said(record.settings.get(name, "")) for name in names),
            ]
            for record in records
        ),
    ]


def _scored(score: Callable[[int, float], float], trial: int, budget: float) -> tuple[float, str]:
    try:
        value = score(trial, budget)
    except InputError as error:
        return -math.inf, str(error)
    return (value, "") if math.isfinite(value) else (-math.inf, f"its score is {value}")


def _said(value: Setting) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _get(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config
