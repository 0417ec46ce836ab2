"""What a training step needs in memory, from the compiler, and what there is.

XLA plans every buffer of a program before it runs. Its plan says the peak to the byte without
allocating anything, so a job that cannot fit is refused before it starts.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from springroll.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Memory:
    """The buffers of one training step, in bytes."""

    weights: int
    state: int  # of the optimizer: moments, projectors, counters
    batch: int
    gradients: int  # that are alive together
    activations: int  # the compiler's temporary memory without the gradients
    peak: int  # arguments, temporary memory, and outputs that take no argument's place

    def table(self) -> "Table":
        """The bytes by kind."""
        from rich.table import Table

        from springroll.train.progress import gibibytes

        table = Table("memory of a step", "bytes", title_justify="left")
        table.columns[1].justify = "right"
        for name in ("weights", "gradients", "state", "activations"):
            table.add_row(name, gibibytes(getattr(self, name)))
        table.add_section()
        table.add_row("peak", gibibytes(self.peak))
        return table


def step_memory(compiled: Any, *, weights: int, state: int, gradients: int) -> Memory:
    """The memory of a compiled step, `jax.jit(step).lower(...).compile()`, on each device.

    Args:
        weights, state: bytes of the arguments that are one and the other; what else the program
            takes counts as batch.
        gradients: bytes of the gradients alive together, of which the compiler does not know what
            they are.
    """
    plan = compiled.memory_analysis()
    arguments, temporary = plan.argument_size_in_bytes, plan.temp_size_in_bytes
    outputs = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return Memory(
        weights=weights,
        state=state,
        batch=max(0, arguments - weights - state),
        gradients=min(gradients, temporary),
        activations=max(0, temporary - gradients),
        peak=arguments + temporary + max(0, outputs),
    )


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays (or `jax.ShapeDtypeStruct`s) of a tree."""
    import jax

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def parse_bytes(text: str, name: str = "memory") -> int:
    """'24GiB', '24 GB' or '512MiB' in bytes; a unit is needed, letter case does not matter.

    >>> parse_bytes("1.5 KiB")
    1536

    Raises:
        InputError: it is not a number and a unit.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text, re.IGNORECASE)
    if not found or found[2].upper() not in UNITS:
        raise InputError(f"{name} is {text!r}; expected a number and a unit, such as 24GiB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def available_bytes() -> int | None:
    """Bytes a program can have: of the first device, or on a CPU what the host has left.

    None where the system does not tell.
    """
    import jax

    stats = jax.devices()[0].memory_stats()
    if stats and stats.get("bytes_limit"):
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    known = [free for free in (_free_memory(), _free_in_container()) if free is not None]
    return min(known, default=None)


def refuse_too_big(
    memory: Memory, available: int | None, alternatives: Iterable[tuple[str, int]] = ()
) -> None:
    """Raise where the step cannot fit.

    Args:
        available: bytes; None for unknown, which refuses nothing.
        alternatives: what could be changed, and the peak it would have; the first that fits is
            named, and none is looked at when the step fits.

    Raises:
        InputError: the peak is above what is available.
    """
    if available is None or memory.peak <= available:
        return
    from springroll.train.progress import gibibytes

    fitting = next(((name, peak) for name, peak in alternatives if peak <= available), None)
    advice = f"{fitting[0]} needs {gibibytes(fitting[1])}" if fitting else "take a smaller --model"
    raise InputError(
        f"a step needs {gibibytes(memory.peak)}, {gibibytes(available)} are available; {advice}"
    )


def _free_memory() -> int | None:
    table = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", table.read_text()) if table.exists() else None
    return int(found[1]) * 1024 if found else None


def _free_in_container() -> int | None:
    """What the control group leaves, where one sets a limit (version 2)."""
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if not limit.exists() or not used.exists() or limit.read_text().strip() == "max":
        return None
    return max(0, int(limit.read_text()) - int(used.read_text()))
