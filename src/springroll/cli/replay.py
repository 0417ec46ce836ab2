"""`springroll replay RUN`: rebuild a run's weights from its initial weights and its journal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from springroll.cli.jobs import open_path
from springroll.cli.options import parse
from springroll.errors import InputError
from springroll.run.options import NOT_NEGATIVE, check_ranges, option

if TYPE_CHECKING:
    from springroll.trees import PyTree

DIFFERS = 1  # exit code


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """Rebuild the weights of a run from its first weights and its journal, evaluating nothing.

    Says whether they equal the newest checkpoint bit for bit; the exit code is 1 if they do not.
    """

    run: Annotated[str, tyro.conf.Positional]
    """The folder of a run; it is only read."""
    generations: Annotated[int | None, tyro.conf.arg(aliases=["--to-generation"])] = option(
        None, NOT_NEGATIVE
    )
    """How far to go; default: to the end of the journal."""
    out: str | None = None
    """Write the rebuilt weights to this safetensors file."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(argv: Sequence[str]) -> int:
    """Replay and say how it compares."""
    options = parse(ReplayOptions, argv, prog="springroll replay")
    if options.out is not None and Path(options.out).exists():
        raise InputError(f"{options.out} exists already; give another --out")
    job, opened = open_path(options.run)
    task = job.replay(opened)

    from springroll.run.rebuild import replay

    found = replay(task, opened.folder, generations=options.generations)
    for note in found.notes:
        print(note)
    print(f"rebuilt {options.run} up to generation {found.generation:,} from its journal")
    if found.compared is None:
        print("there is no checkpoint up to there to hold the weights against")
    elif found.equal:
        print(f"equal to the checkpoint of generation {found.compared:,}, bit for bit")
    else:
        print(f"NOT equal to the checkpoint of generation {found.compared:,}:")
        print("\n".join(f"  {path}" for path in found.differing))
    if options.out is not None:
        save_weights(Path(options.out), found.state.params)
        print(f"weights written to {options.out}")
    return DIFFERS if found.differing else 0


def save_weights(path: Path, params: "PyTree") -> None:
    """The parameters, by their paths, as one safetensors file."""
    from safetensors.flax import save

    from springroll.atomic import replacing
    from springroll.trees import named_leaves

    with replacing(path) as file:
        file.write(save(named_leaves(params)))
