"""Clipping of a gradient that never exists as a whole."""

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from springroll.errors import InputError
from springroll.quant.transformation import wrapped
from springroll.ranges import POSITIVE, check_scalar

Wrapped = optax.GradientTransformationExtraArgs
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


def leading_clip(
    optimizer: optax.GradientTransformation,
) -> tuple[float | None, optax.GradientTransformation]:
    """(norm, the optimizer without it) of optax.chain(optax.clip_by_global_norm(norm), ...).

    Such a chain would clip a bundle at a time; what streams takes the norm out and clips by that of
    the whole gradient. The state keeps its structure. None, and the same optimizer, for all others:
    those that look at all gradients together in another way are refused where states are made.
    """
    inside = _closure(optimizer.init, "chain") | _closure(optimizer.update, "chain")
    if not {"init_fns", "update_fns"} <= inside.keys() or not inside["update_fns"]:
        return None, optimizer
    links = [
        optax.GradientTransformationExtraArgs(init, update)
        for init, update in zip(inside["init_fns"], inside["update_fns"], strict=True)
    ]
    first = _closure(links[0].update, "with_extra_args_support").get("tx", links[0])
    norm = _closure(first.update, "clip_by_global_norm").get("max_norm")
    if norm is None:
        norm, first = leading_clip(first)
    else:
        first = optax.identity()
    return (None, optimizer) if norm is None else (float(norm), optax.chain(first, *links[1:]))


def _closure(function: Callable[..., Any], maker: str) -> dict[str, Any]:
    """The variables of a function that this function of optax has made; none of another."""
    name, module = (getattr(function, key, "") for key in ("__qualname__", "__module__"))
    ours = name.startswith(f"{maker}.<locals>.") and module.startswith("optax.")
    return dict(inspect.getclosurevars(function).nonlocals) if ours else {}


def without_clips(optimizer: Any, rest: Any, who: str) -> tuple[float | None, Wrapped, Wrapped]:
    """(global norm or None, optimizer of layers, optimizer of the rest), the norm taken out.

    Raises:
        InputError: one is no optimizer; one of the two clips and the other does not, or by another
            norm.
    """
    norm, layers = leading_clip(wrapped(optimizer, who))
    layers = wrapped(layers, who)
    if rest is None:
        return norm, layers, layers
    other, rest = leading_clip(wrapped(rest, who))
    if norm != other:
        said = lambda limit: "does not clip" if limit is None else f"clips by the norm {limit:g}"
        raise InputError(
            f"the optimizer of the layers {said(norm)} and that of the rest {said(other)}; a global"
            " norm is that of all gradients: give both the same, or clip by clip=Clip(...) of"
            " Streamed"
        )
    return norm, layers, wrapped(rest, who)


def common_clip(clip: Clip, norm: float | None) -> Clip:
    """The clip that was given, or that by the global norm that was in the optimizer.

    Raises:
        InputError: there are both.
    """
    if norm is None:
        return clip
    if clip.limit is not None:
        raise InputError(
            f"clip is {clip.limit:g} by {clip.by!r}, and the optimizer clips by the global norm "
            f"{norm:g}; leave one of the two out"
        )
    return Clip(norm, "global").checked()


@jax.jit
def clip_factor(limit: Array, norm: Array) -> Array:
    """The factor () float32 that a gradient of this norm is multiplied by."""
    return jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-30)).astype(jnp.float32)
