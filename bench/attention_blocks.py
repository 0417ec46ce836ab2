"""Attention in blocks of scores compared with forming all of them, forward and backward.

Time and temporary memory of the gradient of causal attention: in blocks, as the models take it for
texts of this length; with all scores formed, as they take it for short ones; and by
`jax.nn.dot_product_attention`, what JAX offers on every backend.

    python -m bench.attention_blocks [TIME] [TYPE]
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from springroll.bench import measure
from springroll.models import attention
from springroll.models.attention_scores import ALL
from springroll.models.decoder_config import llama

HEADS, KV_HEADS, WIDTH = 8, 2, 64


def gradient(attend: Callable[..., Array]) -> Any:
    """The jitted gradient of a sum of what attention returns, in q, k and v."""
    loss = lambda *qkv: jnp.sum(jnp.square(attend(*qkv).astype(jnp.float32)))
    return jax.jit(jax.grad(loss, (0, 1, 2)))


def run(time: int = 4096, dtype: str = "bfloat16", repeats: int = 5) -> dict[str, Any]:
    """Median seconds, and temporary bytes of the compiled programs."""
    config = llama(HEADS * WIDTH, 1, HEADS, 1, head_dim=WIDTH, kv_heads=KV_HEADS)
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(1, time, heads, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    qkv = [jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True)]
    programs = {
        "blocks": gradient(functools.partial(attention.attend, config)),
        "formed": gradient(lambda *qkv: attention._formed(config, *qkv, None, ALL)),
        "jax": gradient(functools.partial(jax.nn.dot_product_attention, is_causal=True)),
    }
    calls = {name: functools.partial(program, *qkv) for name, program in programs.items()}
    seconds = measure.medians(measure.interleaved(calls, repeats))
    memory = {name: measure.temp_bytes(program, *qkv) for name, program in programs.items()}
    return measure.record(
        "attention_blocks",
        ours=seconds["blocks"],
        baseline=seconds["jax"],
        ratio=seconds["jax"] / seconds["blocks"],
        unit="seconds of a gradient",
        formed=seconds["formed"],
        time=time,
        dtype=dtype,
        **{f"{name}_temporary_mib": size / 2**20 for name, size in memory.items()},
    )


def main() -> None:
    time, dtype = [*sys.argv[1:], *("4096", "bfloat16")[len(sys.argv) - 1 :]]
    measure.report(run(int(time), dtype))


if __name__ == "__main__":
    main()
