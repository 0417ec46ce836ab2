"""A decoder with experts in three parts, whose layers come in pieces: attention, then experts.

A layer is 1 + groups bundles: attention, norms and router first, then the experts, `together` at a
time. What passes from bundle to bundle is a `Carry`; a bundle tells by its leaves what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from springroll.errors import InputError
from springroll.models.decoder import Decoder, Params
from springroll.models.moe import dense_weights, route
from springroll.models.some_experts import pass_picks, some_experts


class Carry(NamedTuple):
    """What enters a bundle; None is what it does not look at.

    x: the residual stream (batch, time, D). y: what enters the experts of the layer, the same
    shape. weight: how much of each, (batch * time, E) float32, zero where not chosen.
    """

    x: Any
    y: Any
    weight: Any


@dataclass(frozen=True)
class ExpertStages:
    """The parts of which `model.loss` is made, see `expert_stages`."""

    model: Decoder
    together: int

    @property
    def of_layer(self) -> int:
        """Bundles of a layer."""
        return 1 + self.model.config.experts // self.together

    def embed(self, params: Params, tokens: Array) -> Any:
        """tokens (batch, time) -> the `Carry` that enters the first bundle."""
        x = self.model.embed(params, tokens)
        weight = jnp.zeros((tokens.size, self.model.config.experts), jnp.float32)
        return Carry(x, jnp.zeros_like(x), weight)

    def block(self, bundle: Params, carry: Any, index: Array) -> tuple[Any, Any]:
        """(one bundle, what enters it, its number () int32) -> (what leaves it, statistics).

        Statistics are those of `Decoder.block` after attention, none after experts.
        """
        layer, place = index // self.of_layer, index % self.of_layer
        if "self_attn" in bundle:
            return self._attention(bundle, carry.x, layer)
        return self._experts(bundle["mlp"]["experts"], carry, place - 1), {}

    def finish(
        self, params: Params, carry: Any, stats: Any, tokens: Array
    ) -> tuple[Array, dict[str, Array]]:
        """(params, carry, stacked statistics, tokens (batch, time + 1)) -> (loss, metrics)."""
        return self.model.finish(params, carry.x, stats, tokens)

    # What of the inputs is kept for the gradients: x for attention; y and weight for all the
    # experts of a layer together, as what they add to x does not depend on it.

    def source(self, bundle: int) -> int:
        """The bundle whose kept input serves this one too: the first with experts of the layer."""
        place = bundle % self.of_layer
        return bundle - max(0, place - 1)

    def kept(self, bundle: int, carry: Carry) -> Carry:
        """What the gradient of a bundle needs of its input."""
        if bundle % self.of_layer == 0:
            return Carry(carry.x, None, None)
        return Carry(None, carry.y, carry.weight)

    def restored(self, bundle: int, kept: Carry) -> Carry:
        """An input with the gradient of the one that was kept."""
        return kept if bundle % self.of_layer == 0 else kept._replace(x=kept.y)

    def _attention(self, bundle: Params, x: Array, layer: Array) -> tuple[Carry, Any]:
        config = self.model.config
        windows = self.model.windows(x.shape[1])
        x, y = self.model.attend(bundle, x, None, None if windows is None else windows[layer])
        routing = route(config, bundle["mlp"], y.reshape(-1, config.hidden))
        weight, load = dense_weights(routing, config.experts)
        return Carry(x, y, weight), {"load": load, "switch": routing.switch, "z": routing.z}

    def _experts(self, params: Params, carry: Carry, group: Array) -> Carry:
        config, hidden = self.model.config, self.model.config.hidden
        weight = lax.dynamic_slice_in_dim(carry.weight, group * self.together, self.together, 1)
        picks = pass_picks(config, weight.shape[0], self.together)
        y = carry.y.reshape(-1, hidden)
        added = some_experts(config, picks, params, y, weight)
        return carry._replace(x=carry.x + added.reshape(carry.x.shape))


def expert_stages(model: Decoder, together: int) -> ExpertStages:
    """The parts of a decoder whose experts come `together` at a time.

    Raises:
        InputError: a dense model, a number that does not divide that of the experts.
    """
    experts = model.config.experts
    if not experts:
        raise InputError("experts_per_bundle is for mixtures of experts; the model has none")
    if together < 1 or experts % together:
        near = max(n for n in range(1, experts + 1) if experts % n == 0 and n <= max(1, together))
        raise InputError(
            f"experts_per_bundle is {together}; it must divide the {experts} experts; take {near}"
        )
    return ExpertStages(model, together)


def without_experts(layer: Params) -> Params:
    """The tree of a layer's first bundle."""
    mlp = {name: leaf for name, leaf in layer["mlp"].items() if name != "experts"}
    return layer | {"mlp": mlp}


def only_experts(layer: Params) -> Params:
    """The tree of the other bundles, with all experts."""
    return {"mlp": {"experts": layer["mlp"]["experts"]}}
