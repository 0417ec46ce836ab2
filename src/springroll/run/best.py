"""The weights that validated best, chosen by generations and not by the clock.

Validations come by the clock, so that which ones there are is another matter in every sitting. What
is kept in `best/` is therefore the best of fixed generations: 0, every so many, and further apart
as the run goes on. A resumed run keeps the same ones, with the same bytes.

The last generation of a sitting is validated too. Where it is better it stands beside the best of
the fixed ones, marked as passing: if the run goes on, it makes way.
"""

import math
from collections.abc import Callable
from pathlib import Path

from springroll.run import checkpoint
from springroll.run.sidecar import Damaged, read_sidecar, saved
from springroll.run.task import Task

EVERY = 10  # generations at least between two that may become the best
SHARE = 0.1  # of what training takes, which validating them may take
DOUBLING = 32  # so many of them, and they are twice as far apart

Store = Callable[[Path, dict[str, float | bool], int], None]
"""(folder, meta, keep) -> None: saves the state of this generation."""


def spacing(task: Task) -> int:
    """Generations between two that may become the best, at first."""
    return max(EVERY, math.ceil(task.validation_tokens / (SHARE * max(task.tokens, 1))))


def fixed(generation: int, spacing: int) -> bool:
    """Whether a generation may become the best, whatever the clock says.

    >>> [g for g in range(100) if fixed(g, 10)]
    [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    >>> [g for g in range(600, 700) if fixed(g, 10)]
    [600, 620, 640, 680]
    """
    count, rest = divmod(generation, spacing)
    apart = 1 << max(0, count.bit_length() - DOUBLING.bit_length() + 1)
    return not rest and count % apart == 0


class Best:
    """The folder `best/` of a run.

    Args:
        folder: where it is.
        task: which figure counts, and how often it is looked at.

    Raises:
        InputError: what is there was changed after it was written.
    """

    def __init__(self, folder: Path, task: Task):
        self._folder, self._spacing = folder, spacing(task)
        self._name = task.curve.valid
        self._keeps = task.keep_best and task.validate is not None
        self._figure = max(
            (meta["figure"] for meta in self._metas().values() if not meta.get("passing")),
            default=-math.inf,
        )

    def due(self, generation: int) -> bool:
        """Whether a generation has to be validated."""
        return self._keeps and fixed(generation, self._spacing)

    def consider(self, generation: int, figures: dict, store: Store) -> None:
        """Keep a generation that was validated, if it is a fixed one and the best so far."""
        figure = _figure(figures.get(self._name))
        if self.due(generation) and figure > self._figure:
            store(self._folder, {"figure": figure}, 1)
            self._figure = figure

    def close(self, generation: int, figures: dict, store: Store) -> None:
        """At the end of a sitting: keep the last generation too where it is better."""
        if self._keeps:
            self.tidy(passing=generation)
            figure = _figure(figures.get(self._name))
            if generation not in self._metas() and figure > self._figure:
                store(self._folder, {"figure": figure, "passing": True}, 2)

    def kept(self) -> tuple[int, float] | None:
        """The generation whose weights `--best` takes, and its figure."""
        metas = self._metas() if self._keeps else {}
        return max(((at, float(meta["figure"])) for at, meta in metas.items()), default=None)

    def tidy(self, passing: int | None = None) -> None:
        """Remove what is superseded, as a kill may come before that is done.

        Args:
            passing: the only generation whose passing checkpoint stays; None: any that is the best.
        """
        metas = self._metas()
        best = max((at for at, meta in metas.items() if not meta.get("passing")), default=-1)
        stale = {
            at
            for at, meta in metas.items()
            if at < best or (meta.get("passing") and passing not in (None, at))
        }
        if self._folder.is_dir():
            stay = (path.stem for path in saved(self._folder) if int(path.stem) not in stale)
            checkpoint.clear(self._folder, set(stay))

    def _metas(self) -> dict[int, dict]:
        """What is known of the checkpoints there that can be read, by generation."""
        found = {}
        for sidecar in saved(self._folder):
            try:
                meta = read_sidecar(sidecar)["meta"]
            except Damaged:
                continue
            figure = meta.get("figure")
            if isinstance(figure, int | float) and abs(figure) < 2**63:  # NaN is not
                found[int(sidecar.stem)] = meta
        return found


def _figure(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value
