"""A tiny evolution task for the tests of the loop: a quadratic, members with a memory of their own.

Deliberately sensitive: every weight depends on every earlier fitness and on the members' carry, so
any generation lost, repeated or fed from another carry changes the final bytes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from springroll.run.task import Task

POP, WIDTH = 8, 5


def draw(state):
    key = jax.random.fold_in(state["key"], state["generation"])
    half = jax.random.normal(key, (POP // 2, WIDTH))
    return jnp.concatenate([half, -half])


@jax.jit
def ask(state):
    return draw(state)


@partial(jax.jit, donate_argnums=2)
def evaluate(state, members, carry, batch):
    weights = state["weights"][None] + jnp.float32(0.1) * members
    memory = jnp.float32(0.5) * carry + weights
    fitness = -jnp.sum((memory - batch) ** 2, axis=1)
    return fitness, memory, {"train_bits_per_byte": -jnp.mean(fitness)}


@jax.jit
def evaluate_memoryless(state, members, carry, batch):
    weights = state["weights"][None] + jnp.float32(0.1) * members
    fitness = -jnp.sum((weights - batch) ** 2, axis=1)
    return fitness, carry, {"train_bits_per_byte": -jnp.mean(fitness)}


@partial(jax.jit, donate_argnums=0)
def tell(state, members, fitness):
    use = jnp.isfinite(fitness)
    fitness = jnp.where(use, fitness, 0)
    step = (fitness - fitness.mean()) @ members / POP
    new = {
        "weights": state["weights"] + jnp.float32(0.05) * step,
        "key": state["key"],
        "generation": state["generation"] + 1,
    }
    return new, {"step": jnp.linalg.norm(step)}


@jax.jit
def loss(state):
    return {"valid_bits_per_byte": jnp.sum(state["weights"] ** 2)}


def batch(generation):
    return np.full((1, WIDTH), np.sin(generation), np.float32)


def toy(*, seed=0, carry=True, width=WIDTH, **changes):
    """The task; `changes` replace its fields."""

    def init():
        state = {
            "weights": jnp.ones(width),
            "key": jax.random.key(seed),
            "generation": jnp.int32(0),
        }
        return state, jnp.zeros((POP, width)) if carry else None

    fields = {
        "init": init,
        "batch": batch,
        "ask": ask,
        "evaluate": evaluate if carry else evaluate_memoryless,
        "tell": tell,
        "validate": lambda state, carry: loss(state),
        "pop_size": POP,
        "tokens": 100,
        "seed": seed,
    }
    return Task(**(fields | changes))
