"""Memory of a training step at 7B, from the compiler's buffer assignment; nothing is allocated.

LLaMA-7B's shape in float32, 256 tokens, every block recomputed in the backward pass. The peak is
arguments plus temporary buffers plus outputs that do not take an argument's place.

    springroll bench lowgrad_memory
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import optax
from jax import Array
from jax.stages import Compiled

from springroll.bench import measure
from springroll.bench.measure import peak_bytes
from springroll.models.decoder import Decoder, decoder
from springroll.models.decoder_config import CONFIGS
from springroll.subspace.lowgrad import lowgrad
from springroll.subspace.trainer import Program
from springroll.trees import PyTree, Select

GIB = 2**30
Shapes: TypeAlias = PyTree  # parameters and batches as `jax.ShapeDtypeStruct`
Programs: TypeAlias = dict[str, Compiled]  # by what is added to the name of a line
Compile = Callable[[Decoder, Shapes, Shapes], Programs]  # (model, params, tokens) -> programs
Loss = Callable[[PyTree, PyTree], tuple[Array, PyTree]]  # (params, batch) -> loss, further figures
Step = Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree, Array]]


def full_step(loss: Loss, optimizer: optax.GradientTransformation) -> Step:
    """The usual step: (params, moments, batch) -> (params, moments, loss)."""

    def step(params: PyTree, moments: PyTree, batch: PyTree) -> tuple[PyTree, PyTree, Array]:
        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict
            updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, value

    return step


def in_blocks(path: str) -> bool:
    """The weights that are projected: those of attention and MLP."""
    return path.endswith("_proj")


def adamw(model: Decoder, params: Shapes, tokens: Shapes) -> Programs:
    """The usual step with full gradients."""
    optimizer = optax.adamw(1e-3)
    step = jax.jit(full_step(model.loss, optimizer), donate_argnums=(0, 1))
    return {"": step.lower(params, jax.eval_shape(optimizer.init, params), tokens).compile()}


def low_rank(rank: int, select: Select = in_blocks) -> Compile:
    """The hot step of `lowgrad`, and the two programs that run when layers get new subspaces."""

    def compile_(model: Decoder, params: Shapes, tokens: Shapes) -> Programs:
        trainer = lowgrad(
            model.loss,
            params,
            optax.adamw(1e-3),
            tokens,
            rank=rank,
            select=select,
            has_aux=True,
        )
        state = jax.eval_shape(trainer.init, params)
        names: dict[str, Program] = {"": "step", " refresh": "probe", " change of basis": "refresh"}
        return {
            suffix: trainer.lower(name, state, tokens).compile() for suffix, name in names.items()
        }

    return compile_


def lines(rank: int) -> dict[str, Compile]:
    """Every optimizer of the table."""
    return {"adamw": adamw, f"lowgrad r={rank}": low_rank(rank)}


def peaks(name: str, rank: int, tokens: int) -> dict[str, int]:
    """Line -> peak bytes, for a model by name on one sequence of `tokens` tokens."""
    model = decoder(CONFIGS[name], remat=True)
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = jax.ShapeDtypeStruct((1, tokens + 1), "int32")
    return {
        line + suffix: peak_bytes(compiled)
        for line, make in lines(rank).items()
        for suffix, compiled in make(model, params, batch).items()
    }


def run(model: str = "llama-7b", rank: int = 1024, tokens: int = 256) -> measure.Result:
    """Peak GiB of every line; the ratio is AdamW's over the hot step's."""
    table = {line: size / GIB for line, size in peaks(model, rank, tokens).items()}
    ours = table[f"lowgrad r={rank}"]
    return measure.record(
        "lowgrad_memory",
        ours=ours,
        baseline=table["adamw"],
        ratio=table["adamw"] / ours,
        unit="GiB at peak",
        model=model,
        tokens=tokens,
        lines={line: round(size, 2) for line, size in table.items()},
        target="lowgrad r=1024 at 55 or less, AdamW at 101",
    )


def main() -> None:
    measure.Arguments(description=str(__doc__).splitlines()[0]).parse_args()
    measure.report(run())


if __name__ == "__main__":
    main()
