"""Options of how tokens are drawn. Imports no JAX: commands read them first."""

from dataclasses import dataclass
from typing import Any

from springroll.errors import InputError
from springroll.ranges import COUNT, PORTION, UNIT_INTERVAL
from springroll.run.options import option


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Which tokens are kept before one is drawn; those of all that are given."""

    top_k: int | None = option(None, COUNT)
    """Draw from this many of the likeliest tokens. Default: from all."""
    top_p: float | None = option(None, PORTION)
    """Draw from the likeliest tokens that together have this probability. Default: from all."""
    min_p: float | None = option(None, UNIT_INTERVAL)
    """Draw from tokens of at least this probability relative to the likeliest. Default: from
    all."""

    @property
    def bounds(self) -> dict[str, Any]:
        """The three by name."""
        return {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}

    def check_drawn(self, temperature: float) -> None:
        """Raises InputError: one is given where the likeliest token is taken anyway."""
        for name, value in self.bounds.items():
            if value is not None and not temperature:
                raise InputError(
                    f"{name} is {value}; at temperature 0 the likeliest token is taken; give "
                    "--temperature 1"
                )
