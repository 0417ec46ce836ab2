"""`springroll rl --tune`: the trials of a search, all in one process, kept in one folder.

    tuning.json     what is searched
    trials.jsonl    every trial after every round, as it is scored
    trial-007/      the run of a trial, as `springroll rl` makes it
    trials.md       all trials, the best first
    best.json       the best as a command, as options, and as what to change in a config

A search that was killed goes on with --resume: trials that were scored are not scored again, and
one that was under way goes on from its checkpoint.
"""

import functools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from springroll.atomic import read_json, replacing, write_json
from springroll.errors import InputError
from springroll.markdown import markdown_table
from springroll.rl import tuning as search
from springroll.rl.config import RLConfig
from springroll.rl.tuning import Record, Tuning
from springroll.run.config import from_json, run_id, to_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


PLAIN = {"markup": False, "highlight": False, "soft_wrap": True}


class Interrupted(Exception):
    """A signal stopped the search; all is saved."""

    def __init__(self, signal: int):
        super().__init__(signal)
        self.signal = signal


def tune(config: RLConfig, tuning: Tuning, console: "Console | None" = None) -> list[Record]:
    """Search, and write what was found into `config.out`; every trial, the best first.

    Options of `config` that are not their defaults are not searched. Its seconds (or generations)
    are the budget of those trials that get to the end.

    Raises:
        InputError: neither seconds nor generations are given, nothing is left to search, the folder
            holds something else.
        Interrupted: a signal asked to stop.
    """
    from springroll.cpu import use_cpu_devices

    searched = search.space(config.method, config)
    if not searched:
        raise InputError("every option of the search is given already; leave some out")
    use_cpu_devices(config.devices)
    unit, budget = budget_of(config)
    folder = opened(config, tuning)
    drawn = [search.draw(config.seed, trial, searched) for trial in range(tuning.trials)]
    say = functools.partial(console.print, **PLAIN) if console else None

    def score(trial: int, budget: float) -> float:
        if say:
            what = ", ".join(f"{name} {value}" for name, value in drawn[trial].items())
            say(f"trial {trial}, {budget:.3g} {unit}: {what}")
        out = folder / f"trial-{trial:03d}"
        amount = round(budget) if unit == "generations" else budget
        one = replace(config, out=str(out), resume=(out / "config.json").exists(), gif=False)
        return scored(replace(search.applied(one, drawn[trial]), **{unit: amount}), console)

    with open(folder / "trials.jsonl", "a", buffering=1, encoding="utf-8") as file:

        def told(record: Record) -> None:
            file.write(search.json_line(record))
            if say:
                say(f"trial {record.trial}: {record.note or f'{record.score:.4g}'}")

        known = search.read_records(folder / "trials.jsonl", drawn)
        records = search.halving(drawn, search.rungs(tuning, budget), score, known, told)
    written(folder, config, records)
    return records


def scored(config: RLConfig, console: "Console | None" = None) -> float:
    """Train on to the budget; the mean return of the weights themselves."""
    from springroll.rl.build import computed, prepare, warm
    from springroll.run.folder import open_run
    from springroll.run.loop import run

    config = replace(config, compute=computed(config))
    scorer, learning = prepare(config)
    try:
        if scorer.rollout is not None:
            warm(learning.task)
        folder, config = open_run(config, RLConfig())
        result = run(config, learning.task, folder, console=console)
    finally:
        scorer.close()
    if result.signal is not None:
        raise Interrupted(result.signal)
    return result.summary["eval_return"]


def budget_of(config: RLConfig) -> tuple[str, float]:
    """What the budget is counted in, and the whole of it."""
    if config.seconds is not None:
        return "seconds", config.seconds
    if config.generations is not None:
        return "generations", float(config.generations)
    raise InputError("a search needs --seconds (or --generations) of the longest trials")


def opened(config: RLConfig, tuning: Tuning) -> Path:
    """The folder of a search, new or gone on with."""
    folder = Path(config.out)
    what = {"search": run_id(config), "budget": list(budget_of(config)), **asdict(tuning)}
    about = folder / "tuning.json"
    if not config.resume:
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(
                f"{folder} is not empty; go on with its search by --resume, or choose another --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(about, {**what, "config": to_json(config)})
        return folder
    if not about.exists():
        raise InputError(f"nothing to resume: {folder} holds no search (no tuning.json)")
    there = read_json(about)
    stored = from_json(RLConfig, there.get("config", {}), where=str(about))
    there["search"] = run_id(stored)  # as options are called now
    other = [name for name, value in what.items() if there.get(name) != value]
    if other:
        raise InputError(
            f"{folder} holds another search: its {other[0]} is {there.get(other[0])}, not "
            f"{what[other[0]]}; give the options it began with, or choose another --out"
        )
    return folder


def written(folder: Path, config: RLConfig, records: list[Record]) -> None:
    """The table, and the best as a command and as changes of a config."""
    best = records[0]
    plain = replace(config, out=RLConfig.out, resume=False)
    line = search.command_line(plain, best.settings)
    trials = markdown_table(search.cells(records, budget_of(config)[0]))
    with replacing(folder / "trials.md") as file:
        file.write(f"{trials}\nBest: `{line}`\n".encode())
    given = search.changed(search.applied(plain, best.settings), RLConfig())
    kept = {name: value for name, value in given.items() if name not in search.OF_THE_SEARCH}
    about = {"command": line, "eval_return": best.score, "trial": best.trial}
    asked = {"options": search.flags(kept), "config": search.nested(best.settings)}
    write_json(folder / "best.json", about | asked)


def table(records: list[Record], unit: str = "seconds") -> "Table":
    """The trials for a terminal; budgets are in `unit`."""
    from rich.table import Table

    head, *rows = search.cells(records, unit)
    out = Table(*head, box=None, pad_edge=False)
    for row in rows:
        out.add_row(*row)
    return out


def best_command(folder: Path) -> str:
    """What a search found, as a command."""
    return json.loads((folder / "best.json").read_text())["command"]
