"""The options every run has, and config dataclasses to and from JSON. Imports no jax.

A config is a frozen keyword-only dataclass, possibly with other dataclasses as fields. It is
written to `config.json` in full (the resolved config) and read back with every key checked, so that
a run folder says exactly what was run.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar

from springroll.errors import InputError, brief, suggestion
from springroll.memory import all_memory, check_fits
from springroll.run.options import (
    CHANGEABLE,
    COUNT,
    NOT_NEGATIVE,
    SECONDS,
    SEED,
    check_ranges,
    former_names,
    is_changeable,
    option,
    renamed_options,
)

__all__ = [
    "CHANGEABLE",
    "RunConfig",
    "from_json",
    "resumed",
    "run_id",
    "stored_id",
    "to_json",
]

C = TypeVar("C")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The options of a run that every task shares; commands subclass it."""

    command: ClassVar[str] = ""
    """The command of `springroll` that runs it."""

    out: str = option("runs/latest", changeable=True)
    """Run folder. It must not hold a run yet, unless --resume is given."""
    seed: int = option(0, SEED)
    """Seed that every random draw follows from."""
    seconds: float | None = option(None, SECONDS, changeable=True)
    """Seconds of training, over all resumes, after which the run stops. Validation is not
    counted."""
    generations: int | None = option(None, NOT_NEGATIVE, changeable=True)
    """Generations, over all resumes, after which the run stops."""
    log_every: float = option(1.0, SECONDS, changeable=True)
    """Seconds between two lines of metrics."""
    eval_every: float = option(10.0, SECONDS, changeable=True)
    """Seconds between two validations, which never take more than a tenth of the time."""
    resume: bool = option(False, changeable=True)
    """Continue the run in the folder from its newest checkpoint."""
    cluster: Literal["auto", "off", "jax"] = option("auto", changeable=True)
    """Share the members of a generation with other processes: `auto` does so where `springroll
    launch`, SLURM or Open MPI started several."""
    coordinator: str | None = option(None, changeable=True)
    """HOST:PORT of process 0, through which processes find each other; default: as detected."""
    processes: int | None = option(None, COUNT, changeable=True)
    """Processes that share the run; default: as detected."""
    process: int | None = option(None, NOT_NEGATIVE, changeable=True)
    """Which of them this is, counted from 0, the one that writes the run folder; default: as
    detected."""
    patience: float = option(60.0, SECONDS, changeable=True)
    """Seconds to wait for processes that have not come yet, or are gone."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.out or not self.out.isprintable():
            raise InputError(f"out is {brief(self.out)}; expected the name of a folder")
        if not self.resume:
            self.check_together()

    def check_together(self) -> None:
        """Refuse options that do not go together; of a continued run with the stored ones."""

    def for_processes(self, count: int) -> "RunConfig":
        """The config of a new run that so many processes share, with what depends on it."""
        del count
        return self

    def sizes(self) -> Mapping[str, int]:
        """What a run takes in bytes at least, and for what, as far as the options alone say."""
        return {}


def check_sizes(config: RunConfig, free: int | None = None) -> None:
    """Refuse a run whose options alone say that no memory of this machine holds it.

    Args:
        config: the options.
        free: bytes there are; by default those of the host and of accelerators together.

    Raises:
        InputError: it takes more; with the options and the bytes.
    """
    sizes = {what: size for what, size in config.sizes().items() if size}
    if sizes:
        check_fits(sum(sizes.values()), " and ".join(sizes), free or all_memory())


def to_json(config: Any) -> dict[str, Any]:
    """The config as plain JSON values: dataclasses become dicts, tuples lists, paths strings."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"a config is a dataclass instance, not {config!r}")
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_json(kind: type[C], data: Mapping[str, Any], *, where: str = "config") -> C:
    """The inverse of `to_json`: builds `kind`, checking every key and type.

    Keys that are missing take the dataclass's default, so configs written before a field existed
    still load; so do those of earlier names of options (see `options.former_names`).

    Raises:
        InputError: an unknown key (the nearest known one is suggested), a missing key without
            default, or a value of another type than the field's.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: expected the fields of {kind.__name__}, got {_short(data)}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, kind)) if f.init}
    data = renamed_options(kind, data)[0]
    for key in data:
        if key not in fields:
            known = f"known: {', '.join(fields)}"
            hint = suggestion(str(key), fields, otherwise=known, quoted=True)
            raise InputError(f"{where}: unknown key {key!r}{hint}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _typed(hints[name], data[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: the key {name!r} is missing")
    return kind(**values)


def resumed(stored: C, given: C, defaults: C) -> C:
    """The config of a continued run: the stored one, with what may change taken from the given one.

    A field of `given` counts as given when it differs from `defaults`. Fields marked `CHANGEABLE`,
    such as the budget, may change; anything else would make it another run.

    Raises:
        InputError: a given field differs from the stored one and may not change.
    """
    merged: C = _merged(stored, given, defaults, "")
    if isinstance(merged, RunConfig):
        merged.check_together()
    return merged


def run_id(config: Any) -> str:
    """16 hex digits that two runs share exactly when their configs compute the same thing.

    Fields marked `CHANGEABLE` are left out, so an interrupted run and an undisturbed one carry the
    same name and can be compared byte by byte.
    """
    return stored_id(type(config), to_json(config))


def stored_id(kind: Any, options: Mapping[str, Any]) -> str:
    """The `run_id` of a config as it was stored, also by an earlier version: under the names that
    options had, and without those that there were not.

    Args:
        kind: the dataclass of the config.
        options: what `to_json` made of one, then or now.
    """
    text = json.dumps(_fixed(kind, options), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fixed(kind: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Stored options without the changeable ones, at every depth."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    fields |= {former: fields[name] for former, (name, _) in former_names(kind).items()}
    hints, fixed = typing.get_type_hints(kind), {}
    for name, value in options.items():
        field = fields.get(name)
        if field is not None and is_changeable(field):
            continue
        part = hints[field.name] if field is not None else None
        inside = dataclasses.is_dataclass(part) and isinstance(value, Mapping)
        fixed[name] = _fixed(part, value) if inside else value
    return fixed


def _merged(stored: Any, given: Any, defaults: Any, where: str) -> Any:
    changes = {}
    for field in dataclasses.fields(stored):
        old, new, default = (getattr(x, field.name) for x in (stored, given, defaults))
        if new in (default, old):
            continue
        if is_changeable(field):
            changes[field.name] = new
        elif dataclasses.is_dataclass(old) and type(old) is type(new) is type(default):
            changes[field.name] = _merged(old, new, default, f"{where}{field.name}.")
        else:
            raise InputError(
                f"{where}{field.name} is {_short(new)}, but the run to resume has {_short(old)}; "
                f"leave it out, or start a new run with another --out"
            )
    return dataclasses.replace(stored, **changes)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a config cannot hold {value!r}")


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` from JSON as the type a field is annotated with."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _typed(args[0], value, where)
    if origin in (typing.Union, UnionType):
        return _first_fitting(args, value, where)
    if origin is Literal and value in args:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [args[0]] * len(value) if args[1:] == (...,) else list(args)
        if len(kinds) == len(value):
            return tuple(
                _typed(k, v, f"{where}[{i}]")
                for i, (k, v) in enumerate(zip(kinds, value, strict=True))
            )
    if origin is dict and isinstance(value, Mapping):
        return {key: _typed(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(hint, type):
        if dataclasses.is_dataclass(hint):
            return from_json(hint, typing.cast(Any, value), where=where)
        if hint is Path and isinstance(value, str):
            return Path(value)
        if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
            return value
    if hint is Any:
        return value
    name = getattr(hint, "__name__", None) if origin is None else None
    raise InputError(f"{where}: expected {name or hint}, got {_short(value)}")


def _first_fitting(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    """The member of a union that takes `value`; if none does, the error of the last one."""
    if value is None and type(None) in hints:
        return None
    hints = tuple(hint for hint in hints if hint is not type(None))
    for hint in hints[:-1]:
        try:
            return _typed(hint, value, where)
        except InputError:
            continue
    return _typed(hints[-1], value, where)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
