"""What becomes of a bundle's gradient: the one interface of all ways to update weights."""

from typing import Any, NamedTuple, Protocol

from jax import Array

from springroll.stream.conveyor import Conveyor, Passing


class Gradient(NamedTuple):
    """Of one bundle, on the device.

    values: like the bundle's weights, a mean over the step's tokens, before clipping.
    factor: () float32, to multiply them with. good: () bool; else nothing must change.
    stats: of the layer, averaged; None for the bundle of the rest.
    """

    values: Any
    factor: Array
    good: Array
    stats: Any = None


class Update(Protocol):
    """Writes new weights and optimizer states to the store of a conveyor."""

    @property
    def fields(self) -> tuple[str, ...]:
        """What must be on the device, beside the weights, when a gradient is applied."""
        ...

    def apply(self, conveyor: Conveyor, passing: Passing, gradient: Gradient) -> None:
        """Take this gradient. Returns at once; the store promises the result."""
        ...

    def apply_all(self, conveyor: Conveyor, held: dict[int, Any], gradient: Gradient) -> None:
        """The same for gradients that waited on the host for a common factor.

        `held` are futures of (values, stats) by bundle; `gradient` has the factor only.
        """
        ...
