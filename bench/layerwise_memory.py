"""Memory of a layer-wise APOLLO-Mini step beside AdamW's, from the compiler's buffer assignment.

    python -m bench.layerwise_memory [CONFIG] [TOKENS]

Nothing is run and no weight is made: LLaMA-7B (the default) compiles in seconds on a laptop. Both
keep the input of every block only; weights are float32 and donated.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

from springroll.bench import measure
from springroll.compat import edge_jit
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS, DecoderConfig
from springroll.subspace.apollo import apollo_mini
from springroll.subspace.layerwise import layerwise

GIB = 1 << 30


def run(config: str | DecoderConfig = "llama-7b", tokens: int = 256) -> dict[str, Any]:
    """GiB of arguments and temporaries of a step."""
    found = CONFIGS[config] if isinstance(config, str) else config
    ours, baseline = layerwise_bytes(found, tokens), adamw_bytes(found, tokens)
    return measure.record(
        "layerwise_memory",
        ours=sum(ours) / GIB,
        baseline=sum(baseline) / GIB,
        ratio=sum(baseline) / sum(ours),
        unit="GiB, arguments + temporary; ours: layer-wise APOLLO-Mini, baseline: AdamW",
        arguments=ours[0] / GIB,
        temporary=ours[1] / GIB,
        adamw_arguments=baseline[0] / GIB,
        adamw_temporary=baseline[1] / GIB,
        parameters=found.parameters,
        tokens=tokens,
    )


def layerwise_bytes(
    config: DecoderConfig,
    tokens: int,
    optimizer: optax.GradientTransformation | None = None,
    dtype: Any = jnp.float32,
) -> tuple[int, int]:
    """(arguments, temporaries) of a layer-wise step, by default APOLLO-Mini for the matrices of the
    blocks and Adam for the rest."""
    model = decoder(config)
    trainer = layerwise(
        model,
        optimizer or apollo_mini(1e-2, rows="out", select="layers/*_proj"),
        optax.adam(1e-3),
    )
    params = jax.eval_shape(lambda key: model.init(key, dtype), jax.random.key(0))
    return _bytes(trainer.step, params, jax.eval_shape(trainer.init, params), tokens)


def adamw_bytes(config: DecoderConfig, tokens: int) -> tuple[int, int]:
    """(arguments, temporaries) of the usual step: all gradients, then AdamW."""
    model, optimizer = decoder(config, remat=True), optax.adamw(1e-3)

    def step(params: Any, state: Any, tokens: Any) -> Any:
        grads = jax.grad(lambda p: model.loss(p, tokens)[0])(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.eval_shape(model.init, jax.random.key(0))
    return _bytes(step, params, jax.eval_shape(optimizer.init, params), tokens)


def _bytes(step: Any, params: Any, state: Any, tokens: int) -> tuple[int, int]:
    text = jax.ShapeDtypeStruct((1, tokens + 1), jnp.int32)
    jitted: Any = edge_jit(step, donate_argnums=(0, 1))
    memory = jitted.lower(params, state, text).compile().memory_analysis()
    return int(memory.argument_size_in_bytes), int(memory.temp_size_in_bytes)


def main() -> None:
    config = sys.argv[1] if len(sys.argv) > 1 else "llama-7b"
    measure.report(run(config, int(sys.argv[2]) if len(sys.argv) > 2 else 256))


if __name__ == "__main__":
    main()
