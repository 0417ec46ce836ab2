"""The weights of a run, read from its checkpoints."""

from typing import NamedTuple

from springroll.errors import InputError
from springroll.run.checkpoint import load_newest
from springroll.run.job import C, OpenRun, SavedWeights
from springroll.trees import PyTree


class Weights(NamedTuple):
    """What a run learnt, on the device."""

    params: PyTree
    generation: int
    identity: dict[str, str]  # what it was trained on: a corpus by its hash
    notes: list[str]  # checkpoints passed over, one line each


def load_weights(run: OpenRun[C], saved: SavedWeights, *, best: bool = False) -> Weights:
    """The newest weights of a run; with `best` those that validated best.

    Raises:
        InputError: there is no checkpoint that can be read, or one of another model.
    """
    where = run.folder.best if best else run.folder.checkpoints
    loaded, notes = load_newest(where, saved.part, prefix=saved.prefix)
    if loaded is None:
        raise no_checkpoint(run, notes)
    identity = loaded.meta.get("identity", {})
    for name, now in (saved.identity or {}).items():
        if identity.get(name) != now:
            raise run.refused(
                f"whose {name} is not what it began with any more ({saved.like}): its checkpoints "
                f"hold what was added to that; restore it"
            )
    return Weights(saved.params(loaded.tree), loaded.generation, identity, notes)


def no_checkpoint(run: OpenRun[C], notes: list[str]) -> InputError:
    """The error where a run has no checkpoint that can be read."""
    why = "".join(f" ({note})" for note in notes)
    return InputError(
        f"{run.path} has no checkpoint that can be read; go on with springroll "
        f"{run.config.command} --resume --out {run.path}{why}"
    )
