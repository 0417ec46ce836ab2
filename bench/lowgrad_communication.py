"""What data parallelism sends per step: gradients of S against full gradients, read from the HLO.

The batch is split over 8 (fake) devices and the compiler inserts the all-reduces. Nothing is run at
the size of the claim; that the trajectory does not depend on the number of devices is checked on a
small model. Embedding and head are full in both, so they are counted apart.

    python -m bench.lowgrad_communication
"""

import math
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from springroll.bench import measure
from springroll.bench.lowgrad_memory import full_step, in_blocks
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS
from springroll.subspace.lowgrad import lowgrad

DEVICES = 8
MODELS = ("llama-60m", "llama-350m", "llama-1b")
BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1, "f64": 8, "s8": 1, "u8": 1}


def all_reduced(hlo: str) -> dict[tuple[int, ...], int]:
    """Shape -> bytes that all-reduces of a compiled program move per execution, loops counted.

    A loop body's collectives count as often as the compiler says that the loop runs.
    """
    bodies: dict[str, list[str]] = {}
    name = ""
    for line in hlo.splitlines():
        header = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{", line)
        if header:
            name = "ENTRY" if line.startswith("ENTRY") else header[1]
        bodies.setdefault(name, []).append(line)
    found: dict[tuple[int, ...], int] = {}
    _count(bodies, "ENTRY", 1, found)
    return found


def _count(bodies: dict[str, list[str]], name: str, times: int, found: dict[Any, int]) -> None:
    for line in bodies.get(name, ()):
        op = re.search(r"= (.*?) (all-reduce|all-reduce-start)\(", line)
        if op:
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", op[1]):
                shape = tuple(int(d) for d in dims.split(",") if d)
                found[shape] = found.get(shape, 0) + times * BYTES[dtype] * math.prod(shape)
        loop = re.search(r"\bwhile\(.*body=%?([\w.\-]+)", line)
        if loop:
            runs = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            _count(bodies, loop[1], times * (int(runs[1]) if runs else 1), found)
        for inner in re.findall(r"(?:to_apply|calls|branch_computations)=\{?([%\w.\-, ]+)", line):
            for callee in inner.replace("%", "").split(", "):
                if "all-reduce" not in line:
                    _count(bodies, callee, times, found)


def run(models: tuple[str, ...] = MODELS, steps: int = 20) -> dict[str, Any]:
    """Bytes per step and device of both, per model, and how far one and 8 devices drift apart."""
    table = {name: _bytes(name) for name in models}

    last = table[models[-1]]
    return measure.record(
        "lowgrad_communication",
        ours=last["blocks"][0],
        baseline=last["blocks"][1],
        ratio=min(t["blocks_ratio"] for t in table.values()),
        unit="bytes all-reduced per step, weights of the blocks",
        models=table,
        drift=drift(steps),
        target="ratio >= 4.5 at r = d/4; drift <= 1e-5",
    )


def _bytes(name: str) -> dict[str, Any]:
    """[ours, full] in bytes: weights of the blocks, and everything."""
    config = CONFIGS[name]
    model = decoder(config, remat=True)
    whole, split = shardings()
    params = placed(jax.eval_shape(model.init, jax.random.key(0)), whole)
    tokens = jax.ShapeDtypeStruct((DEVICES, 129), "int32", sharding=split)
    optimizer = optax.adamw(1e-3)
    trainer = lowgrad(
        model.loss,
        params,
        optimizer,
        tokens,
        rank=config.hidden // 4,
        select=in_blocks,
        has_aux=True,
    )
    state = placed(jax.eval_shape(trainer.init, params), whole)
    ours = all_reduced(trainer.lower("step", state, tokens).compile().as_text() or "")
    moments = placed(jax.eval_shape(optimizer.init, params), whole)
    full = jax.jit(full_step(model.loss, optimizer), donate_argnums=(0, 1))
    theirs = all_reduced(full.lower(params, moments, tokens).compile().as_text() or "")
    ends = (config.vocab, config.hidden)  # embedding and head
    inner = [sum(b for s, b in found.items() if s != ends) for found in (ours, theirs)]
    return {
        "blocks": inner,
        "blocks_ratio": inner[1] / inner[0],
        "all": [sum(ours.values()), sum(theirs.values())],
    }


def drift(steps: int) -> float:
    """The largest relative difference of a step's loss, one device or all; refresh included."""
    model = decoder(CONFIGS["llama-1m"])
    start = jax.tree.map(np.asarray, model.init(jax.random.key(0)))
    tokens = np.random.default_rng(0).integers(0, 256, (steps, DEVICES, 65)).astype(np.int32)
    optimizer = optax.adam(5e-3)
    options = {"rank": 32, "select": in_blocks, "has_aux": True}
    losses = []
    for where in (None, shardings()):
        trainer = lowgrad(model.loss, start, optimizer, tokens[0], **options)
        state = trainer.init(jax.tree.map(jnp.asarray, start))
        state = state if where is None else jax.device_put(state, where[0])
        trace = []
        for batch in tokens:
            batch = batch if where is None else jax.device_put(batch, where[1])
            state, metrics = trainer.update(state, batch)
            trace.append(float(metrics["loss"]))
        losses.append(np.array(trace))
    return float(np.max(np.abs(losses[1] - losses[0]) / losses[0]))


def shardings() -> tuple[Any, Any]:
    """(on every device, split over the devices along the first axis)."""
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def placed(shapes: Any, sharding: Any) -> Any:
    """The shapes of arrays that lie there."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)


def main() -> None:
    flag = f"--xla_force_host_platform_device_count={DEVICES}"  # before JAX starts
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    measure.report(run())


if __name__ == "__main__":
    main()
