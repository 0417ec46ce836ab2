"""A process of a run that does not lead: it evaluates its members, and writes nothing."""

from springroll.errors import InputError
from springroll.run.config import RunConfig
from springroll.run.folder import RunFolder
from springroll.run.journal import Journal
from springroll.run.rebuild import Start, restore
from springroll.run.share import CARRY, GO, STOP, Share
from springroll.run.signals import Stop
from springroll.run.task import Carry, State, Task


def follow(
    config: RunConfig,
    task: Task,
    share: Share,
    folder: RunFolder | None = None,
    *,
    came_back: bool = False,
) -> None:
    """Do a share of every generation, until the leader ends the run.

    Args:
        config: as the leader has it.
        task: what is trained.
        share: what this process does of it; it does not lead.
        folder: of a run that is gone on with, which is only read; None: the run is new.
        came_back: whether the process was started in the place of one that died in this run; the
            generations that were made are read from the folder.

    Raises:
        ClusterError: the leader is gone.
        InputError: the folder is not the leader's; processes differ.
    """
    start = beginning(config, task, folder)
    state, generation = start.state, start.generation
    carry = share.begin(generation, start.carry)
    del start  # else it would hold on to the first state
    if came_back:
        assert folder is not None
        state, generation, carry = _caught_up(task, share, folder, state, generation, carry)
    with Stop(lambda: None, lambda: None) as stop:
        while (word := share.told()) != STOP:
            if word == GO:
                members = task.ask(state)
                batch = task.batch(generation)
                fitness, carry = share.follow(state, members, carry, batch, stop.signal)
                state, _ = task.tell(state, members, fitness)
                del members  # else the noise of two generations would be alive at once
                generation += 1
            elif word == CARRY:
                share.hand_over(carry)
            else:
                share.answer(state, word)


def beginning(config: RunConfig, task: Task, folder: RunFolder | None) -> Start:
    """What the run starts from, as the leader does."""
    if folder is None:
        return Start(*task.init(), 0, None, {})
    with Journal.read_only(folder.journal) as journal:
        return restore(config, task, folder, journal, lambda line: None)


def _caught_up(
    task: Task, share: Share, folder: RunFolder, state: State, generation: int, carry: Carry
) -> tuple[State, int, Carry]:
    """State and carry of the generation under way, by the fitness that was journaled."""
    now, carry = share.missed(carry)
    with Journal.read_only(folder.journal) as journal:
        if len(journal) < now or generation > now:
            raise InputError(
                f"the run is at {task.iteration} {now}, and {folder.path} as this process sees it "
                f"at {len(journal)}: its disk is not the one of process 0"
            )
        for each in range(generation, now):
            members = task.ask(state)
            carry = share.again(state, members, carry, task.batch(each))
            state, _ = task.tell(state, members, journal.read(each).fitness)
            del members  # else the noise of two generations would be alive at once
    return state, now, carry
