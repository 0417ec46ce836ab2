"""A mixture of experts that drops no token: routing, the experts, and keeping them in balance.

Letters: T tokens, K experts per token, E experts, D width of the model, F width of an expert.

Balance without a loss (arXiv 2408.15664): a bias per expert is added to the scores when experts are
chosen, not when their outputs are weighed, and after every step moves towards even loads. The
Switch loss (arXiv 2101.03961, eq. 4) and the router z-loss (arXiv 2202.08906, eq. 5) are reported
always and part of the objective where the configuration gives them a weight.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll.models.decoder_config import DecoderConfig
from springroll.models.dispatch import SMALLEST, block_count, block_size, collect, dispatch, spread
from springroll.models.grouped import grouped_dot
from springroll.models.layers import gated, linear, with_thin_term
from springroll.models.slices import Coded
from springroll.thin.factored_array import Factored
from springroll.trees import Params


class Routing(NamedTuple):
    """The chosen experts (T, K) int32, their weights (T, K) float32, and the two losses ()."""

    expert_TK: Array
    weight_TK: Array
    switch: Array
    z: Array


def moe(
    config: DecoderConfig, params: Params, x_BTD: Array, smallest: int = SMALLEST
) -> tuple[Array, dict[str, Array]]:
    """The feed-forward half of a block: (B, T, D), and statistics `load` (E,), `switch`, `z`.

    `params` is one layer of `mlp` in `springroll.models.decoder_config`. Blocks have at least
    `smallest` rows; those of a member of a population are put together with others' (see
    `grouped_dot`) and need not be padded.
    """
    x_TD = x_BTD.reshape(-1, config.hidden)
    routing = route(config, params, x_TD)
    size = block_size(routing.expert_TK.size, config.experts, smallest=smallest)
    to = dispatch(routing.expert_TK, config.experts, size)
    # Every pick is the only one of its row: weights go the way that tokens go, with K = 1.
    weight_P1 = routing.weight_TK.reshape(-1, 1).astype(x_TD.dtype)
    weight_R1 = spread(weight_P1, to.pick_of_row, to.row_of_pick.reshape(-1, 1))
    x_RD = spread(x_TD, to.pick_of_row, to.row_of_pick)
    y_RD = expert_nets(config, params["experts"], x_RD, weight_R1, to.block_group)
    y_TD = collect(y_RD, to.pick_of_row, to.row_of_pick)
    stats = {"load": to.load.astype(jnp.float32), "switch": routing.switch, "z": routing.z}
    return y_TD.reshape(x_BTD.shape), stats


def route(config: DecoderConfig, params: Params, x_TD: Array) -> Routing:
    """Which experts each token goes to and how much of each, from float32 scores.

    Scores are softmax or sigmoid of x gate^T. The K largest (of score + bias, where there is a
    bias) are chosen; weights are their scores, divided by their sum with `renormalise`.
    """
    logits = jnp.einsum("TD,ED->TE", x_TD, params["gate"], preferred_element_type=jnp.float32)
    if config.expert_bias:
        logits = logits + params["gate_bias"].astype(jnp.float32)[None, :]
    softmax = config.router == "softmax"
    score = jax.nn.softmax(logits, axis=-1) if softmax else jax.nn.sigmoid(logits)
    preference = lax.stop_gradient(score)
    if config.selection_bias:
        bias = lax.stop_gradient(params["e_score_correction_bias"])
        preference = preference + bias.astype(jnp.float32)[None, :]
    expert_TK = lax.top_k(preference, config.top_k)[1]
    chosen = expert_TK[:, :, None] == jnp.arange(config.experts, dtype=jnp.int32)[None, None, :]
    weight = jnp.sum(jnp.where(chosen, score[:, None, :], np.float32(0)), axis=-1)
    if config.renormalise:
        weight = weight / jnp.sum(weight, axis=-1, keepdims=True)
    share = score if softmax else score / jnp.sum(score, axis=-1, keepdims=True)
    fraction = jnp.mean(jnp.any(chosen, axis=1).astype(jnp.float32), axis=0) / config.top_k
    switch = config.experts * jnp.sum(fraction * jnp.mean(share, axis=0))
    z = jnp.mean(jnp.square(jax.nn.logsumexp(logits, axis=-1)))
    return Routing(expert_TK, weight, switch, z)


def dense_weights(routing: Routing, experts: int) -> tuple[Array, Array]:
    """(weights (T, experts) float32, zero where not chosen; picks per expert (experts,) float32)"""
    everyone = jnp.arange(experts, dtype=jnp.int32)[None, None, :]
    chosen = routing.expert_TK[:, :, None] == everyone
    weight = jnp.sum(jnp.where(chosen, routing.weight_TK[:, :, None], np.float32(0)), axis=1)
    return weight, jnp.sum(chosen, axis=(0, 1), dtype=jnp.int32).astype(jnp.float32)


def expert_nets(
    config: DecoderConfig, params: Params, x_RD: Array, weight_R1: Array, block_group: Array
) -> Array:
    """Every row through the net of its block's expert, times its weight: (R, D).

    The weight multiplies what enters the last matrix, which is narrower than what leaves it.
    """

    def through(name: str, x: Array, weight: Array | None = None) -> Array:
        y = grouped(x, params[f"{name}_proj"], block_group)
        if not config.expert_bias:
            return y
        bias = jnp.repeat(params[f"{name}_bias"][block_group], len(x) // len(block_group), axis=0)
        return y + (bias if weight is None else bias * weight)

    hidden = gated(
        through("gate", x_RD), through("up", x_RD), config.swiglu_limit, config.activation
    )
    return through("down", hidden * weight_R1, weight_R1)


def grouped(x: Array, w: Array | Coded | Factored, block_group: Array) -> Array:
    """`grouped_dot` of x (rows, in) with weights (E, out, in), of any kind that `linear` takes."""
    if isinstance(w, Factored):
        return with_thin_term(grouped, x, w, block_group)
    if not isinstance(w, Coded):
        return grouped_dot(x, w, block_group, transposed=True)

    def step(_: None, block: tuple[Array, Array]) -> tuple[None, Array]:
        rows, group = block
        pick = lambda part: lax.dynamic_index_in_dim(part, group, keepdims=False)
        return None, linear(rows, jax.tree.map(pick, w))

    blocks = x.reshape(len(block_group), -1, x.shape[-1])
    return lax.scan(step, None, (blocks, block_group))[1].reshape(x.shape[0], -1)


def every_expert(config: DecoderConfig, params: Params, x_BTD: Array) -> Array:
    """The same as `moe`, computed by all experts for all tokens: (B, T, D).

    E / K times the products, none of which depends on what was chosen: this runs with weights of
    its own for every member of a population. The weights of all experts are read once, as they are
    anyway where there are more picks than experts.
    """
    x_TD = x_BTD.reshape(-1, config.hidden)
    weight_TE, _ = dense_weights(route(config, params, x_TD), config.experts)
    weight_TE = weight_TE.astype(x_TD.dtype)
    nets = params["experts"]

    def into(name: str) -> Array:
        y = jnp.einsum("TD,EFD->TEF", x_TD, nets[f"{name}_proj"])
        return y + nets[f"{name}_bias"][None] if config.expert_bias else y

    hidden = gated(into("gate"), into("up"), config.swiglu_limit, config.activation)
    hidden = hidden * weight_TE[:, :, None]
    y_TD = jnp.einsum("TEF,EDF->TD", hidden, nets["down_proj"])
    if config.expert_bias:
        y_TD = y_TD + weight_TE @ nets["down_bias"]
    return y_TD.reshape(x_BTD.shape)


def chosen_are_less(config: DecoderConfig, tokens: int) -> bool:
    """Whether the experts that `tokens` tokens chose are less work than all experts for all.

    They are if they are fewer weights to read or fewer rows to multiply. Not on a GPU, where the
    blocks of `grouped_dot`, one after the other, are slower than one product of all.
    """
    if not config.experts or jax.default_backend() != "cpu":
        return False
    picks = tokens * config.top_k
    size = block_size(picks, config.experts)
    blocks = block_count(picks, config.experts, size)
    return blocks < config.experts or blocks * size < tokens * config.experts


def statistics(config: DecoderConfig) -> Params:
    """The statistics that `Decoder.block` gives of a layer, without values; a dense one has none.

    The shapes are `load` (E,), `switch` () and `z` (), float32.
    """
    if not config.experts:
        return {}
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    return {"load": struct(config.experts), "switch": struct(), "z": struct()}


def balance(bias: Array, load: Array, rate: float = 1e-3) -> Array:
    """bias + rate * sign(mean load - load): overloaded experts are chosen less from now on.

    Args:
        bias: e_score_correction_bias, (..., E).
        load: picks per expert since the last call, (..., E), from the metrics of `Decoder.loss`.
        rate: how far a bias moves per call.
    """
    even = jnp.mean(load, axis=-1, keepdims=True)
    return bias + np.asarray(rate, bias.dtype) * jnp.sign(even - load).astype(bias.dtype)
