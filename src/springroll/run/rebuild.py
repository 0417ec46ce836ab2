"""A run's state out of its folder: where it goes on, and its weights from the journal alone.

Replayed are, bit for bit, the weights of training: for integer models on any hardware, for float
models on the same platform, because `ask` and `tell` are the very programs that training ran.
"""

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
from springroll.run.task import Carry, State, Task, Training

COUNTED = {  # in the meta of a checkpoint
    *("seconds", "steady_seconds", "steady_generations", "tokens", "steady_tokens"),
    *("dropped", "lost_in_a_row", "peak_memory_bytes"),
}


class Start(NamedTuple):
    """The first generation to run, and what it starts from."""

    state: State
    carry: Carry
    generation: int
    saved: int | None  # the generation of the checkpoint it comes from
    meta: JsonObject  # what the session before had counted; empty for a new run


def open_journal(folder: RunFolder) -> Journal:
    """The journal of a run, locked; nothing in the folder is changed.

    Raises:
        InputError: another process has it; it is lost, or shorter than what stands beside it says.
    """
    if not folder.journal.exists():
        _refuse_lost(folder, 0, "is missing")
    journal = Journal.open(folder.journal, folder.run_id)
    try:
        _refuse_lost(folder, len(journal), f"holds {counted(len(journal), 'generation')}")
    except BaseException:
        journal.close()
        raise
    return journal


def _refuse_lost(folder: RunFolder, generations: int, state: str) -> None:
    later = folder.later_than(generations)
    if later:
        names = ", ".join(str(path.relative_to(folder.root)) for path in later)
        raise InputError(
            f"the journal {folder.journal} {state}, but the run was further: {names}; restore the "
            f"journal from a copy, or, to run again what it lacks, move those away (nothing was "
            f"changed)"
        )


def restore(
    config: RunConfig,
    task: Task,
    folder: RunFolder,
    journal: Journal,
    say: Callable[[str], None],
) -> Start:
    """The state to go on from; a new run's is `task.init()`.

    Nothing in the folder is changed. When members keep nothing between generations, those that the
    journal is ahead are replayed without evaluation.

    Args:
        say: is given one line for everything out of the ordinary.

    Raises:
        InputError: the checkpoint is of another model, run or corpus; the journal is of another
            seed or population.
    """
    if journal.note:
        say(journal.note)
    if journal.kind is not None:
        journal.refuse_other(journal.kind._replace(seed=task.seed, members=task.pop_size))
    loaded = None
    if checkpoint.saved(folder.checkpoints):
        template = Training(*(task.template or task.init)())
        loaded, notes = checkpoint.load_newest(folder.checkpoints, template)
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
        _refuse_others(task, folder, journal, meta)
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


def _refuse_others(task: Task, folder: RunFolder, journal: Journal, meta: JsonObject) -> None:
    if meta.get("run_id") != folder.run_id:
        raise InputError(
            f"the checkpoints in {folder.checkpoints} are of run {meta.get('run_id')}, "
            f"the folder is of run {folder.run_id}; restore them, or start a new run"
        )
    if journal.kind is not None and meta.get("dtype") not in (None, journal.kind.dtype):
        journal.refuse_other(journal.kind._replace(dtype=str(meta["dtype"])))
    for name in COUNTED & meta.keys():
        if not isinstance(meta[name], int | float) or not 0 <= meta[name] < 2**63:
            raise InputError(
                f"the checkpoint in {folder.checkpoints} has {name} {meta[name]!r}; restore it, or "
                f"move it away to take the one before it"
            )
    identity = meta.get("identity")
    for name, value in task.identity.items():
        stored = identity.get(name) if isinstance(identity, dict) else None
        if stored != value:
            raise InputError(
                f"the {name} is {value}, but the run in {folder.path} began with {stored}; "
                f"give it what it began with, or start a new run with another --out"
            )


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
        # Programs of several CPU devices in flight together can wait for each other for ever.
        jax.block_until_ready(state)
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
        if journal.kind is not None:
            journal.refuse_other(journal.kind._replace(seed=task.seed, members=task.pop_size))
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
