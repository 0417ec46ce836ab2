"""What `eval`, `sample` and `explain` know of a run: its config, model and newest weights."""

from typing import TYPE_CHECKING, Any, NamedTuple

from springroll.errors import InputError
from springroll.finetune.config import FinetuneConfig
from springroll.pretrain.config import PretrainConfig
from springroll.rl.config import RLConfig
from springroll.run.folder import RunFolder
from springroll.train.config import TrainConfig

if TYPE_CHECKING:
    from springroll.cli.byte_model import ByteModel

AnyConfig = PretrainConfig | TrainConfig | FinetuneConfig | RLConfig

CONFIGS: dict[str, type[AnyConfig]] = {
    kind.command: kind for kind in (PretrainConfig, TrainConfig, FinetuneConfig, RLConfig)
}


class Trained(NamedTuple):
    """A run as its newest checkpoint left it."""

    config: PretrainConfig | TrainConfig
    model: "ByteModel"
    params: Any
    generation: int
    identity: dict[str, str]  # what it was trained on: the corpus by its hash
    notes: list[str]  # checkpoints passed over, one line each


def open_folder(path: str) -> tuple[RunFolder, AnyConfig]:
    """The folder of a finished or interrupted run, and its config.

    Raises:
        InputError: there is no run in it, or one of a command that this version does not know.
    """
    from pathlib import Path

    if not (Path(path) / "config.json").is_file():
        there = "holds no run (no config.json)" if Path(path).is_dir() else "does not exist"
        raise InputError(f"{path} {there}; give the folder of a run, such as runs/demo")
    folder = RunFolder.resume(path)
    command = folder.read_config().get("command", PretrainConfig.command)
    if command not in CONFIGS:
        raise InputError(f"{folder.config} is of a run of springroll {command}")
    return folder, folder.options(CONFIGS[command])


def load(path: str) -> Trained:
    """The weights of a run's newest whole checkpoint.

    Raises:
        InputError: no run, no checkpoint yet, or one of another model.
    """
    folder, config = open_folder(path)
    if isinstance(config, FinetuneConfig):
        raise InputError(
            f"{path} is a run of springroll finetune, whose model may read other tokens than bytes"
        )
    if isinstance(config, RLConfig):
        raise InputError(f"{path} is a run of springroll rl, whose policy writes no text")

    from springroll.cli.byte_model import byte_model
    from springroll.run.checkpoint import load_newest

    model = byte_model(config)
    found, notes = load_newest(folder.checkpoints, model.saved, prefix=model.prefix)
    if found is None:
        raise InputError(
            f"{path} has no checkpoint that can be read; go on with springroll {config.command} "
            f"--resume --out {path}{''.join(f' ({note})' for note in notes)}"
        )
    identity = found.meta.get("identity", {})
    return Trained(config, model, model.params(found.tree), found.generation, identity, notes)
