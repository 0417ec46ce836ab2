"""A step of EGGROLL compared with a step of OpenES on the same network, from the same program.

Both evaluate and update a small policy. The only difference is that OpenES perturbs every weight
with a full matrix per pair, so it draws, stores and multiplies a weight per member.

    springroll bench openes_ratio
"""

import itertools
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.stages import Wrapped

from springroll.bench import measure
from springroll.evolve.eggroll import eggroll, open_es
from springroll.evolve.members import evaluate
from springroll.evolve.strategy import EvolutionState, Strategy

WIDTHS = (8, 256, 256, 256, 4)
SIGMA, LR = 0.05, 0.1

Params: TypeAlias = dict[str, dict[str, Array]]


def init(key: Array) -> Params:
    """Layers of `kernel` (in, out) and `bias` (out,)."""
    keys = jax.random.split(key, len(WIDTHS) - 1)
    return {
        f"layer{i}": {
            "kernel": jax.random.normal(keys[i], (m, n)) / jnp.sqrt(jnp.float32(m)),
            "bias": jnp.zeros(n),
        }
        for i, (m, n) in enumerate(itertools.pairwise(WIDTHS))
    }


def policy(params: Params, observation: Array) -> Array:
    """relu(layer_norm(x)) without affine between the layers."""
    x = observation
    for i in range(len(WIDTHS) - 1):
        x = x @ params[f"layer{i}"]["kernel"] + params[f"layer{i}"]["bias"]
        if i < len(WIDTHS) - 2:
            x = x - x.mean(keepdims=True)
            x = jax.nn.relu(x * jax.lax.rsqrt((x * x).mean(keepdims=True) + 1e-6))
    return x


def score(params: Params, observation: Array) -> Array:
    """The negative squared distance of the outputs from one."""
    return -jnp.sum(jnp.square(policy(params, observation) - 1))


def step_of(es: Strategy) -> tuple[EvolutionState, Wrapped]:
    """(state, jitted step) of a strategy on the policy: draw, evaluate, update."""
    state = es.init(jax.random.key(1), init(jax.random.key(0)))

    @jax.jit
    def step(state: EvolutionState, observations: Array) -> EvolutionState:
        members = es.ask(state)
        fitness = evaluate(score, state, members, observations, in_axes=0)
        return es.tell(state, members, fitness)[0]

    return state, step


def run(
    pop_size: int = 256, rank: int = 1, noise: str = "gaussian", repeats: int = 9
) -> measure.Result:
    """Median seconds of a step of each strategy."""
    observations = jax.random.normal(jax.random.key(2), (pop_size, WIDTHS[0]))
    sgd = optax.sgd(LR)
    low_rank = eggroll(rank=rank, pop_size=pop_size, sigma=SIGMA, noise=noise, optimizer=sgd)
    dense = open_es(pop_size=pop_size, sigma=SIGMA, noise=noise, optimizer=sgd)
    state, ours = step_of(low_rank)
    dense_state, full = step_of(dense)
    time = measure.medians(
        measure.interleaved(
            {
                "ours": lambda: ours(state, observations),
                "openes": lambda: full(dense_state, observations),
            },
            repeats,
            settle_seconds=0.05,
        )
    )
    return measure.record(
        "openes_ratio",
        ours=time["ours"],
        baseline=time["openes"],
        ratio=time["openes"] / time["ours"],
        unit="seconds per step",
        temp_bytes=measure.temp_bytes(ours, state, observations),
        temp_bytes_openes=measure.temp_bytes(full, dense_state, observations),
        pop_size=pop_size,
        rank=rank,
        noise=noise,
    )


def main() -> None:
    measure.Arguments(description=str(__doc__).splitlines()[0]).parse_args()
    measure.pin_one_core()
    measure.report(run())


if __name__ == "__main__":
    main()
