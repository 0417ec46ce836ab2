"""A run folder: everything one run writes, and nothing of another.

    config.json     the resolved config
    metrics.jsonl   one JSON object per logged generation
    answers.jsonl   of models that answer, some of what they wrote (see answers.py)
    tensorboard/    the same figures as TensorBoard events
    journal         the fitness vector of every generation (see journal.py and record.py)
    checkpoints/    the newest training states (see checkpoint.py)
    best/           of tasks that keep it, the state that validated best
    curve.png       the learning curve, drawn at the end
    summary.json    the run in a dozen figures, written at the end

Imports no jax.
"""

import contextlib
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn, TypeVar

from springroll.atomic import JsonObject, os_line, read_json, saving, write_json
from springroll.errors import InputError
from springroll.program import program
from springroll.run.config import RunConfig, from_json, resumed, run_id, stored_id, to_json
from springroll.run.options import renamed_options
from springroll.run.sidecar import saved

C = TypeVar("C", bound=RunConfig)


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run. Made by `create` or `resume`, which check what is there."""

    path: Path  # as it was named
    run_id: str
    root: Path = field(init=False, repr=False)  # the same place, wherever a user's code goes

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.path.absolute())

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def stated(self) -> Path:
        """The same in messages: as the user named it."""
        return self.path / self.config.name

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def answers(self) -> Path:
        return self.root / "answers.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def best(self) -> Path:
        return self.root / "best"

    @property
    def curve(self) -> Path:
        return self.root / "curve.png"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @classmethod
    def create(cls, path: str | Path, config: RunConfig) -> "RunFolder":
        """A new run in `path`, with `config` (a dataclass) written to it.

        Raises:
            InputError: the folder holds a run already, is not empty, or cannot be written.
        """
        path = Path(path)
        cls.refuse_occupied(path)
        folder = cls(path, run_id(config))
        try:
            path.mkdir(parents=True, exist_ok=True)
            # First: from here on the folder is known to hold a run. Of two processes that come to
            # this line together, one is refused.
            write_json(folder.config, folder._described(config), new=True)
            folder.checkpoints.mkdir(exist_ok=True)
        except FileExistsError:
            folder._refuse_used()
        except OSError as error:
            raise InputError(f"cannot write the run folder {os_line(error, path)}") from None
        return folder

    @staticmethod
    def refuse_occupied(path: str | Path) -> None:
        """Raise InputError if a new run cannot be made in `path`: it holds one, or other files."""
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise InputError(f"the run folder {path} is a file; give another --out")
        if (path / "config.json").exists():
            RunFolder(path, "")._refuse_used()
        unfinished = re.compile(r"config\.json(\.\d+)?\.tmp")  # of a process killed at its start
        if path.is_dir() and not all(unfinished.fullmatch(item.name) for item in path.iterdir()):
            raise InputError(
                f"the run folder {path} is not empty and holds no run; give another --out"
            )

    def _refuse_used(self) -> NoReturn:
        raise InputError(
            f"{self.path} already holds a run; continue it with --resume, or give another --out "
            f"(nothing was overwritten)"
        )

    @classmethod
    def resume(cls, path: str | Path) -> "RunFolder":
        """The run that is in `path` already; `read_config` tells its config.

        Raises:
            InputError: there is no run in the folder.
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            state = "holds no run (no config.json)" if path.is_dir() else "does not exist"
            raise InputError(
                f"nothing to resume: {path} {state}; start a run by leaving out --resume"
            )
        folder = cls(path, "")
        return cls(path, str(folder.read_config()["run_id"]))

    def write_config(self, config: RunConfig) -> None:
        """Write the resolved config where it is another: a new budget, or today's names of options.

        Only for whoever holds the lock of the journal.

        Raises:
            InputError: it cannot be written.
        """
        described = self._described(config)
        if self.read_config() != described:
            with saving(self.config):
                write_json(self.config, described)

    def _described(self, config: RunConfig) -> JsonObject:
        """What config.json holds. A run keeps the id of its beginning, also where a later version
        calls options by other names; then the id of what is written stands beside it."""
        now = run_id(config)
        return {
            "run_id": self.run_id,
            **({} if now == self.run_id else {"options_id": now}),
            "command": getattr(config, "command", ""),
            "config": to_json(config),
        }

    def read_config(self) -> JsonObject:
        """The file's `{"run_id": ..., "command": ..., "config": {...}}`.

        Give the last to `config.from_json`. Runs from before there was a second command name none.
        """
        data = read_json(self.config)
        if not isinstance(data.get("run_id"), str) or not isinstance(data.get("config"), dict):
            raise InputError(
                f"{self.stated} is not the config of a run: no 'run_id' and 'config' in it"
            )
        if not isinstance(data.get("options_id", ""), str):
            raise InputError(f"{self.stated} is not the config of a run: a wrong 'options_id'")
        if not isinstance(data.get("command", ""), str):
            raise InputError(f"{self.stated} is not the config of a run: 'command' is not a text")
        return data

    def options(self, kind: type[C]) -> C:
        """The stored config as `kind`; says so when it has options under former names.

        Raises:
            InputError: a key or a value is none of `kind`; the options are not those that the run
                began with.
        """
        data = self.read_config()
        stored, wanted = data["config"], data.get("options_id", data["run_id"])
        notes = renamed_options(kind, stored)[1]
        config = from_json(kind, stored, where=str(self.stated))
        found = stored_id(kind, stored)
        if found != wanted:
            raise InputError(
                f"{self.stated} was changed after the run began: its options are those of run "
                f"{found}, not of {wanted}; restore it, or start a new run with another --out "
                f'(where an earlier version of springroll wrote it so, add "options_id": "{found}")'
            )
        for note in notes:
            print(f"note: {self.stated} is of an earlier version: {note}", file=sys.stderr)
        return config

    def later_than(self, generation: int) -> list[Path]:
        """What says that the run was once further than a generation, the furthest first."""
        found = {}
        for path in [*saved(self.checkpoints), *saved(self.best)]:
            found[path] = int(path.stem)
        with contextlib.suppress(InputError):  # one that cannot be read says nothing
            done = read_json(self.summary).get("generations")
            found[self.summary] = done if isinstance(done, int) else 0
        later = [path for path, done in found.items() if done > generation]
        return sorted(later, key=lambda path: -found[path])


def open_run(config: C, defaults: C) -> tuple[RunFolder, C]:
    """The folder of a run and its config: new ones, or with `resume` those that are stored.

    A resumed run keeps the config it was started with, but for the fields marked `CHANGEABLE` that
    `config` sets to something else than `defaults` (see `config.resumed`). Of a resumed run nothing
    is written here: `run` does that once it holds the lock.

    Raises:
        InputError: the folder is occupied, nothing is there to resume, or it is another run.
    """
    if not config.resume:
        return RunFolder.create(config.out, config), config
    folder = RunFolder.resume(config.out)
    command = folder.read_config().get("command", config.command)
    if command != config.command:
        raise InputError(
            f"{config.out} is a run of springroll {command}; go on with "
            f"{program()} {command} --resume --out {config.out}"
        )
    config = replace(resumed(folder.options(type(config)), config, defaults), out=config.out)
    return folder, config
