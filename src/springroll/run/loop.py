"""The training loop, one for every task.

A run goes on from where it was, whatever ended it: after every generation the fitness is in the
journal, and now and then the state and the members' carry are in a checkpoint. On resume the newest
checkpoint is loaded and the generations that the journal is ahead are run again; as everything
follows from state, carry and generation, the run ends with the same bytes as one that was never
disturbed.

The clock of `--seconds` counts training over all resumes: compiling, stepping, logging and saving.
It stands still during validation, so that how often one looks does not change what is trained;
validation takes at most a tenth of the time, saving a twentieth.
"""

from typing import NamedTuple

import numpy as np
from rich.console import Console

from springroll.run.config import RunConfig
from springroll.run.folder import RunFolder
from springroll.run.metrics import Row
from springroll.run.progress import Display
from springroll.run.rebuild import open_journal, restore
from springroll.run.session import Session
from springroll.run.share import Share
from springroll.run.signals import Stop
from springroll.run.task import Carry, State, Task


class Result(NamedTuple):
    """How a run ended."""

    state: State
    carry: Carry
    generation: int  # how many are done
    summary: Row
    signal: int | None  # that stopped it, or None when its budget did

    @property
    def exit_code(self) -> int:
        """What a command returns: 0, or 130 after Ctrl-C (128 + the signal)."""
        return 128 + self.signal if self.signal else 0


def run(
    config: RunConfig,
    task: Task,
    folder: RunFolder,
    *,
    console: Console | None = None,
    share: Share | None = None,
) -> Result:
    """Train until the budget is spent or a signal asks to stop; go on from what the folder holds.

    Args:
        config: budget and intervals.
        task: what to train.
        folder: from `open_run`, or `RunFolder.create` and `RunFolder.resume`.
        console: where progress goes; None prints none.
        share: what this process does of a run that others follow
            (`springroll.run.follow`); None: everything.

    Raises:
        ClusterError: a process is lost.
        InputError: no member has a finite fitness, as often as the task allows; weights, moments or
            steps are not finite; the disk is full; the folder belongs to another model or other
            data, is damaged, or is being written by another process (nothing in it was changed).
    """
    with (
        Display(console=console, iteration=task.iteration) as display,
        Stop(display.stopping, display.release) as stop,
        open_journal(folder) as journal,
    ):
        start = restore(config, task, folder, journal, display.note)
        share = share or Share(task)
        state, carry = start.state, share.begin(start.generation, start.carry)
        with Session(config, task, folder, journal, display, start) as session:
            del start  # else it would hold on to the first state
            if session.generation == 0 or session.candidate():
                session.validate(state, carry)
            batch = task.batch(session.generation)
            while not (stop.signal or share.signal or session.budget_spent()):
                share.go_on()
                members = task.ask(state)
                scores, carry, scored = share.evaluate(state, members, carry, batch)
                batch = task.batch(session.generation + 1)  # while the device is busy
                fitness = session.settle(np.asarray(scores))
                share.settled(fitness)
                state, step_metrics = task.tell(state, members, fitness)
                del members  # else the noise of two generations would be alive at once
                session.record(fitness, {**scored, **step_metrics})
                if session.log_due():
                    session.log()
                if session.eval_due() or session.candidate():
                    session.validate(state, carry)
                if session.save_due():
                    share.compare(state)
                    session.save(state, share.whole(carry))
            share.compare(state)
            carry = share.whole(carry)
            share.end()
            signal = stop.signal or share.signal
            session.finish(state, carry, signal)
    return Result(state, carry, session.generation, session.summary(), signal)
