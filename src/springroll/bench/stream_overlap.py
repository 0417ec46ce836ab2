"""A streamed step compared with its busiest resource and with MegaTrain's schedule, without a GPU.

    springroll bench stream_overlap -- [--timeline FILE.png]

Engine, conveyor and update threads are the real ones. Computation, the link in each direction and
the host optimizer take a set time by sleeping (see `bench.paced`), so that no core is fought for.
Times are given in units of the forward pass of one layer; a step of 32 layers with gradients of
recomputed layers is 4 * 32 of them, and 4 for the head. Each line is one case:

- a step over what its busiest resource takes alone. Computation: the same step with an infinitely
  fast link and optimizer. The link, in the busier direction: bytes over bandwidth. The optimizer:
  numbers over its rate. Target: at most 1.25.
- a step in the published order of MegaTrain (arXiv 2604.05091) under the same rates: inputs of
  every fourth layer kept, weights sent three times, no looking ahead on the way back, the norm of
  the whole gradient first, then all updates, waited for. "7B at 32k tokens" has the proportions of
  a 7-billion-parameter model with 32k tokens per step on an H200 (450 TFLOP/s, 50 GB/s each way,
  3.5e9 updates per second). Target there: ours at least 1.5 times as fast.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from springroll.bench import measure
from springroll.bench.paced import Event, Log, PacedAdamW, PacedLink, PacedModel, shapes
from springroll.stream.clipping import Clip
from springroll.stream.host_update import HostUpdate
from springroll.stream.streamed import Streamed
from springroll.stream.visit_order import VisitOrder

NUMBERS = 1 << 14  # per layer: so few that real copies and updates take no time
BYTES = 4  # of a number
FOREVER = float("inf")
TARGET, FASTER = 1.25, 1.5
# Resource -> (what it is called, colour), from the top.
ROWS = {
    "compute": ("compute", "#4c72b0"),
    "send": ("to device", "#55a868"),
    "fetch": ("to host", "#c4a000"),
    "update": ("host AdamW", "#c44e52"),
}


class Case(NamedTuple):
    """Units that one layer takes: its forward pass, its weights on the link, its update."""

    compute: float
    copy: float
    update: float


FIELD = "7B at 32k tokens"
# A step needs 4 computes, 2 copies to the device, one back and one update per layer.
CASES = {
    "GPU-bound": Case(1.0, 1.2, 2.4),
    "link-bound": Case(0.6, 2.0, 2.4),
    "CPU-bound": Case(0.6, 1.2, 4.0),
    FIELD: Case(1.0, 0.28, 2.0),
}


class Paced(NamedTuple):
    """A trainer whose parts are slow, and what they log."""

    trainer: Streamed
    update: HostUpdate
    log: Log

    def close(self) -> None:
        self.update.close()
        self.trainer.link.close()


def paced(case: Case, unit: float, layers: int, order: VisitOrder = "layer-major") -> Paced:
    """A model of `layers` layers and an embedding as large as one; a unit is so many seconds."""
    log = Log()
    size = NUMBERS * BYTES
    link = PacedLink(size / (case.copy * unit) if case.copy else FOREVER, log)
    rate = NUMBERS / (case.update * unit) if case.update else FOREVER
    adamw = PacedAdamW(1e-3, weight_decay=0.0, numbers_per_second=rate, log=log)
    update = HostUpdate(adamw, optax.adam(1e-3), threads=1)
    trainer = Streamed(
        PacedModel(case.compute * unit, log),
        shapes(layers, NUMBERS),
        update,
        link=link,
        clip=Clip(1.0, "global") if order == "checkpointed" else Clip(),
        order=order,
    )
    return Paced(trainer, update, log)


def steps(made: Paced, layers: int, repeats: int, settle: bool) -> list[float]:
    """When each of `repeats` steps, and the last one to warm up, was over.

    Args:
        settle: wait for all updates after every step.
    """
    trainer = made.trainer
    state = trainer.fill(
        iter([("embed", (), _ones(NUMBERS)), ("layers/w", (), _ones(layers, NUMBERS))])
    )
    tokens = jnp.zeros((1, 2), jnp.int32)
    ends = []
    for _ in range(repeats + 2):
        state, metrics = trainer.step(state, tokens)
        jax.block_until_ready(metrics)
        if settle:
            trainer.store.settle()
        ends.append(time.perf_counter())
    trainer.store.settle()
    return ends[1:]


def timed(
    case: Case, unit: float, layers: int, repeats: int, order: VisitOrder = "layer-major"
) -> tuple[float, list[Event]]:
    """(median seconds of a step, what was busy during the last one)."""
    made = paced(case, unit, layers, order)
    try:
        ends = steps(made, layers, repeats, settle=order == "checkpointed")
        return statistics.median(np.diff(ends)), made.log.between(*ends[-2:])
    finally:
        made.close()


def alone(case: Case, unit: float, layers: int, repeats: int) -> dict[str, float]:
    """Seconds that each resource needs for a step of ours."""
    compute, _ = timed(case._replace(copy=0, update=0), unit, layers, repeats)
    passages = 2 * layers - 1 + 2  # the last layer stays for its gradient; the embedding, twice
    return {
        "compute": compute,
        "send": passages * case.copy * unit,
        "fetch": (layers + 1) * case.copy * unit,
        "update": (layers + 1) * case.update * unit,
    }


def run(name: str, unit: float = 0.01, layers: int = 32, repeats: int = 5) -> measure.Result:
    """One case: our step, its resources, and the step in MegaTrain's order."""
    case = CASES[name]
    needs = alone(case, unit, layers, repeats)
    ours, _ = timed(case, unit, layers, repeats)
    theirs, _ = timed(case, unit, layers, repeats, "checkpointed")
    busiest = max(needs, key=lambda resource: needs[resource])
    return measure.record(
        "stream_overlap",
        ours=ours,
        baseline=needs[busiest],
        ratio=ours / needs[busiest],
        unit="seconds per step; baseline: the busiest resource alone",
        case=name,
        busiest=busiest,
        alone={resource: float(f"{seconds:.4g}") for resource, seconds in needs.items()},
        checkpointed=theirs,
        faster_than_checkpointed=theirs / ours,
        layers=layers,
        target=f"ratio <= {TARGET}; at 7B faster_than_checkpointed >= {FASTER}",
    )


