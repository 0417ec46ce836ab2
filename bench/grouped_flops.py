"""FLOPs of a block of experts, forward and backward, beside the ideal and beside `ragged_dot`.

Ideal: every pick of an expert is multiplied by that expert's three matrices and nothing else, once
forward and twice backward. Counts are the compiler's (`cost_analysis` of the compiled program). It
counts the body of a loop once, so the other rounds are added: rounds - 1 times the cost of products
of one block, again the compiler's count. Timed beside it: dense products of the ideal size.

    python -m bench.grouped_flops
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from springroll.bench import measure
from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig, llama
from springroll.models.dispatch import block_count, block_size
from springroll.models.grouped import grouped_dot
from springroll.models.moe import moe

CONFIG = llama(512, 256, 8, 1, vocab=256, experts=64, top_k=8)


def ideal(config: DecoderConfig, tokens: int) -> float:
    """FLOPs of tokens * top_k picks times three matrices, once forward and twice backward."""
    return 9 * 2.0 * tokens * config.top_k * config.hidden * config.ffn


def counted(fn: Callable[..., Any], *args: Any) -> float:
    """The compiler's count for a function of arguments of these shapes; loop bodies count once."""
    cost: Any = jax.jit(fn).lower(*args).compile().cost_analysis()
    return float(cost["flops"])


def block_flops(config: DecoderConfig, tokens: int) -> float:
    """Of one mixture of experts with its routing and dispatch, forward and backward."""
    picks = tokens * config.top_k
    size = block_size(picks, config.experts)
    rounds = block_count(picks, config.experts, size)
    d, f = config.hidden, config.ffn
    round_ = 2 * one_round(size, d, f) + one_round(size, f, d)
    return counted(gradient(config), *arguments(config, tokens)) + (rounds - 1) * round_


def one_round(size: int, width: int, out: int) -> float:
    """Of one block through one matrix: the product and its two gradients."""
    x, y = _shape(size, width), _shape(size, out)
    w, group = _shape(1, out, width), jax.ShapeDtypeStruct((1,), jnp.int32)
    product = lambda x, w, group: grouped_dot(x, w, group, transposed=True)
    back = lambda x, w, group, dy: jax.vjp(lambda x, w: product(x, w, group), x, w)[1](dy)
    return counted(product, x, w, group) + counted(back, x, w, group, y)


def ragged_flops(config: DecoderConfig, tokens: int) -> float:
    """Of the same three products by `jax.lax.ragged_dot`, on rows already sorted by expert."""
    groups, d, f = config.experts, config.hidden, config.ffn

    def three(x: Array, gate: Array, up: Array, down: Array, sizes: Array) -> Array:
        hidden = jax.nn.silu(jax.lax.ragged_dot(x, gate, sizes)) * jax.lax.ragged_dot(x, up, sizes)
        return jnp.sum(jnp.square(jax.lax.ragged_dot(hidden, down, sizes)))

    wide, narrow = _shape(groups, d, f), _shape(groups, f, d)
    sizes = jax.ShapeDtypeStruct((groups,), jnp.int32)
    x = _shape(tokens * config.top_k, d)
    return counted(jax.grad(three, (0, 1, 2, 3)), x, wide, wide, narrow, sizes)


def gradient(config: DecoderConfig) -> Callable[..., Any]:
    """Gradient of a number made of a block's output, for its parameters and its input."""
    return jax.grad(lambda w, x: jnp.sum(jnp.square(moe(config, w, x)[0])), (0, 1))


def dense_gradient(w: dict[str, Array], x: Array) -> Any:
    """The gradient of as many dense products of the same size as the picks ask for."""

    def total(w: dict[str, Array], x: Array) -> Array:
        hidden = jax.nn.silu(x @ w["gate_proj"].T) * (x @ w["up_proj"].T)
        return jnp.sum(jnp.square(hidden @ w["down_proj"].T))

    return jax.grad(total, (0, 1))(w, x)


def arguments(config: DecoderConfig, tokens: int) -> tuple[Any, Any]:
    """Shapes of one layer's experts and of its input (1, tokens, D)."""
    params = jax.eval_shape(decoder(config).init, jax.random.key(0))["layers"]["mlp"]
    layer = jax.tree.map(lambda leaf: _shape(*leaf.shape[1:]), params)
    return layer, _shape(1, tokens, config.hidden)


def seconds(config: DecoderConfig, tokens: int, repeats: int) -> dict[str, float]:
    """Median of forward and backward: the block of experts, and dense products of ideal size."""
    layer, x = jax.tree.map(
        lambda s: jax.random.normal(jax.random.key(s.size), s.shape) / 8, arguments(config, tokens)
    )
    one = jax.tree.map(lambda leaf: leaf[0], layer["experts"])
    rows = jnp.repeat(x[0], config.top_k, axis=0)
    ours, dense = jax.jit(gradient(config)), jax.jit(dense_gradient)
    variants = {"ours": lambda: ours(layer, x), "dense": lambda: dense(one, rows)}
    return measure.medians(measure.interleaved(variants, repeats))


def run(config: DecoderConfig = CONFIG, tokens: int = 2048, repeats: int = 7) -> dict[str, Any]:
    """FLOPs as multiples of the ideal, and seconds beside dense products of ideal size."""
    best = ideal(config, tokens)
    ours, ragged = block_flops(config, tokens), ragged_flops(config, tokens)
    time = seconds(config, tokens, repeats)
    return measure.record(
        "grouped_flops",
        ours=ours / best,
        baseline=ragged / best,
        ratio=ragged / ours,
        unit="multiples of the ideal FLOPs, forward and backward; baseline: ragged_dot",
        experts=config.experts,
        top_k=config.top_k,
        tokens=tokens,
        hidden=config.hidden,
        ffn=config.ffn,
        seconds=time["ours"],
        seconds_of_dense_products_of_ideal_size=time["dense"],
        target="ours <= 1.5",
    )


def main() -> None:
    measure.pin_one_core()
    measure.report(run())


def _shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


if __name__ == "__main__":
    main()
