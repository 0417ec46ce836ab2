"""A little network in stages, and what evolves it: compiles in a moment."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import springroll as sr
from springroll.evolve.members import evaluate

N, D, H, LAYERS = 8, 6, 4, 3
KEY = jax.random.key(1)


class Toy:
    """Residual layers with a memory, and a loss that says how far the answer is."""

    stack = "blocks"

    def embed(self, rest, inputs):
        return rest["emb"][inputs["tokens"]]

    def block(self, layer, x, index, memory=None):
        shift = jnp.zeros((), x.dtype) if memory is None else memory.sum().astype(x.dtype)
        x = x + jnp.tanh(x @ layer["up"] + layer["bias"][None] + shift) @ layer["down"]
        return x, None if memory is None else x[-1, :2].astype(jnp.float32) / 10

    def finish(self, rest, x, stats, inputs):
        error = (x @ rest["out"]).astype(jnp.float32) - inputs["answer"][:, None]
        return jnp.mean(error**2), {}

    def score(self, rest, x, inputs):
        return -self.finish(rest, x, {}, inputs)[0]


TOY = Toy()


def whole(params, inputs, memory):
    """The same as one function: (fitness, memory (layers, 2))."""

    def layer(x, scanned):
        weights, memory, index = scanned
        return TOY.block(weights, x, index, memory)

    x = TOY.embed(params, inputs)
    scanned = (params["blocks"], memory, jnp.arange(LAYERS, dtype=jnp.int32))
    x, memory = jax.lax.scan(layer, x, scanned)
    return TOY.score(params, x, inputs), memory


def params_of(dtype=jnp.float32):
    shapes = {"up": (LAYERS, D, H), "down": (LAYERS, H, D), "bias": (LAYERS, H)}
    keys = iter(jax.random.split(jax.random.key(0), 5))
    draw = lambda shape: (jax.random.normal(next(keys), shape) / 3).astype(dtype)
    blocks = {name: draw(shape) for name, shape in shapes.items()}
    return {"emb": draw((7, D)), "out": draw((D, 2)), "blocks": blocks}


def strategy(**options):
    """By default with Adam, whose epsilon keeps a sum that cancels to rounding from a full step."""
    defaults: dict[str, Any] = {"pop_size": N, "sigma": 0.05, "rank": 2, "noise": "rademacher"}
    settings: dict[str, Any] = defaults | {"optimizer": optax.adam(1e-2, eps=1e-3)} | options
    return sr.eggroll(**settings)


def inputs_of(generation, members=None):
    random = np.random.default_rng(generation)
    shape = (5,) if members is None else (members, 5)
    tokens = random.integers(0, 7, shape).astype(np.int32)
    return {"tokens": tokens, "answer": random.random(shape, np.float32)}


def resident(es, params, generations, key=KEY):
    """The run on the whole model: (state, memory, fitness of every generation)."""
    state, memory, history = es.init(key, params), jnp.zeros((N, LAYERS, 2)), []
    for generation in generations:
        members = es.ask(state)
        fitness, memory = evaluate(
            whole, state, members, inputs_of(generation), memory, in_axes=(None, 0), has_aux=True
        )
        history.append(np.asarray(fitness))
        state, _ = es.tell(state, members, history[-1])
    return state, memory, history


def run(engine, generations, memory=None):
    """The same, streamed; ends with a step that is still due."""
    memory = jnp.zeros((N, LAYERS, 2)) if memory is None else memory
    history = []
    for generation in generations:
        fitness, memory = engine.evaluate(inputs_of(generation), memory)
        history.append(np.asarray(fitness))
        engine.tell(history[-1])
    return memory, history
