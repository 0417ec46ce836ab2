"""When a run is stopped because what it computes is not finite.

Fitness is counted in every generation, as it is on the host anyway; steps when a log fetches their
figures; weights and moments before they are saved (see `finite.py`). None of it costs a pass over
the weights.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from springroll.errors import InputError
from springroll.run.task import Metrics, Task

STEPS = ("step_ratio", "grad_norm")  # figures that are not finite where a step is not
BEYOND_SENSE = 1e6  # |step| / |weights|: nothing is left of weights that such a step was added to
SMALLER = "try a smaller {}"


class Guard:
    """What was lost so far.

    Args:
        task: how much may be.
        checkpoints: their folder, for messages.
        meta: what the sitting before had counted.
    """

    def __init__(self, task: Task, checkpoints: Path, meta: Mapping[str, int]):
        self._task, self._checkpoints = task, checkpoints
        self.dropped = meta.get("dropped", 0)  # members whose fitness was not finite
        self.lost_in_a_row = meta.get("lost_in_a_row", 0)  # generations without a finite fitness
        self._stuck_in_a_row = 0  # generations whose step was not finite
        self.saved: int | None = None  # the newest checkpoint

    def count(self, fitness: np.ndarray) -> None:
        """Count a generation's fitness."""
        if fitness.dtype.kind == "f":
            lost = int(fitness.size - np.count_nonzero(np.isfinite(fitness)))
            self.dropped += lost
            self.lost_in_a_row = self.lost_in_a_row + 1 if lost == fitness.size else 0

    def look_at_fitness(self, generation: int, fitness: np.ndarray) -> None:
        """Count it; InputError where none is finite, in too many generations in a row."""
        self.count(fitness)
        limit, members = self._task.lost_limit, fitness.size
        if self.lost_in_a_row >= limit:
            whose = "the loss" if members == 1 else f"the fitness of all {members} members"
            times = f" for {limit} {self._task.iteration}s in a row" if limit > 1 else ""
            smaller = "learning rate" if members == 1 else "sigma or learning rate"
            remedy = self._task.unscored() or SMALLER.format(smaller)
            raise self.stopped(generation, f"{whose} is NaN or infinite{times}", remedy)

    def look_at_steps(self, generation: int, figures: Sequence[Metrics]) -> None:
        """InputError where steps were not finite, in too many generations in a row, or where one
        was so long that it replaced the weights.

        Args:
            generation: for the message.
            figures: of the generations since the last look, on the host.
        """
        for found in figures:
            wrong = [name for name in STEPS if not math.isfinite(found.get(name, 0.0))]
            self._stuck_in_a_row = self._stuck_in_a_row + 1 if wrong else 0
            if self._stuck_in_a_row >= self._task.lost_limit:
                why = f"{wrong[0]} is NaN or infinite"
                raise self.stopped(generation, why, SMALLER.format("learning rate"))
            ratio = float(found.get("step_ratio", 0.0))
            if BEYOND_SENSE < ratio < math.inf:
                why = f"a step was {ratio:.3g} times as long as the weights"
                raise self.stopped(generation, why, SMALLER.format("learning rate"))

    def look_at_end(self, generations: int) -> None:
        """InputError where the end of a short run and half of it were lost: its weights are worth
        nothing."""
        limit = min(self._task.lost_limit, max(1, generations // 2))
        if max(self.lost_in_a_row, self._stuck_in_a_row) >= limit:
            why = f"the last {self._task.iteration}s had no finite fitness or step"
            remedy = self._task.unscored() or SMALLER.format("learning rate")
            raise self.stopped(generations, why, remedy)

    def stopped(self, generation: int, why: str, remedy: str) -> InputError:
        """The error that ends the run."""
        saved = "none was saved yet" if self.saved is None else f"the newest is {self.saved}"
        return InputError(
            f"{self._task.iteration} {generation}: {why}; stopped, the checkpoints in "
            f"{self._checkpoints} are kept ({saved}); {remedy}"
        )
