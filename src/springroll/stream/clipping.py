"""Clipping of a gradient that never exists as a whole."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from springroll.errors import InputError
from springroll.ranges import POSITIVE, check_scalar

ClipBy = Literal["global", "previous", "layer"]


class Clip(NamedTuple):
    """limit: the largest norm, None for any. by:

    - "global": the norm of the whole gradient, as everywhere else. Nothing can be updated before
      the backward pass is over, and the gradients wait on the host: 2 bytes per bfloat16 parameter.
    - "previous": all gradients are multiplied by the factor that a global clip had a step ago.
    - "layer": each bundle by its own norm.
    """

    limit: float | None = None
    by: ClipBy = "global"

    @property
    def waits(self) -> bool:
        """Whether updates need the norm of the whole gradient."""
        return self.limit is not None and self.by == "global"

    def checked(self) -> "Clip":
        """The same.

        Raises:
            InputError: The limit is not positive, or `by` is unknown.
        """
        if self.limit is not None:
            check_scalar("clip", self.limit, POSITIVE, "a positive norm, or None")
        if self.by not in ("global", "previous", "layer"):
            raise InputError(f"clip_by is {self.by!r}; expected 'global', 'previous' or 'layer'")
        return self


@jax.jit
def clip_factor(limit: Array, norm: Array) -> Array:
    """The factor () float32 that a gradient of this norm is multiplied by."""
    return jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-30)).astype(jnp.float32)
