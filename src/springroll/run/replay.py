"""Rebuild the weights of a run from its journal: initial state, every fitness, no evaluation.

Bit for bit the weights of training for integer models on any hardware, and for float models on the
same platform, because `ask` and `tell` are the very programs that training ran.
"""

from typing import NamedTuple

from springroll.errors import InputError
from springroll.run import checkpoint
from springroll.run.folder import RunFolder
from springroll.run.journal import Journal
from springroll.run.task import State, Task


class Replay(NamedTuple):
    """What a replay came to."""

    state: State
    generation: int  # up to which it went
    compared: int | None  # the generation of the checkpoint it was held against
    differing: list[str]  # paths of the arrays that are not equal to the checkpoint's, bit for bit
    notes: list[str]  # a torn last record or damaged checkpoint, one line each

    @property
    def equal(self) -> bool:
        """Whether a checkpoint was there and every bit agreed."""
        return self.compared is not None and not self.differing


def replayed(task: Task, journal: Journal, state: State, start: int, end: int) -> State:
    """`state` of generation `start` moved on to `end` by the journal's fitness alone."""
    for generation in range(start, end):
        members = task.ask(state)
        state, _ = task.tell(state, members, journal.read(generation).fitness)
        del members  # else the noise of two generations would be alive at once
    return state


def replay(task: Task, folder: RunFolder, *, generations: int | None = None) -> Replay:
    """Rebuild the state of a run and hold it against the newest checkpoint on the way.

    Args:
        task: the run's task, made from its config.
        folder: the run; only read.
        generations: how far to go; all of the journal by default.

    Raises:
        InputError: the journal is shorter than asked, damaged, or of another run.
    """
    with Journal.read_only(folder.journal) as journal:
        if journal.run_id != folder.run_id:
            raise InputError(
                f"the journal {folder.journal} is of run {journal.run_id}, not of {folder.run_id}"
            )
        end = len(journal) if generations is None else generations
        if not 0 <= end <= len(journal):
            raise InputError(f"generations is {end}; the journal holds {len(journal)}")
        state, _ = task.init()
        loaded, notes = checkpoint.load_newest(
            folder.checkpoints, state, at_most=end, prefix="state"
        )
        if journal.note:
            notes = [journal.note, *notes]
        if loaded is None:
            return Replay(replayed(task, journal, state, 0, end), end, None, [], notes)
        state = replayed(task, journal, state, 0, loaded.generation)
        differing = checkpoint.differing_paths(state, loaded.tree)
        state = replayed(task, journal, state, loaded.generation, end)
        return Replay(state, end, loaded.generation, differing, notes)
