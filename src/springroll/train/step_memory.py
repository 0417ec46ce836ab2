"""What a training step needs in memory, from the compiler.

XLA plans every buffer of a program before it runs. Its plan says the peak to the byte without
allocating anything, so a job that cannot fit is refused before it starts.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from springroll.errors import InputError
from springroll.memory import on_each

if TYPE_CHECKING:
    from jax.stages import Compiled
    from rich.table import Table


class StepMemory(Protocol):
    """What a step needs: its largest use of the device's memory, and a table for people."""

    @property
    def peak(self) -> int:
        """Bytes on the device."""
        ...

    def table(self) -> "Table":
        """The bytes by kind."""
        ...


@dataclass(frozen=True)
class Memory:
    """The buffers of one training step, in bytes."""

    weights: int
    state: int  # of the optimizer: moments, projectors, counters
    batch: int
    gradients: int  # that are alive together
    activations: int  # the compiler's temporary memory without the gradients
    peak: int  # arguments, temporary memory, and outputs that take no argument's place
    devices: int = 1  # that need as much each

    def table(self) -> "Table":
        """The bytes by kind."""
        from rich.table import Table

        from springroll.run.progress import gibibytes

        table = Table("memory of a step", on_each("bytes", self.devices), title_justify="left")
        table.columns[1].justify = "right"
        for name in ("weights", "gradients", "state", "activations"):
            table.add_row(name, gibibytes(getattr(self, name)))
        table.add_section()
        table.add_row("peak", gibibytes(self.peak))
        return table


def step_memory(
    compiled: "Compiled", *, weights: int, state: int, gradients: int, devices: int = 1
) -> Memory:
    """The memory of a compiled step, `jax.jit(step).lower(...).compile()`, on each device.

    Args:
        weights, state: bytes of the arguments that are one and the other; what else the program
            takes counts as batch.
        gradients: bytes of the gradients alive together, of which the compiler does not know what
            they are.
        devices: that run the program.
    """
    plan = compiled.memory_analysis()
    assert plan is not None
    arguments, temporary = plan.argument_size_in_bytes, plan.temp_size_in_bytes
    outputs = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return Memory(
        weights=weights,
        state=state,
        batch=max(0, arguments - weights - state),
        gradients=min(gradients, temporary),
        activations=max(0, temporary - gradients),
        peak=arguments + temporary + max(0, outputs),
        devices=devices,
    )


def too_big(memory: StepMemory, available: int | None) -> bool:
    """Whether the peak is above what is available, bytes; None for unknown."""
    return available is not None and memory.peak > available


def refuse_too_big(
    memory: StepMemory, available: int | None, alternatives: Iterable[tuple[str, int]] = ()
) -> None:
    """Raise where the step cannot fit.

    Args:
        available: bytes; None for unknown, which refuses nothing.
        alternatives: what could be changed, and the peak it would have; the first that fits is
            named, and none is looked at when the step fits.

    Raises:
        InputError: the peak is above what is available.
    """
    if not too_big(memory, available):
        return
    assert available is not None
    from springroll.run.progress import gibibytes

    fitting = next(((name, peak) for name, peak in alternatives if peak <= available), None)
    advice = f"{fitting[0]} needs {gibibytes(fitting[1])}" if fitting else "take a smaller --model"
    raise InputError(
        f"a step needs {gibibytes(memory.peak)}, {gibibytes(available)} are available; {advice}"
    )
