"""One evaluation and update of a small policy, beside the scheme that draws threefry normals twice.

For a network this small and a single forward pass, nearly all the time of the published scheme goes
into noise: every member draws its own factors with threefry for the forward and again for the
update. Ours draws cheap counted noise once per antithetic pair and keeps it for the update.

    python -m bench.mlp_step
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from springroll.bench import measure
from springroll.bench.openes_ratio import LR, SIGMA, WIDTHS, init, step_of
from springroll.evolve.eggroll import eggroll


def ours(pop_size: int, rank: int, noise: str) -> Any:
    """(state, one jitted step) of this library."""
    es = eggroll(pop_size=pop_size, sigma=SIGMA, rank=rank, noise=noise, optimizer=optax.sgd(LR))
    return step_of(es)


def threefry_twice(pop_size: int, rank: int) -> Any:
    """(params, one jitted step) of the published scheme, written from the paper's description."""
    params = init(jax.random.key(0))

    def factors(key: Array, member: Array, i: int, shape: tuple[int, int]) -> tuple[Array, ...]:
        sign = jnp.where(member % 2 == 0, 1.0, -1.0)
        weight, bias = jax.random.split(jax.random.fold_in(key, i))
        draw = functools.partial(jax.random.fold_in, data=member // 2)
        both = jax.random.normal(draw(weight), (sum(shape), rank))
        right, left = both[: shape[1]], both[shape[1] :]
        scale = sign * SIGMA / jnp.sqrt(jnp.float32(rank))
        return left * scale, right, jax.random.normal(draw(bias), (shape[1],)) * sign * SIGMA

    def forward(params: Any, key: Array, member: Array, observation: Array) -> Array:
        x = observation
        for i, shape in enumerate(itertools.pairwise(WIDTHS)):
            layer = params[f"layer{i}"]
            left, right, bias = factors(key, member, i, shape)
            x = x @ layer["kernel"] + (x @ left) @ right.T + layer["bias"] + bias
            if i < len(WIDTHS) - 2:
                x = x - x.mean(keepdims=True)
                x = jax.nn.relu(x * jax.lax.rsqrt((x * x).mean(keepdims=True) + 1e-6))
        return -jnp.sum(jnp.square(x - 1))

    @jax.jit
    def step(params: Any, generation: Array, observations: Array) -> Any:
        key = jax.random.fold_in(jax.random.key(1), generation)
        members = jnp.arange(pop_size)
        fitness = jax.vmap(forward, (None, None, 0, 0))(params, key, members, observations)
        shaped = (fitness - fitness.mean()) * jax.lax.rsqrt(fitness.var() + 1e-5)
        new = {}
        for i, shape in enumerate(itertools.pairwise(WIDTHS)):
            left, right, bias = jax.vmap(lambda m, i=i, s=shape: factors(key, m, i, s))(members)
            scale = LR / jnp.sqrt(jnp.float32(pop_size))
            kernel = jnp.einsum("i,iar,ibr->ab", shaped, left, right)
            layer = params[f"layer{i}"]
            new[f"layer{i}"] = {
                "kernel": layer["kernel"] + scale * kernel,
                "bias": layer["bias"] + scale * shaped @ bias,
            }
        return new

    return params, step


def run(
    pop_size: int = 1024, rank: int = 1, noise: str = "gaussian", repeats: int = 15
) -> dict[str, Any]:
    """Median seconds of a step: ours, and the scheme with threefry normals drawn twice."""
    observations = jax.random.normal(jax.random.key(2), (pop_size, WIDTHS[0]))
    state, step = ours(pop_size, rank, noise)
    params, reference = threefry_twice(pop_size, rank)
    time = measure.medians(
        measure.interleaved(
            {
                "ours": lambda: step(state, observations),
                "threefry": lambda: reference(params, jnp.int32(0), observations),
            },
            repeats,
        )
    )
    return measure.record(
        "mlp_step",
        ours=time["ours"],
        baseline=time["threefry"],
        ratio=time["threefry"] / time["ours"],
        unit="seconds per step",
        pop_size=pop_size,
        rank=rank,
        noise=noise,
        published_seconds=0.0366,
        target="ratio >= 4",
    )


def main() -> None:
    measure.pin_one_core()
    measure.report(run())


if __name__ == "__main__":
    main()