def _ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def draw(steps: Mapping[str, Sequence[Event]], path: Path) -> None:
    """One panel per schedule, all with the same axis of seconds, each from the step's beginning."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.9 * len(steps)), layout="constrained")
    panels = figure.subplots(len(steps), sharex=True, squeeze=False)[:, 0]
    for panel, (name, events) in zip(panels, steps.items(), strict=True):
        start = min(e.start for e in events)
        length = max(e.stop for e in events) - start
        for at, (resource, (_, colour)) in enumerate(ROWS.items()):
            bars = [(e.start - start, e.stop - e.start) for e in events if e.resource == resource]
            panel.broken_barh(bars, (at - 0.4, 0.8), color=colour, edgecolor="white", linewidth=0.3)
        panel.set_yticks(range(len(ROWS)), [label for label, _ in ROWS.values()])
        panel.invert_yaxis()
        panel.axvline(length, color="black", linewidth=0.8)
        panel.set_title(f"{name}: {length:.2f} s a step", loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlim(left=0)
    panels[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = measure.Arguments(description=str(__doc__).splitlines()[0])
    parser.add_argument("--timeline", type=Path, help="draw one step of both orders to this file")
    options = parser.parse_args(arguments)
    if options.timeline is not None:
        case = CASES[FIELD]
        rows = {
            "layer-major": timed(case, 0.02, 12, 1)[1],
            "MegaTrain's order": timed(case, 0.02, 12, 1, "checkpointed")[1],
        }
        draw(rows, options.timeline)
        return
    for name in CASES:
        measure.report(run(name))


if __name__ == "__main__":
    main()
