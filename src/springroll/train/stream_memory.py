"""The memory of a streamed step, for the table that is printed before a run."""

from typing import TYPE_CHECKING, NamedTuple

from springroll.memory import on_each, spelt
from springroll.planner.footprint import total

if TYPE_CHECKING:
    from rich.table import Table


class StreamMemory(NamedTuple):
    """Bytes of a step on the device, on the host and on a disk, by kind."""

    device: dict[str, int]
    host: dict[str, int]
    disk: dict[str, int]
    devices: int = 1  # that hold as much each

    @property
    def peak(self) -> int:
        """On the device."""
        return total(self.device)

    def table(self) -> "Table":
        """For people."""
        from rich.table import Table

        tiers = {on_each("device", self.devices): self.device, "host": self.host}
        if total(self.disk):
            tiers["disk"] = self.disk
        table = Table("memory of a step", *tiers, title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for kind in dict.fromkeys(kind for tier in tiers.values() for kind in tier):
            sizes = [tier.get(kind, 0) for tier in tiers.values()]
            if any(sizes):
                table.add_row(kind, *(spelt(size) if size else "" for size in sizes))
        table.add_section()
        table.add_row("peak", *(spelt(total(tier)) for tier in tiers.values()))
        return table
