"""Training tokens per second of the int8 model, beside pure inference on the same batch.

A training generation is everything: noise drawn, every member's forward, votes summed, weights
moved. Inference is the same model code without perturbation on the same streams, as many as
members. Both run in the registers that multiply fastest here, or in those asked for.

    springroll bench int8_throughput
"""

import jax
import jax.numpy as jnp

from springroll.bench import measure
from springroll.compat import edge_jit
from springroll.quant.fixed_point import Registers
from springroll.quant.registers import fastest_registers
from springroll.trees import PyTree

# layers, hidden, members, tokens per generation: published tokens per second on one core of an EPYC
SIZES = {
    "6x256": (6, 256, 256, 20, 1_360),
    "2x64": (2, 64, 256, 100, 52_000),
}


def run(
    n_layers: int = 6,
    hidden: int = 256,
    members: int = 256,
    tokens: int = 20,
    published: float | None = 1_360,
    repeats: int = 9,
    registers: Registers | None = None,
) -> measure.Result:
    """Tokens per second of training and of inference, and their ratio."""
    from springroll.evolve.lattice import lattice
    from springroll.evolve.members import evaluate
    from springroll.models.egg import EggConfig, egg
    from springroll.thin.discovery import discover

    registers = registers or fastest_registers()
    model = egg(EggConfig(n_layers=n_layers, hidden=hidden, registers=registers))
    params = model.init(jax.random.key(0))
    roles = discover(model.score, params, jnp.zeros(tokens + 1, jnp.uint8), model.state())
    strategy = lattice(pop_size=members, sigma=2.0**-4, roles=roles, registers=registers)
    state = strategy.init(jax.random.key(1), params)
    text = jax.random.randint(jax.random.key(2), (members, tokens + 1), 1, 128, jnp.uint8)
    carry = model.state((members,))

    score = edge_jit(
        lambda state, members, text, carry: evaluate(
            model.score, state, members, text, carry, in_axes=0, has_aux=True
        ),
    )

    def train() -> PyTree:
        asked = strategy.ask(state)
        fitness, _ = score(state, asked, text, carry)
        return strategy.tell(state, asked, fitness)[0].params

    infer = edge_jit(jax.vmap(model.score, (None, 0, 0)))
    time = measure.medians(
        measure.interleaved(
            {"train": train, "infer": lambda: infer(state.params, text, carry)}, repeats, warmup=2
        )
    )
    total = members * tokens
    return measure.record(
        "int8_throughput",
        ours=total / time["train"],
        baseline=total / time["infer"],
        ratio=time["infer"] / time["train"],
        unit="tokens per second; baseline: own inference",
        size=f"{n_layers}x{hidden}",
        members=members,
        tokens=tokens,
        registers=registers,
        published_tokens_per_second=published,
    )


def main() -> None:
    measure.Arguments(description=str(__doc__).splitlines()[0]).parse_args()
    measure.pin_one_core()
    for size in SIZES.values():
        for registers in ("int8", "float32"):
            measure.report(run(*size, registers=registers))


if __name__ == "__main__":
    main()
