"""Models in three parts, as evolution walks them: forward only, a score at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from jax import Array

from springroll.errors import InputError
from springroll.subspace.layerwise import Stages as TrainingStages

Params: TypeAlias = dict[str, Any]
PARTS = ("stack", "embed", "block", "score")


class Stages(Protocol):
    """One member's forward pass. Its parameters are a dictionary with the stacked layers in `stack`
    and "rest" in all else. `models.egg.EggStages` is one."""

    @property
    def stack(self) -> str:
        """Where in the parameters the layers are, such as "layers"."""
        ...

    @property
    def embed(self) -> Callable[[Params, Any], Any]:
        """(rest, inputs) -> x, any pytree"""
        ...

    @property
    def block(self) -> Callable[[Params, Any, Any, Array], tuple[Any, Any]]:
        """(one layer, x, what the member remembers in this layer or None, index () int32) ->
        (x, what it remembers)"""
        ...

    @property
    def score(self) -> Callable[[Params, Any, Any], Array]:
        """(rest, x, inputs) -> fitness (), higher is better"""
        ...


@dataclass(frozen=True)
class Likelihood:
    """A model for training, such as `models.stages.stages(decoder)`, scored by what it predicts.

    inputs: tokens (batch, time + 1); fitness: minus the mean nats per token. Losses that only serve
    the training of a router take no part.
    """

    model: TrainingStages
    stack: str = "layers"

    def embed(self, rest: Params, tokens: Array) -> Array:
        return self.model.embed(rest, tokens[:, :-1])

    def block(self, layer: Params, x: Array, memory: None, index: Array) -> tuple[Array, None]:
        return self.model.block(layer, x, index)[0], memory

    def score(self, rest: Params, x: Array, tokens: Array) -> Array:
        return -self.model.finish(rest, x, {}, tokens)[0]


def checked(stages: Any, params: Any) -> Stages:
    """`stages`; raises InputError if it lacks a part, or `params` the stack."""
    missing = [name for name in PARTS if not hasattr(stages, name)]
    if missing:
        raise InputError(
            f"{type(stages).__name__} has no {', '.join(missing)}; a model that is evolved layer "
            f"by layer has {', '.join(PARTS)} (see springroll.stream.evolve_stages)"
        )
    if not isinstance(params, dict) or not isinstance(params.get(stages.stack), dict):
        there = sorted(params) if isinstance(params, dict) else type(params).__name__
        raise InputError(
            f"the parameters hold {there}; expected a dictionary with stacked layers in "
            f"{stages.stack!r}"
        )
    return stages
