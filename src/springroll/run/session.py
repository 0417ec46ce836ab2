"""One sitting of a run: what it counts, when it logs, validates, saves, and what it writes."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from springroll.atomic import saving, write_json
from springroll.errors import InputError
from springroll.run import checkpoint
from springroll.run.answers import Answers
from springroll.run.best import Best, Store
from springroll.run.clocks import Clock, Stopwatch
from springroll.run.config import RunConfig
from springroll.run.curve import draw_curve
from springroll.run.finite import NotFinite
from springroll.run.folder import RunFolder
from springroll.run.guard import SMALLER, Guard
from springroll.run.journal import Journal
from springroll.run.metrics import MetricsFile, Row, peak_memory_bytes, read_rows
from springroll.run.progress import Display, clock, gibibytes, si
from springroll.run.rebuild import Start
from springroll.run.task import Carry, Metrics, Scalar, State, Task, Training

SAVE_SHARE = 0.05  # of the time: small models are saved at nearly every generation
EVAL_SHARE = 0.10
ANSWERS_EVERY = 60.0  # seconds between two times that answers are shown
WINDOW = 256  # generations at most whose figures are averaged between two logs


class Session:
    """Everything around the three calls of a generation. Made, it has read all that there is to
    read; entered, it writes, and holds the metrics files open.

    Args:
        config: budget and intervals.
        task: what is trained.
        folder: where files go.
        journal: open for appending.
        display: where progress is shown.
        start: the state to go on from.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        folder: RunFolder,
        journal: Journal,
        display: Display,
        start: Start,
    ):
        self.generation, meta = start.generation, start.meta
        self._config, self._task, self._folder = config, task, folder
        self._journal, self._display = journal, display
        self._watch = Stopwatch(meta.get("seconds", 0.0))
        # Without the first generation of a sitting, which compiles.
        self._steady_seconds = meta.get("steady_seconds", 0.0)
        self._steady_generations = meta.get("steady_generations", 0)
        self._guard = Guard(task, folder.checkpoints, meta)
        for told in range(start.saved or 0, start.generation):  # from the journal alone
            self._guard.count(journal.read(told).fitness)
        self._peak = meta.get("peak_memory_bytes", 0)
        self._tokens = meta.get("tokens", self.generation * task.tokens)
        self._steady_tokens = meta.get("steady_tokens", self._steady_generations * task.tokens)
        self._log_clock = Clock(self._watch, config.log_every)
        self._eval_clock = Clock(self._watch, config.eval_every, share=EVAL_SHARE, compiles=True)
        self._save_clock = Clock(self._watch, 0.0, share=SAVE_SHARE)
        self._window: deque[Metrics] = deque(maxlen=WINDOW)
        # Where the last log left off.
        self._logged = (self.generation, self._tokens, self._watch())
        self._ended = self._watch()  # of the last generation
        self._row: Row = {}  # of the last log
        self._first = True
        self._warned = False
        self._guard.saved = start.saved
        self._best = Best(folder.best, task)
        showing = Clock(self._watch, ANSWERS_EVERY)
        self._answers = Answers(folder.answers, self._best.due, display.note, showing)
        self._validated: int | None = None
        read_rows(folder.metrics)  # what cannot be read is refused before anything is written

    def __enter__(self) -> "Session":
        self._folder.write_config(self._config)
        with saving(self._journal.path):
            self._journal.begin()
        with saving(self._folder.best):
            self._best.tidy()
        with saving(self._folder.answers):
            self._answers.begin(self.generation)
        with saving(self._folder.metrics):
            self._metrics = MetricsFile(
                self._folder.metrics, self._folder.tensorboard, after=self.generation
            )
        self._validated = self._metrics.newest_at.get(self._task.curve.valid)
        # Generations that were told from the journal alone were counted before.
        self._tokens = max(self._tokens, int(self._metrics.newest.get(self._task.unit) or 0))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with saving(self._folder.metrics):
                self._metrics.close()
        except InputError:
            if kind is None:  # else what ended the run is what is told
                raise

    def budget_spent(self) -> bool:
        """Whether the generations or the seconds of the config are used up."""
        generations, seconds = self._config.generations, self._config.seconds
        return (generations is not None and self.generation >= generations) or (
            seconds is not None and self._watch() >= seconds
        )

    def log_due(self) -> bool:
        return self._log_clock.due()

    def eval_due(self) -> bool:
        return self._task.validate is not None and self._eval_clock.due()

    def save_due(self) -> bool:
        return self._save_clock.due()

    def candidate(self) -> bool:
        """Whether the weights of this generation may become the best, and were not validated."""
        return self._best.due(self.generation) and self._validated != self.generation

    def settle(self, fitness: np.ndarray) -> np.ndarray:
        """The fitness to tell: the computed one, or the journal's where it has this generation.

        Raises:
            InputError: not one member has a finite fitness, in too many generations in a row.
        """
        if self.generation < len(self._journal):
            recorded = self._journal.read(self.generation).fitness
            if fitness.dtype != recorded.dtype or fitness.shape != recorded.shape:
                raise InputError(
                    f"the journal {self._journal.path} holds a fitness of {recorded.dtype}"
                    f"{list(recorded.shape)} for {self._task.iteration} {self.generation}, where "
                    f"{fitness.dtype}{list(fitness.shape)} was computed; restore the file"
                )
            if fitness.tobytes() != recorded.tobytes():
                self._warn_of_difference()
            fitness = recorded
        self._guard.look_at_fitness(self.generation, fitness)
        return fitness

    def record(self, fitness: np.ndarray, figures: Metrics) -> None:
        """Close a generation: fitness to the journal, figures to the next log."""
        if self.generation == len(self._journal):
            with saving(self._journal.path):
                self._journal.append(self.generation, self._task.seed, fitness)
        tokens = int(figures.get(self._task.unit, self._task.tokens))
        self._window.append({k: v for k, v in figures.items() if k != self._task.unit})
        self.generation += 1
        self._tokens += tokens
        now = self._watch()
        if not self._first:
            self._steady_seconds += now - self._ended
            self._steady_generations += 1
            self._steady_tokens += tokens
        self._first = False
        self._ended = now
        self._warn()

    def log(self) -> None:
        """Write and show the figures since the last log.

        Raises:
            InputError: no step was finite, in too many generations in a row; the disk is full.
        """
        with self._log_clock.spending():
            fetched = jax.device_get(list(self._window))
            now = self._watch()
            before, read, then = self._logged
            self._logged = (self.generation, self._tokens, now)
            per_second = 1 / (now - then) if now > then else 0.0
            self._row = row = {
                **_means(fetched),
                **self._counted(now),
                f"{self._task.unit}_per_second": per_second * (self._tokens - read),
                "members_per_second": per_second * (self.generation - before) * self._task.pop_size,
            }
            self._window.clear()
            self._write(row)
            self._show(row)
            self._guard.look_at_steps(self.generation, fetched)

    def _write(self, row: Row) -> None:
        with saving(self._folder.metrics):
            self._metrics.write(row)

    def validate(self, state: State, carry: Carry) -> None:
        """Score the weights themselves; the training clock stands still meanwhile."""
        if self._task.validate is None or self._validated == self.generation:
            return
        jax.block_until_ready((state, carry))  # what is still being trained is not validation
        with self._eval_clock.spending(), self._watch.pause():
            figures = {
                name: _number(value) for name, value in self._task.validate(state, carry).items()
            }
            # First, so that whatever is in the metrics was looked at.
            self._best.consider(self.generation, figures, self._storing(state, carry))
            with saving(self._folder.answers):
                title = f"held-out answers of {self._task.iteration} {self.generation}:"
                self._answers.keep(self.generation, self._task.answers(), title)
            self._write({**self._counted(self._watch()), **figures})
            self._validated = self.generation
            self._warn()

    def _warn(self) -> None:
        """Say what was not said before in this run."""
        for name, line in self._task.warnings().items():
            named = f"warning_{name}"
            if self._metrics.newest.get(named) is None:
                self._display.note(f"warning: {line}")
                self._write({**self._counted(self._watch()), named: line})

    def _storing(self, state: State, carry: Carry) -> Store:
        part = self._task.weights
        return lambda folder, meta, keep: self._store(folder, state, carry, meta, keep, part)

    def save(self, state: State, carry: Carry) -> None:
        """Write a checkpoint; what it says was done is in the journal before."""
        jax.block_until_ready((state, carry))
        with self._save_clock.spending():
            meta = {
                "seconds": self._watch(),
                "steady_seconds": self._steady_seconds,
                "steady_generations": self._steady_generations,
                "tokens": self._tokens,
                "steady_tokens": self._steady_tokens,
                "dropped": self._guard.dropped,
                "lost_in_a_row": self._guard.lost_in_a_row,
                "peak_memory_bytes": self._peak_memory(),
            }
            if self._journal.kind is not None:
                meta["dtype"] = self._journal.kind.dtype
            self._store(self._folder.checkpoints, state, carry, meta, 2)
            self._guard.saved = self.generation

    def _store(
        self, folder: Path, state: State, carry: Carry, meta: dict, keep: int, part: str = ""
    ) -> None:
        """Save a checkpoint; never one that is not finite, or is ahead of the journal."""
        meta |= {"run_id": self._folder.run_id, "identity": dict(self._task.identity)}
        tree, guarded = Training(state, carry), self._task.guarded
        if guarded is None:
            guarded = "state/" if jax.tree.leaves(state) else "carry/"
        try:
            with saving(folder):
                self._journal.sync()
                options = {"keep": keep, "finite": guarded, "part": part}
                checkpoint.save(folder, self.generation, tree, meta, **options)
        except NotFinite as found:
            remedy = SMALLER.format("learning rate or sigma")
            raise self._guard.stopped(self.generation, str(found), remedy) from None

    def finish(self, state: State, carry: Carry, signal: int | None) -> None:
        """The last save, validation (unless stopped), curve and summary."""
        if self._guard.saved != self.generation:
            self.save(state, carry)
        if signal is None:
            self.validate(state, carry)
            with saving(self._folder.best):
                newest, store = self._metrics.newest, self._storing(state, carry)
                self._best.close(self.generation, newest, store)
        if self._window:
            self.log()
        self._answers.show()
        if self._row:
            self._show(self._row, last=True)
        self._guard.look_at_end(self.generation)
        curve = self._task.curve
        with saving(self._folder.curve):
            draw_curve(
                self._folder.curve,
                read_rows(self._folder.metrics),
                train=curve.train,
                valid=curve.valid,
                label=curve.label,
                lines=curve.lines,
                title=curve.title,
                unit=self._task.unit,
            )
        with saving(self._folder.summary):
            write_json(self._folder.summary, self.summary())
        if signal is not None:
            self._display.note(
                f"stopped at {self._task.iteration} {self.generation}, all saved; "
                f"go on with --resume --out {self._folder.path}"
            )

    def summary(self) -> Row:
        """The run in a dozen figures: the newest of each training figure, and the counts.

        The speed leaves out validation and the first generation of every sitting, which
        compiles; where there was no other, it is that of the whole run.
        """
        newest = {
            name: value for name, value in self._metrics.newest.items() if name != "generation"
        }
        seconds, generations, tokens = (
            (self._steady_seconds, self._steady_generations, self._steady_tokens)
            if self._steady_seconds
            else (self._watch(), self.generation, self._tokens)
        )
        per_second = 1 / seconds if seconds else 0.0
        valid, best = self._task.curve.valid, self._best.kept()
        first = self._metrics.first.get(valid)
        return {
            **newest,
            **({} if first is None else {f"first_{valid}": first}),
            **({} if best is None else {"best_generation": best[0], f"best_{valid}": best[1]}),
            **self._task.summary,
            f"{self._task.unit}_per_second": per_second * tokens,
            "members_per_second": per_second * generations * self._task.pop_size,
            "peak_memory_bytes": self._peak_memory(),
            "seconds": self._watch(),
            "generations": self.generation,
        }

    def _counted(self, now: float) -> Row:
        return {
            "generation": self.generation,
            "seconds": now,
            self._task.unit: self._tokens,
            "dropped": self._guard.dropped,
            "peak_memory_bytes": self._peak_memory(),
        }

    def _fraction(self) -> float | None:
        """How much of the budget is used, from 0 to 1; None when there is none."""
        parts = []
        if self._config.generations:
            parts.append(self.generation / self._config.generations)
        if self._config.seconds:
            parts.append(self._watch() / self._config.seconds)
        return min(1.0, max(parts)) if parts else None

    def _seconds_left(self) -> float | None:
        left = []
        if self._config.seconds is not None:
            left.append(self._config.seconds - self._watch())
        if self._config.generations is not None and self._steady_seconds:
            rate = self._steady_generations / self._steady_seconds
            left.append((self._config.generations - self.generation) / rate)
        return min(left, default=None)

    def _show(self, row: Row, *, last: bool = False) -> None:
        curve = self._task.curve
        figures = {self._task.iteration: str(self.generation)}
        if row.get(curve.train) is not None:
            figures[curve.short] = f"{row[curve.train]:.3f}"
        if self._metrics.newest.get(curve.valid) is not None:
            figures["valid"] = f"{self._metrics.newest[curve.valid]:.3f}"
        unit = self._task.unit
        figures[f"{unit.removeprefix('env_')}/s"] = si(row[f"{unit}_per_second"])
        if self._task.pop_size > 1:
            figures["members/s"] = si(row["members_per_second"])
        figures["memory"] = gibibytes(row["peak_memory_bytes"])
        if self._guard.dropped:
            figures["dropped"] = str(self._guard.dropped)
        left = self._seconds_left()
        figures["left" if left is not None else "time"] = clock(
            self._watch() if left is None else left
        )
        self._display.show(self._fraction(), figures, force=last)

    def _peak_memory(self) -> int:
        self._peak = max(self._peak, peak_memory_bytes())
        return self._peak

    def _warn_of_difference(self) -> None:
        if not self._warned:
            self._warned = True
            self._display.note(
                f"{self._task.iteration} {self.generation}: the fitness computed now is not the "
                f"journal's (another device, library or corpus?); the journal's is used"
            )


def _means(fetched: Sequence[Metrics]) -> Row:
    """The mean of every figure over the generations that have it."""
    names = dict.fromkeys(name for figures in fetched for name in figures)
    return {
        name: float(np.mean([np.float64(f[name]) for f in fetched if name in f])) for name in names
    }


def _number(value: Scalar) -> float | int:
    return value if isinstance(value, float | int) else value.item()
