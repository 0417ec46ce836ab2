"""What `eval`, `sample` and `explain` know of a run: its config, model and newest weights."""

from typing import TYPE_CHECKING, Any, NamedTuple

from springroll.errors import InputError
from springroll.train.config import from_json
from springroll.train.pretrain import PretrainConfig
from springroll.train.run_folder import RunFolder

if TYPE_CHECKING:
    from springroll.models.egg import Egg


class Trained(NamedTuple):
    """A run as its newest checkpoint left it."""

    config: PretrainConfig
    model: "Egg"
    params: Any
    generation: int
    identity: dict[str, str]  # what it was trained on: the corpus by its hash
    notes: list[str]  # checkpoints passed over, one line each


def open_folder(path: str) -> tuple[RunFolder, PretrainConfig]:
    """The folder of a finished or interrupted run, and its config.

    Raises:
        InputError: there is no run in it.
    """
    from pathlib import Path

    if not (Path(path) / "config.json").is_file():
        there = "holds no run (no config.json)" if Path(path).is_dir() else "does not exist"
        raise InputError(f"{path} {there}; give the folder of a run, such as runs/demo")
    folder = RunFolder.resume(path)
    stored = folder.read_config()["config"]
    return folder, from_json(PretrainConfig, stored, where=str(folder.config))


def model_of(config: PretrainConfig) -> "Egg":
    """The model a config describes, without its text."""
    from springroll.models.egg import EggConfig, egg
    from springroll.quant.registers import fastest_registers

    return egg(
        EggConfig(
            n_layers=config.n_layers,
            hidden=config.hidden,
            precision=config.precision,
            registers=fastest_registers() if config.integer else "int8",
        )
    )


def load(path: str) -> Trained:
    """The weights of a run's newest whole checkpoint.

    Raises:
        InputError: no run, no checkpoint yet, or one of another model.
    """
    folder, config = open_folder(path)

    import jax

    from springroll.train.checkpoint import load_newest

    model = model_of(config)
    like = jax.eval_shape(model.init, jax.random.key(0))
    found, notes = load_newest(folder.checkpoints, like, prefix="state/params")
    if found is None:
        raise InputError(
            f"{path} has no checkpoint that can be read; go on with springroll pretrain --resume "
            f"--out {path}{''.join(f' ({note})' for note in notes)}"
        )
    identity = found.meta.get("identity", {})
    return Trained(config, model, found.tree, found.generation, identity, notes)
