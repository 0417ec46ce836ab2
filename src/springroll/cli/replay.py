"""`springroll replay RUN`: rebuild a run's weights from its initial weights and its journal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from springroll.cli.options import parse
from springroll.cli.trained import open_folder
from springroll.errors import InputError
from springroll.finetune.config import FinetuneConfig
from springroll.pretrain.config import PretrainConfig
from springroll.rl.config import RLConfig
from springroll.train.config import TrainConfig

if TYPE_CHECKING:
    from springroll.run.task import Task

DIFFERS = 1  # exit code


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """Rebuild the weights of a run from its first weights and its journal, evaluating nothing.

    Says whether they equal the newest checkpoint bit for bit; the exit code is 1 if they do not.
    """

    run: Annotated[str, tyro.conf.Positional]
    """The folder of a run; it is only read."""
    generations: Annotated[int | None, tyro.conf.arg(aliases=["--to-generation"])] = None
    """How far to go; default: to the end of the journal."""
    out: str | None = None
    """Write the rebuilt weights to this safetensors file."""


def run(argv: Sequence[str]) -> int:
    """Replay and say how it compares."""
    options = parse(ReplayOptions, argv, prog="springroll replay")
    if options.out is not None and Path(options.out).exists():
        raise InputError(f"{options.out} exists already; give another --out")
    folder, config = open_folder(options.run)

    if isinstance(config, TrainConfig) or getattr(config, "method", None) in ("grpo", "ppo"):
        raise InputError(
            f"{options.run} was trained by gradients: its journal holds losses, which do not "
            f"determine weights; they are in its checkpoints"
        )

    from springroll.run.replay import replay

    found = replay(task_of(config), folder, generations=options.generations)
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


def task_of(config: PretrainConfig | FinetuneConfig | RLConfig) -> "Task":
    """What the loop trained."""
    if isinstance(config, RLConfig):
        from springroll.rl.job import prepare

        return prepare(config)[1].task
    if isinstance(config, FinetuneConfig):
        from springroll.finetune.job import task_of
        from springroll.finetune.setup import prepare

        return task_of(config, prepare(config))
    from springroll.cpu import use_cpu_devices
    from springroll.pretrain.pretrain import build

    use_cpu_devices(config.devices)
    return build(config).task


def save_weights(path: Path, params: Any) -> None:
    """The parameters, by their paths, as one safetensors file."""
    import jax
    from safetensors.flax import save

    from springroll.atomic import replacing

    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}
    with replacing(path) as file:
        file.write(save(named))
