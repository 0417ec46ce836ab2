"""Decoding for a population on one accelerator, unattended, in one call; random weights.

    python -m bench.gpu_decode                 # under 10 minutes on one H100-class GPU
    python -m bench.gpu_decode --small         # the same on a CPU in a minute, for tests

Prints one JSON line per measurement and writes them all, with chip and date, to bench/results/.

1,024 rows in bfloat16 beside as many rows of pure inference: a prompt per member, which reads
factors for every two rows, and 8 prompts per member, whose rows share them. Targets: 0.88 and 0.95
of pure inference, 40,000 tokens per second at the shape of Qwen2.5-1.5B, 15,000 at Qwen3-1.7B.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp

from bench import decode, unattended
from springroll.bench import measure
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS, DecoderConfig, llama

QWEN3_1_7B = llama(
    2048, 6144, 16, 28, vocab=151936, kv_heads=8, head_dim=128, rope_theta=1e6, qk_norm="head",
    tied=True,
)  # fmt: skip


def population(
    name: str, config: DecoderConfig, members: int, prompts: int, most: int, target: str
) -> dict[str, Any]:
    """One shape: tokens per second, the ratio to pure inference, and seconds until it first ran."""
    model = decoder(config)
    params = jax.jit(lambda: model.init(jax.random.key(0), jnp.bfloat16))()
    asked, drawing = decode.ask(params, members)
    start = time.perf_counter()
    decode.rates(model, params, asked, prompts=prompts, most=most, repeats=0)
    first = time.perf_counter() - start
    rate = decode.rates(model, params, asked, prompts=prompts, most=most, repeats=3)
    return measure.record(
        name,
        **decode.compared(rate),
        members=members,
        prompts=prompts,
        tokens=most,
        parameters=config.parameters,
        seconds_of_drawing_once=drawing,
        seconds_of_first_run_both=first,
        target=target,
    )


def measurements(small: bool) -> list[tuple[str, Any]]:
    """Names and calls, the quick ones first."""
    if small:
        shapes = [("tiny", CONFIGS["llama-tiny"], 4, 2, 6, "none")]
    else:
        qwen2 = CONFIGS["qwen2.5-1.5b"]
        shapes = [
            ("qwen2.5-1.5b 8 prompts", qwen2, 128, 8, 256, "ratio >= 0.95, 40,000 tokens/s"),
            ("qwen2.5-1.5b 1 prompt", qwen2, 1024, 1, 256, "ratio >= 0.88"),
            ("qwen3-1.7b 8 prompts", QWEN3_1_7B, 128, 8, 256, "ratio >= 0.95, 15,000 tokens/s"),
        ]
    return [(shape[0], lambda shape=shape: population(*shape)) for shape in shapes]


if __name__ == "__main__":
    unattended.script("gpu_decode", str(__doc__).splitlines()[0], measurements)
