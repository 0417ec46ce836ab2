"""The forward of a whole population, beside a plain forward and beside a weight per member.

Four residual blocks of width 256, scanned; every one of 64 members reads its own 16 tokens. The
noise is drawn beforehand. `plain` runs the unperturbed model on the same 64 inputs: what inference
costs. `dense` forms every member's weights and runs them: what a population costs without the thin
term.

    python -m bench.population_forward
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from springroll.bench import measure
from springroll.evolve.eggroll import eggroll
from springroll.evolve.members import Members, evaluate
from springroll.thin.factored_array import Factored

WIDTH, HIDDEN, BLOCKS, TOKENS = 256, 1024, 4, 16


def init(key: Array) -> dict[str, Any]:
    up, down = jax.random.split(key)
    return {
        "norm": jnp.ones((BLOCKS, WIDTH)),
        "up": jax.random.normal(up, (BLOCKS, WIDTH, HIDDEN)) * WIDTH**-0.5,
        "down": jax.random.normal(down, (BLOCKS, HIDDEN, WIDTH)) * HIDDEN**-0.5,
    }


def score(params: dict[str, Any], x: Array) -> Array:
    """`x` (tokens, width) through pre-norm residual blocks to one number."""

    def block(x: Array, layer: dict[str, Any]) -> tuple[Array, None]:
        h = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        h = h * layer["norm"][None]
        return x + jax.nn.relu(h @ layer["up"]) @ layer["down"], None

    return jnp.mean(jax.lax.scan(block, x, params)[0])


def dense_forward(params: Any, members: Members, x: Array) -> Array:
    """Every member's weights are formed, then run."""
    perturbation = members.perturbation

    def member(sign: Array, factors: Any, x: Array) -> Array:
        attached = perturbation.attach(params, factors, sign, members.sigma)
        formed = jax.tree.map(
            lambda leaf: leaf.dense() if isinstance(leaf, Factored) else leaf,
            attached,
            is_leaf=lambda leaf: isinstance(leaf, Factored),
        )
        return score(formed, x)

    by_sign = jax.vmap(member, (0, None, 0))
    by_pair = jax.vmap(by_sign, (None, perturbation.pair_axes(), 0))
    pairs = x.reshape(-1, 2, *x.shape[1:])
    return by_pair(jnp.array([1.0, -1.0]), members.drawn(), pairs).reshape(-1)


def run(
    pop_size: int = 64, rank: int = 1, noise: str = "gaussian", repeats: int = 11
) -> dict[str, Any]:
    """Median seconds and temporary bytes of the three forwards."""
    es = eggroll(pop_size=pop_size, sigma=0.02, rank=rank, noise=noise, roles={"norm": "dense"})
    state = es.init(jax.random.key(0), init(jax.random.key(1)))
    members = jax.block_until_ready(es.ask(state))
    x = jax.random.normal(jax.random.key(2), (pop_size, TOKENS, WIDTH))
    ours = jax.jit(lambda s, m, x: evaluate(score, s, m, x, in_axes=0))
    plain = jax.jit(jax.vmap(score, (None, 0)))
    dense = jax.jit(dense_forward)
    time = measure.medians(
        measure.interleaved(
            {
                "ours": lambda: ours(state, members, x),
                "plain": lambda: plain(state.params, x),
                "dense": lambda: dense(state.params, members, x),
            },
            repeats,
            settle_seconds=0.1,
        )
    )
    memory = measure.temp_bytes(ours, state, members, x)
    memory_plain = measure.temp_bytes(plain, state.params, x)
    return measure.record(
        "population_forward",
        ours=time["ours"],
        baseline=time["plain"],
        ratio=time["ours"] / time["plain"],
        unit="seconds per forward",
        dense_members=time["dense"],
        dense_over_ours=time["dense"] / time["ours"],
        temp_bytes=memory,
        temp_bytes_plain=memory_plain,
        temp_bytes_dense=measure.temp_bytes(dense, state.params, members, x),
        temp_ratio=memory / memory_plain,
        pop_size=pop_size,
        rank=rank,
        noise=noise,
        target="ratio <= 1.25, temp_ratio <= 3, dense_over_ours >= 10",
    )


def main() -> None:
    measure.pin_one_core()
    measure.report(run())


if __name__ == "__main__":
    main()
