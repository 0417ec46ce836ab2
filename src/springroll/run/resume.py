"""Where a run goes on: its newest whole checkpoint, and what the journal knows beyond it."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from springroll.atomic import JsonObject
from springroll.errors import InputError
from springroll.run import checkpoint
from springroll.run.config import RunConfig
from springroll.run.folder import RunFolder
from springroll.run.journal import Journal
from springroll.run.progress import counted
from springroll.run.replay import replayed
from springroll.run.task import Carry, State, Task, Training


class Start(NamedTuple):
    """The first generation to run, and what it starts from."""

    state: State
    carry: Carry
    generation: int
    saved: int | None  # the generation of the checkpoint it comes from
    meta: JsonObject  # what the session before had counted; empty for a new run


def restore(
    config: RunConfig,
    task: Task,
    folder: RunFolder,
    journal: Journal,
    say: Callable[[str], None],
) -> Start:
    """The state to go on from; a new run's is `task.init()`.

    A checkpoint ahead of the journal (the journal's end was lost) is passed over: its generations
    are run again, so that journal and weights keep telling the same story. When members keep
    nothing between generations, those the journal is ahead are told again without being evaluated.

    Args:
        say: is given one line for everything out of the ordinary.

    Raises:
        InputError: the checkpoint is of another model, run or corpus.
    """
    if journal.note:
        say(journal.note)
    loaded = None
    if checkpoint.saved(folder.checkpoints):
        template = Training(*(task.template or task.init)())
        loaded, notes = checkpoint.load_newest(folder.checkpoints, template, at_most=len(journal))
        del template  # else it would hold on to arrays that are not needed
        for note in notes:
            say(note)
    generation, saved, meta = 0, None, {}
    if loaded is None:
        state, carry = task.init()
    else:
        state, carry = loaded.tree
        generation = saved = loaded.generation
        meta = loaded.meta
        _refuse_others(task, folder, meta)
    if not jax.tree.leaves(carry) and generation < len(journal):
        end = len(journal) if config.generations is None else min(len(journal), config.generations)
        state = replayed(task, journal, state, generation, end)
        generation = max(generation, end)
    if len(journal):
        ahead = f", {counted(len(journal) - generation, task.iteration)} behind the journal"
        say(
            f"going on with {folder.path} at {task.iteration} {generation}"
            f"{ahead if len(journal) > generation else ''}"
        )
    return Start(state, carry, generation, saved, meta)


def _refuse_others(task: Task, folder: RunFolder, meta: JsonObject) -> None:
    if meta["run_id"] != folder.run_id:
        raise InputError(
            f"the checkpoints in {folder.checkpoints} are of run {meta['run_id']}, "
            f"the folder is of run {folder.run_id}; restore them, or start a new run"
        )
    for name, value in task.identity.items():
        there = meta["identity"].get(name)
        if there != value:
            raise InputError(
                f"the {name} is {value}, but the run in {folder.path} began with {there}; "
                f"give it what it began with, or start a new run with another --out"
            )
