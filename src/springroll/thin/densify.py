"""What happens when a thin weight meets a primitive that has no rule: never silently."""

import warnings
from dataclasses import dataclass, field

import jax.numpy as jnp
from jax import Array

from springroll import compat
from springroll.errors import InputError
from springroll.thin.factored_array import Factored

DEFAULT_LIMIT = 1 << 20  # bytes per member


class DensifyWarning(UserWarning):
    """A weight was densified because a primitive has no rule for low-rank weights."""


@dataclass(frozen=True)
class Densified:
    """One weight that was formed in full: which, where, why and at what cost per member."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    primitive: str
    source: str
    bytes: int

    def __str__(self) -> str:
        name = self.path or "a weight"
        dims = ",".join(map(str, self.shape))
        return (
            f"{name} ({self.dtype}[{dims}], {self.bytes:,} bytes per member) cannot stay low-rank:"
            f" consumed by '{self.primitive}' at {self.source}."
            " Exclude it, mark it dense, or add a rule."
        )


@dataclass
class Policy:
    """Collects reports; warns up to `limit` bytes per member, raises above it (None: no limit)."""

    limit: int | None = DEFAULT_LIMIT
    quiet: bool = False
    reports: list[Densified] = field(default_factory=list)

    def densify(self, weight: Factored, primitive: str, source: str) -> Array:
        """The dense weight, after saying so. Free when it is no bigger than its own factors."""
        if not is_free(weight):
            self._report(weight, primitive, source)
        return weight.dense()

    def _report(self, weight: Factored, primitive: str, source: str) -> None:
        size = compat.size(weight.base) * jnp.dtype(weight.dtype).itemsize
        report = Densified(
            weight.path, tuple(weight.shape), str(weight.dtype), primitive, source, size
        )
        if report in self.reports:
            return
        self.reports.append(report)
        if self.limit is not None and size > self.limit:
            raise InputError(f"{report} (The limit is {self.limit:,} bytes: densify_limit.)")
        if not self.quiet:
            warnings.warn(str(report), DensifyWarning, stacklevel=2)


def is_free(weight: Factored) -> bool:
    """True when the dense weight is no bigger than its factors: a row, a vector, a scalar."""
    return compat.size(weight.base) <= compat.size(weight.left) + compat.size(weight.right)
