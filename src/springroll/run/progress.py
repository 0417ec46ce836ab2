"""What a run shows: a live table on a terminal, a plain line every few seconds elsewhere."""

import time
from collections.abc import Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

TIMES = ("left", "time")  # figures that change while nothing is done
PLAIN_EVERY = 5.0  # seconds between two lines where nothing can be drawn over


class Display:
    """Shows rows of figures as they come; `note` prints a line that stays.

    Args:
        console: where to draw; None: nowhere.
        every: seconds between two plain lines.
        iteration: what one turn of the loop is called.
    """

    def __init__(
        self,
        *,
        console: Console | None = None,
        every: float = PLAIN_EVERY,
        iteration: str = "generation",
    ):
        self.console = console or Console(quiet=True)
        self._every, self._iteration = every, iteration
        self._shown = -float("inf")
        self._last: dict[str, str] = {}  # figures of the last plain line, without times
        self._live = None
        if self.console.is_terminal:
            self._live = Live(
                "compiling", console=self.console, transient=True, refresh_per_second=4
            )

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def note(self, text: str) -> None:
        """One line that stays on the screen."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stopping(self) -> None:
        """Say that the stop that was asked for is under way."""
        self.note(f"stopping after this {self._iteration}; Ctrl-C again to stop at once")

    def release(self) -> None:
        """Give the terminal its cursor back, for an end without `__exit__`."""
        self.console.show_cursor()

    def show(self, done: float | None, figures: Mapping[str, str], *, force: bool = False) -> None:
        """Draw the newest figures; on a plain output, at most one line every few seconds.

        Args:
            done: how far the run is, from 0 to 1; None when it has no end.
            figures: text by name, in the order to show them in.
            force: print the plain line now, on a terminal too, where it stays; unless it was the
                last one already.
        """
        if self._live:
            self._live.update(_table(done, figures))
        if force or (not self._live and time.monotonic() - self._shown >= self._every):
            self._shown = time.monotonic()
            lasting = {name: text for name, text in figures.items() if name not in TIMES}
            if force and lasting == self._last:
                return
            self._last = lasting
            self.note("  ".join(f"{name} {value}" for name, value in figures.items()))


def _table(done: float | None, figures: Mapping[str, str]) -> Group:
    """Names over figures over a bar; 80 columns hold eight of them."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row(*figures, style="dim")
    table.add_row(*figures.values())
    return Group(table) if done is None else Group(table, ProgressBar(total=1.0, completed=done))


def counted(count: int, word: str) -> str:
    """A number of things: '1 generation', '1,500 steps'.

    >>> counted(1, "generation"), counted(1500, "step")
    ('1 generation', '1,500 steps')
    """
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def si(value: float) -> str:
    """A number with three digits and a unit prefix: 690000 is '690k', 5 is '5'."""
    for power, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power * 0.9995:
            return f"{value / power:.3g}{prefix}"
    return f"{value:.3g}"


def gibibytes(value: float) -> str:
    """Bytes in the smallest binary unit in which three digits suffice: '1.5 GiB', '0.996 GiB'."""
    for power, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if value >= power * 999.5 / 1024:
            return f"{value / power:.3g} {unit}"
    return f"{value / 1024:.3g} KiB"


def clock(seconds: float) -> str:
    """Seconds as '2:05' or '1:02:05'."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
