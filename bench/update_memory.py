"""Memory of finetune's update beside the weights, from the compiler's buffer assignment.

    python -m bench.update_memory [CONFIG] [MEMBERS]

Nothing is run and no weight is made. Weights are bfloat16, rounded at random, with the momentum of
SGD and the bound on the step. Ours is the update in place with momentum that is made again from its
noise; the baseline is the whole update with momentum that is kept, as `sr.eggroll` has it for
everyone. Both count the weights, the factors of all members, and what the update takes at its peak.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

from springroll.bench import measure
from springroll.evolve import in_place
from springroll.evolve.eggroll import eggroll
from springroll.evolve.momentum import Momentum
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS, DecoderConfig
from springroll.thin.discovery import discover
from springroll.trees import PyTree, tree_bytes

GIB = 1 << 30


def run(
    config: str | DecoderConfig = "qwen2.5-1.5b",
    members: int = 64,
    slice_bytes: int = in_place.SLICE_BYTES,
) -> dict[str, Any]:
    """GiB of weights, factors and update; `slice_bytes` of a leaf are updated at a time."""
    model = decoder(CONFIGS[config] if isinstance(config, str) else config)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.bfloat16))
    roles = discover(model.apply, params, jax.ShapeDtypeStruct((1, 8), jnp.int32))
    usual = {
        "pop_size": members,
        "sigma": 1e-3,
        "master": "stochastic",
        "max_step_ratio": 0.02,
        "roles": {path: x if x.kind == "low-rank" else "frozen" for path, x in roles.items()},
    }
    again = eggroll(optimizer=optax.sgd(0.01), momentum=Momentum.of(0.9), **usual)
    state, asked = shapes(again, params)
    most = 0
    for program in in_place.programs_in_place(again, state, asked, slice_bytes):
        used = program.lower().compile().memory_analysis()
        assert used is not None
        most = max(most, used.temp_size_in_bytes + 2 * used.output_size_in_bytes)
    held = tree_bytes((state, asked))
    kept = eggroll(optimizer=optax.sgd(0.01, momentum=0.9), **usual)
    fitness = jax.ShapeDtypeStruct((members,), jnp.float32)
    used = jax.jit(kept.tell).lower(*shapes(kept, params), fitness).compile().memory_analysis()
    assert used is not None
    whole = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
    return measure.record(
        "update_memory",
        ours=(held + most) / GIB,
        baseline=whole / GIB,
        ratio=whole / (held + most),
        unit="GiB of weights, factors and update; baseline: updated whole, momentum kept",
        weights=tree_bytes(params) / GIB,
        factors=tree_bytes(asked) / GIB,
        update=most / GIB,
        over_weights_and_factors=(held + most) / tree_bytes((params, asked)),
        members=members,
    )


def shapes(strategy: Any, params: PyTree) -> tuple[Any, Any]:
    """State and members, in shapes."""
    state = jax.eval_shape(strategy.init, jax.eval_shape(lambda: jax.random.key(0)), params)
    return state, jax.eval_shape(strategy.ask, state)


def main() -> None:
    config = sys.argv[1] if len(sys.argv) > 1 else "qwen2.5-1.5b"
    measure.report(run(config, int(sys.argv[2]) if len(sys.argv) > 2 else 64))


if __name__ == "__main__":
    main()
