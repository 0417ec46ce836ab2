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
    codes: bool = False  # int8 with a real thin term, which sr.eggroll cannot perturb densely

    def __str__(self) -> str:
        reason = f"consumed by '{self.primitive}' at {self.source}"
        return formed_whole(self.path, self.shape, self.dtype, self.bytes, reason, self.codes)


def formed_whole(
    path: str, shape: tuple[int, ...], dtype: str, size: int, reason: str, codes: bool = False
) -> str:
    """What is said of a weight that every member forms in full, and what to do about it."""
    dims = ",".join(map(str, shape))
    mark = lambda role: f"roles={{{path or '*'!r}: {role!r}}}"
    dense = "" if codes else f"mark it dense if that is meant, {mark('dense')}, "
    advice = f"{dense}freeze it, {mark('frozen')}, or add a rule."
    return (
        f"{path or 'a weight'} ({dtype}[{dims}], {size:,} bytes per member) cannot stay low-rank:"
        f" {reason}. {advice[0].upper()}{advice[1:]}"
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
        codes = weight.lattice is None and jnp.issubdtype(weight.dtype, jnp.integer)
        report = Densified(
            weight.path, tuple(weight.shape), str(weight.dtype), primitive, source, size, codes
        )
        if report in self.reports:
            return
        self.reports.append(report)
        if self.limit is not None and size > self.limit:
            raise InputError(
                f"{report} (Above {self.limit:,} bytes it is refused; sr.factored takes a"
                " densify_limit.)"
            )
        if not self.quiet:
            warnings.warn(str(report), DensifyWarning, stacklevel=2)


def is_free(weight: Factored) -> bool:
    """True when the dense weight is no bigger than its factors: a row, a vector, a scalar."""
    return compat.size(weight.base) <= compat.size(weight.left) + compat.size(weight.right)
