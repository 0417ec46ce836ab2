"""Learning on int8 weights by what is kept of rounding: float32 copies, 8 bits, 4 bits, nothing.

A network of two blocks of 12 numbers learns from a teacher whose weights differ by a tenth, from a
reward alone: 32 members, perturbed by sigma = 0.005, about one step of the grid, as the large
models of `springroll finetune --weights int8` are. `rate` is the move of a generation in units of
sigma; such models begin at 1 by default, and are at 0.5 after ten generations. Counted is the share
of the loss that is left, the mean of the last tenth of the generations; with nothing kept, values
are rounded at random.

    python -m bench.int8_residuals [SEEDS]

Two minutes on 2 cores, shared with other work, for three seeds.
"""

import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import springroll as sr
from springroll.bench import measure
from springroll.evolve.step import Master
from springroll.models.layers import linear
from springroll.quant.int8_weights import quantize_weights
from springroll.trees import PyTree

LAYERS, WIDTH, INNER, ROWS, MEMBERS, SIGMA = 2, 12, 20, 64, 32, 0.005
KEPT: dict[str, Master] = {
    "float32": "float32",
    "8 bits": "error_feedback",
    "4 bits": "error_feedback_4bit",
    "nothing": "stochastic",
}
RATES = {0.5: 400, 0.05: 2000}  # generations


def outputs(params: PyTree, x: Array) -> Array:
    """Of the network, (rows, WIDTH)."""

    def block(x: Array, layer: PyTree) -> tuple[Array, None]:
        return x + linear(jnp.tanh(linear(x, layer["up_proj"])), layer["down_proj"]), None

    return jax.lax.scan(block, x, params["layers"])[0]


def problem(seed: int) -> tuple[PyTree, Array, Array]:
    """(int8 weights to begin at, inputs, what the teacher makes of them)."""
    rng = np.random.default_rng(seed)
    draw = lambda size, *shape: jnp.asarray(size * rng.standard_normal(shape), jnp.float32)
    shapes = {"up_proj": (LAYERS, INNER, WIDTH), "down_proj": (LAYERS, WIDTH, INNER)}
    floats = {name: draw(0.3, *shape) for name, shape in shapes.items()}
    inputs = draw(1.0, ROWS, WIDTH)
    teacher = {name: w + draw(0.03, *w.shape) for name, w in floats.items()}
    return quantize_weights({"layers": floats}), inputs, outputs({"layers": teacher}, inputs)


def score(params: PyTree, inputs: Array, wanted: Array) -> Array:
    """Minus the mean squared error."""
    return -jnp.mean((outputs(params, inputs) - wanted) ** 2)


def learner(kept: Master, rate: float, generations: int) -> Callable[..., Array]:
    """(weights, inputs, outputs, key) -> the share of the loss that is left, ()."""
    es = sr.eggroll(pop_size=MEMBERS, sigma=SIGMA, optimizer=optax.sgd(rate), master=kept)

    @jax.jit
    def learnt(params: PyTree, inputs: Array, wanted: Array, key: Array) -> Array:
        def one(state: Any, _: None) -> tuple[Any, Array]:
            members = es.ask(state)
            fitness = sr.evaluate(score, state, members, inputs, wanted)
            state, _metrics = es.tell(state, members, fitness)
            return state, score(state.params, inputs, wanted)

        _, curve = jax.lax.scan(one, es.init(key, params), length=generations)
        return curve[-max(1, generations // 10) :].mean() / score(params, inputs, wanted)

    return learnt


def run(seeds: int = 3, rates: dict[float, int] = RATES) -> dict[str, Any]:
    """The share of the loss that is left, by rate and by what is kept, for each seed."""
    problems = [problem(seed) for seed in range(seeds)]
    left: dict[str, dict[str, list[float]]] = {}
    for rate, generations in rates.items():
        for name, kept in KEPT.items():
            learnt = learner(kept, rate, generations)
            ends = [learnt(*given, jax.random.key(i)) for i, given in enumerate(problems)]
            left.setdefault(f"rate {rate}", {})[name] = [round(float(x), 4) for x in ends]
    first = {
        name: statistics.mean(ends) for name, ends in left[f"rate {next(iter(rates))}"].items()
    }
    return measure.record(
        "int8_residuals",
        ours=first["4 bits"],
        baseline=first["float32"],
        ratio=first["4 bits"] / first["float32"],
        unit="share of the loss left, mean over seeds; baseline: float32 copies",
        seeds=seeds,
        left=left,
    )


def main() -> None:
    measure.report(run(int(sys.argv[1]) if len(sys.argv) > 1 else 3))


if __name__ == "__main__":
    main()
