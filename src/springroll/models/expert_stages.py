"""A decoder with experts in three parts, whose layers come in pieces: attention, then experts.

A layer is 1 + groups bundles: attention, norms and router first, then the experts, `together` at a
time. What passes from bundle to bundle is a `Carry`; a bundle tells by its leaves what it is.

What some experts of a mixture add to every token, computed for the tokens that chose them.

How many those are is known only when the router has spoken. Picks of these experts are therefore
computed in passes of a fixed number of rows, as many passes as there are picks for: one or two
where loads are even, more where they are not, none where nobody chose these experts. No token is
dropped, and memory is that of one pass.

Letters: T tokens, S experts at hand, D width of the model, C picks of a pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from springroll.errors import InputError, expect
from springroll.models.decoder import Decoder
from springroll.models.decoder_config import DecoderConfig
from springroll.models.dispatch import collect, dispatch, spread
from springroll.models.moe import dense_weights, expert_nets, route
from springroll.models.packed import Batch, opened
from springroll.ranges import check_number
from springroll.trees import Params, PyTree

Saved: TypeAlias = tuple[Params, Array, Array]  # params, y_TD, weight_TS; their gradients

SLACK = 5  # quarters of an even share of the picks: what a pass has room for


def pass_picks(config: DecoderConfig, tokens: int, experts: int) -> int:
    """Picks of a pass: an even share of those of `tokens` tokens and a quarter more."""
    most = tokens * min(config.top_k, experts)
    share = -(-SLACK * tokens * config.top_k * experts // (4 * config.experts))
    return max(1, min(most, share))


def _own_gradient(fn: Callable[..., Array]) -> Any:
    return jax.custom_vjp(fn, nondiff_argnums=(0, 1))


@_own_gradient
def some_experts(
    config: DecoderConfig, picks: int, params: Params, y_TD: Array, weight_TS: Array
) -> Array:
    """sum over s of weight[:, s] net_s(y): (T, D) in the type of y, summed in float32.

    Args:
        picks: of a pass, `pass_picks`.
        params: of these experts, a slice of a layer's `mlp/experts`.
        y_TD: what enters the experts.
        weight_TS: float32, zero where a token did not choose an expert. Its gradient is zero there
            too: who chose them is not differentiated.
    """
    chosen = _chosen(config, picks, weight_TS)

    def add(i: Array, total_TD: Array) -> Array:
        at = chosen.at(i)
        out_CD = _pass(config, params, _rows(y_TD, at.token), _weights(weight_TS, at), at)
        return total_TD.at[at.token].add(out_CD.astype(jnp.float32), mode="drop")

    total = lax.fori_loop(0, chosen.passes, add, jnp.zeros(y_TD.shape, jnp.float32))
    return total.astype(y_TD.dtype)


def _forward(
    config: DecoderConfig, picks: int, params: Params, y_TD: Array, weight_TS: Array
) -> tuple[Array, Saved]:
    return some_experts(config, picks, params, y_TD, weight_TS), (params, y_TD, weight_TS)


def _backward(config: DecoderConfig, picks: int, saved: Saved, dout_TD: Array) -> Saved:
    params, y_TD, weight_TS = saved
    chosen = _chosen(config, picks, weight_TS)

    def add(i: Array, sums: Saved) -> Saved:
        at = chosen.at(i)
        net = lambda params, rows, weights: _pass(config, params, rows, weights, at)
        _, pull = jax.vjp(net, params, _rows(y_TD, at.token), _weights(weight_TS, at))
        new_grads, dy_CD, dweight_C = pull(_rows(dout_TD, at.token))
        grads, dy_TD, dweight_TS = sums
        return (
            jax.tree.map(jnp.add, grads, new_grads),
            dy_TD.at[at.token].add(dy_CD.astype(jnp.float32), mode="drop"),
            dweight_TS.at[at.token, at.expert].add(dweight_C, mode="drop"),
        )

    start = (
        jax.tree.map(jnp.zeros_like, params),
        jnp.zeros(y_TD.shape, jnp.float32),
        jnp.zeros_like(weight_TS),
    )
    grads, dy_TD, dweight_TS = lax.fori_loop(0, chosen.passes, add, start)
    return grads, dy_TD.astype(y_TD.dtype), dweight_TS


some_experts.defvjp(_forward, _backward)


class _Picks(NamedTuple):
    """Picks of a pass; those beyond the last name token T, which there is not."""

    token: Array  # (C,) int32
    expert: Array  # (C,) int32, ascending


class _Chosen(NamedTuple):
    """All picks, by expert: a pick is number expert T + token; S T beyond the last."""

    number: Array  # (passes there may be, C) int32
    passes: Array  # () int32, those there are
    tokens: int
    experts: int

    def at(self, i: Array) -> _Picks:
        number = lax.dynamic_index_in_dim(self.number, i, keepdims=False)
        real = number < self.experts * self.tokens
        token = jnp.where(real, number % self.tokens, self.tokens)
        return _Picks(token, jnp.minimum(number // self.tokens, self.experts - 1))


def _chosen(config: DecoderConfig, picks: int, weight_TS: Array) -> _Chosen:
    tokens, experts = weight_TS.shape
    passes = -(-tokens * min(config.top_k, experts) // picks)  # the most that there can be
    chosen = weight_TS.T.reshape(-1) != 0
    count = jnp.sum(chosen, dtype=jnp.int32)
    number = jnp.flatnonzero(chosen, size=passes * picks, fill_value=experts * tokens)
    number = number.astype(jnp.int32).reshape(passes, picks)
    return _Chosen(number, -(-count // picks), tokens, experts)


def _pass(config: DecoderConfig, params: Params, x_CD: Array, weight_C: Array, at: _Picks) -> Array:
    """weight net_expert(x) of every pick: (C, D)."""
    experts = jax.tree.leaves(params)[0].shape[0]
    to = dispatch(at.expert[:, None], experts)
    weight_C1 = weight_C[:, None].astype(x_CD.dtype)
    x_RD = spread(x_CD, to.pick_of_row, to.row_of_pick)
    weight_R1 = spread(weight_C1, to.pick_of_row, to.row_of_pick)
    y_RD = expert_nets(config, params, x_RD, weight_R1, to.block_group)
    return collect(y_RD, to.pick_of_row, to.row_of_pick)


def _rows(x_TD: Array, token: Array) -> Array:
    return x_TD.at[token].get(mode="fill", fill_value=0)


def _weights(weight_TS: Array, at: _Picks) -> Array:
    return weight_TS.at[at.token, at.expert].get(mode="fill", fill_value=0)


class Carry(NamedTuple):
    """What enters a bundle; None is what it does not look at.

    x: the residual stream (batch, time, D). y: what enters the experts of the layer, the same
    shape. weight: how much of each, (batch * time, E) float32, zero where not chosen. segments:
    those of packed rows.
    """

    x: PyTree
    y: PyTree
    weight: PyTree
    segments: PyTree = None


@dataclass(frozen=True)
class ExpertStages:
    """The parts of which `model.loss` is made, see `expert_stages`."""

    model: Decoder
    together: int

    @property
    def stack(self) -> str:
        """The name under which the parameters hold the layers (see `protocols.Stages`)."""
        return "layers"

    @property
    def table(self) -> str:
        """See `protocols.Stages`."""
        return self.model.table

    @property
    def sliced_head(self) -> str | None:
        """See `protocols.Stages`."""
        return self.model.sliced_head

    @property
    def of_layer(self) -> int:
        """Bundles of a layer."""
        return 1 + self.model.config.experts // self.together

    def embed(self, params: Params, tokens: Batch) -> Carry:
        """tokens (batch, time) or packed rows -> the `Carry` that enters the first bundle."""
        x, segments = opened(self.model.embed(params, tokens))
        count = x.shape[0] * x.shape[1]
        weight = jnp.zeros((count, self.model.config.experts), jnp.float32)
        return Carry(x, jnp.zeros_like(x), weight, segments)

    def block(self, bundle: Params, carry: Carry, index: Array) -> tuple[Carry, dict[str, Array]]:
        """(one bundle, what enters it, its number () int32) -> (what leaves it, statistics).

        Statistics are those of `Decoder.block` after attention, none after experts.
        """
        layer, place = index // self.of_layer, index % self.of_layer
        if "self_attn" in bundle:
            return self._attention(bundle, carry, layer)
        return self._experts(bundle["mlp"]["experts"], carry, place - 1), {}

    def finish(
        self, params: Params, carry: Carry, stats: dict[str, Array], tokens: Batch
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
            return carry._replace(y=None, weight=None)
        return carry._replace(x=None)

    def restored(self, bundle: int, kept: Carry) -> Carry:
        """An input with the gradient of the one that was kept."""
        return kept if bundle % self.of_layer == 0 else kept._replace(x=kept.y)

    def _attention(
        self, bundle: Params, carry: Carry, layer: Array
    ) -> tuple[Carry, dict[str, Array]]:
        config = self.model.config
        where = self.model.of_layer(carry.x.shape[1], layer, carry.segments)
        x, y = self.model.attend(bundle, carry.x, where)
        routing = route(config, bundle["mlp"], y.reshape(-1, config.hidden))
        weight, load = dense_weights(routing, config.experts)
        stats = {"load": load, "switch": routing.switch, "z": routing.z}
        return Carry(x, y, weight, carry.segments), stats

    def _experts(self, params: Params, carry: Carry, group: Array) -> Carry:
        config, hidden = self.model.config, self.model.config.hidden
        weight = lax.dynamic_slice_in_dim(carry.weight, group * self.together, self.together, 1)
        picks = pass_picks(config, weight.shape[0], self.together)
        y = carry.y.reshape(-1, hidden)
        added = some_experts(config, picks, params, y, weight)
        return carry._replace(x=carry.x + added.reshape(carry.x.shape))


def expert_stages(model: Decoder, together: int) -> ExpertStages:
    """The parts of a decoder whose experts come `together` at a time.

    Args:
        model: a mixture of experts.
        together: experts of a bundle.

    Raises:
        InputError: a dense model, a number that does not divide that of the experts.
    """
    expect(isinstance(model, Decoder), "model", model, "a decoder")
    check_number("experts_per_bundle", together, int)
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
