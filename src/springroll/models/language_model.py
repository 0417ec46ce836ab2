"""What training asks of a language model, of whatever kind: decoder or RWKV-7."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from jax import Array

Params: TypeAlias = dict[str, Any]


class LanguageModel(Protocol):
    """Functions of parameters whose blocks are stacked in `params["layers"]`; hashable.

    `springroll.models.generative` has what generation asks in addition.
    """

    @property
    def config(self) -> Any:
        """Its shape: `vocab`, `hidden`, `layers`, `parameters`."""
        ...

    def init(self, key: Array, dtype: Any = ...) -> Params:
        """Fresh parameters."""
        ...

    def apply(self, params: Params, tokens: Array) -> Array:
        """tokens (batch, time) integers -> logits (batch, time, V) float32."""
        ...

    def loss(self, params: Params, tokens: Array) -> tuple[Array, dict[str, Array]]:
        """tokens (batch, time + 1) -> mean nats per predicted token () float32, and metrics."""
        ...

    def token_nats(
        self, params: Params, tokens: Array, targets: Array, temperature: float = 1.0
    ) -> tuple[Array, dict[str, Array]]:
        """Nats of each of the targets (batch, time) after the tokens, 0 of negative ones."""
        ...
