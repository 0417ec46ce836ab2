"""The predictions of `sr.plan` compared with measured steps: peak memory and seconds.

    springroll bench plan_accuracy -- [CASE]

Twelve configurations. Bytes are those of both tiers, as device and host of a CPU are one memory;
they are measured as the kernel's own record of a process's peak (VmHWM, reset through
/proc/self/clear_refs) during steps, less what the process took before the trainer was built and
after another one had compiled all programs. Seconds are predicted from the rates of one layer
(`plan.measured`), which is run by itself in turn with whole steps; not where a disk is used, or two
devices, which are one processor here, nor where a step takes minutes.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from springroll.bench import measure
from springroll.bench.process_memory import forget_peak, process_bytes
from springroll.memory import trim_heap
from springroll.models.decoder_config import DecoderConfig, llama
from springroll.planner.methods import Dtype, Mode

if TYPE_CHECKING:
    import optax

    from springroll.planner.footprint import Clip, Placement, StepSpec
    from springroll.stream.streamed import Streamed, StreamedState
    from springroll.stream.update import Update

MEMORY, SECONDS = 0.10, 0.20  # the errors that are promised
STEPS = 3
WARM = 2
# The C library keeps freed memory for later; with these it gives it back, so that the peak of the
# process is that of its arrays. They cost time, so seconds are measured without.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_ARENA_MAX": "1"}
LEARNING = 1e-4


@dataclass(frozen=True, kw_only=True)
class Case:
    """A configuration: a model, a method, and where things are."""

    config: DecoderConfig
    mode: Mode
    method: str = "adamw"
    dtype: Dtype = "float32"
    rows: int = 2
    parts: int = 1
    sequence: int = 256
    stay: int = 0  # layers on the device
    inputs: int = 1 << 20  # layers whose inputs stay, at most
    clip: Clip = "none"
    disk: int = 0  # layers on a disk
    devices: int = 1
    long: bool = False  # a step takes minutes

    @property
    def timed(self) -> bool:
        """Whether this machine's seconds say something about the plan's, and come soon."""
        return not self.disk and self.devices == 1 and not self.long

    @property
    def warm(self) -> int:
        """Steps until memory is as it stays."""
        return 1 if self.long else WARM


DENSE = llama(1024, 2816, 16, 8, vocab=8192)
LONG = llama(1024, 2816, 16, 4, vocab=8192, kv_heads=4)
EXPERTS = llama(512, 512, 8, 8, vocab=8192, experts=16, top_k=2)
CASES = {
    "float32, host": Case(config=DENSE, mode="host"),
    "bfloat16, host, 2 parts": Case(config=DENSE, mode="host", dtype="bfloat16", parts=2),
    "8-bit state, device": Case(
        config=DENSE, mode="device", method="adamw-8bit", dtype="bfloat16", rows=1
    ),
    "resident, 2 parts": Case(config=DENSE, mode="resident", parts=2, stay=8),
    "experts, device": Case(config=EXPERTS, mode="device", rows=4),
    "experts, host, inputs away": Case(
        config=EXPERTS, mode="host", rows=4, parts=2, stay=2, inputs=0
    ),
    "16,384 tokens at once, host": Case(
        config=LONG, mode="host", rows=1, sequence=16384, long=True
    ),
    "8,192 tokens at once, bfloat16, device, inputs away": Case(
        config=LONG,
        mode="device",
        dtype="bfloat16",
        rows=1,
        parts=2,
        sequence=8192,
        inputs=0,
        long=True,
    ),
    "gradients wait for their norm": Case(config=DENSE, mode="host", stay=3, clip="global"),
    "tied, large vocabulary": Case(
        config=llama(512, 1408, 8, 8, vocab=65536, tied=True), mode="host", parts=2
    ),
    "disk, host": Case(config=DENSE, mode="host", disk=8),
    "two devices, host": Case(config=DENSE, mode="host", devices=2),
}


def planned(case: Case) -> tuple[StepSpec, Placement]:
    """What a step has to do, and where everything is stored."""
    from springroll.planner.footprint import Placement, StepSpec
    from springroll.planner.methods import method_bytes
    from springroll.planner.working_set import working_set

    config = case.config
    spec = StepSpec(
        config=config,
        method=method_bytes(config, case.method, dtype=case.dtype),
        tokens=case.rows * case.parts * case.sequence,
        rows=case.rows,
        sequence=case.sequence,
        working=working_set(config, case.rows // case.devices, case.sequence, case.dtype),
        clip=case.clip,
        devices=case.devices,
    )
    inputs = min(case.inputs, config.layers)
    return spec, Placement(case.mode, case.stay, inputs, case.disk)


def predicted_bytes(case: Case) -> measure.Result:
    """Bytes of both tiers together, and by kind."""
    from springroll.planner.footprint import device_bytes, host_bytes, together

    asked = planned(case)
    tiers = {"device": device_bytes(*asked), "host": host_bytes(*asked)}
    # A processor computes with layers where they were read from a disk; a card has copies.
    same = tiers["device"]["layers passing"] if case.disk == case.config.layers else 0
    return {"bytes": together(*asked) - same, **tiers}


def updates(case: Case) -> tuple[optax.GradientTransformation, Update]:
    """The optimizer of streamed layers, and what applies it."""
    import optax

    import springroll as sr
    from springroll.stream.device_update import DeviceUpdate
    from springroll.stream.host_adamw import AdamW
    from springroll.stream.host_update import HostUpdate
    from springroll.stream.update import PlacedUpdate

    tx = optax.adam(LEARNING)
    if case.method.endswith("-8bit"):
        tx = sr.quantize_state(tx)
    if case.dtype == "bfloat16":
        tx = sr.with_split_master(tx)
    on_device = DeviceUpdate(tx)
    if case.mode != "host":
        return tx, on_device
    return tx, PlacedUpdate(on_device, HostUpdate(AdamW(LEARNING, weight_decay=0.0), tx))


def trainer(case: Case) -> tuple[Streamed, StreamedState]:
    """The trainer with its store filled; the file of a disk is in the folder of temporary files."""
    import jax

    from springroll.models.decoder import decoder, leaves
    from springroll.planner.footprint import disk_window
    from springroll.stream.clipping import Clip as Clipping
    from springroll.stream.disk import Disk
    from springroll.stream.fill_store import stacked_leaves
    from springroll.stream.link import Link
    from springroll.stream.streamed import Streamed

    model, layers = decoder(case.config), case.config.layers
    stay = range(layers - case.stay, layers)
    made = Streamed(
        model,
        jax.eval_shape(model.init, jax.random.key(0)),
        updates(case)[1],
        narrow=case.dtype == "bfloat16",
        link=Link(jax.devices()[: case.devices]),
        disk=Disk(tempfile.gettempdir(), disk_window(*planned(case))) if case.disk else None,
        on_disk=range(case.disk),
        on_device=[*stay, *([layers] if case.mode == "resident" else [])],
        parts=case.parts,
        kept_inputs=min(case.inputs, layers),
        clip=Clipping(1e9) if case.clip == "global" else Clipping(),
    )
    state = made.fill(stacked_leaves(leaves(case.config, jax.random.key(0))))
    return made, state


def steps(case: Case, trainer: Streamed, state: StreamedState, count: int) -> list[float]:
    """Seconds of each of `count` steps, its updates included."""
    import jax
    import numpy as np

    shape = (case.rows * case.parts, case.sequence + 1)
    tokens = np.random.default_rng(0).integers(0, case.config.vocab, shape, np.int32)
    times = []
    for _ in range(count):
        start = time.perf_counter()
        state, metrics = trainer.step(state, tokens)
        jax.block_until_ready(metrics)
        trainer.store.settle()
        times.append(time.perf_counter() - start)
    return times


def seconds(case: Case) -> tuple[float, float]:
    """(predicted, measured): medians, in turn, so that both see the same minutes."""
    from springroll.planner.measured_rates import calibration
    from springroll.planner.step_time import step_seconds

    spec, place = planned(case)
    rates = calibration(spec, updates(case)[0])
    made, state = trainer(case)
    steps(case, made, state, WARM)
    said, was = [], []
    for _ in range(STEPS):
        said.append(step_seconds(spec, place, rates()).step)
        was += steps(case, made, state, 1)
    return statistics.median(said), statistics.median(was)


def peak(case: Case) -> int:
    """Bytes that the process takes for the trainer and its steps, at most.

    A first trainer compiles and is dropped; the second finds every program in the cache.
    """
    made, state = trainer(case)
    steps(case, made, state, case.warm)
    del made, state
    settled()
    before = process_bytes("VmRSS")
    made, state = trainer(case)
    steps(case, made, state, case.warm)
    settled()
    forget_peak()
    steps(case, made, state, case.warm)
    return process_bytes("VmHWM") - before


def settled() -> None:
    """Give memory that nobody uses back to the system."""
    gc.collect()
    trim_heap()


def measured(name: str, what: str) -> measure.Result:
    """One number of a case, "bytes" or "seconds", in this process, and what was predicted."""
    case = CASES[name]
    if what == "bytes":
        return {"said": predicted_bytes(case), "was": peak(case)}
    said, was = seconds(case)
    return {"said": said, "was": was}


def compared(name: str) -> measure.Result:
    """Predictions and measurements of one case."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as cache:
        settings = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        if case.devices > 1:
            count = f"--xla_force_host_platform_device_count={case.devices}"
            settings["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
        time = fresh(name, "seconds", settings) if case.timed else None
        memory = fresh(name, "bytes", settings | RETURNED)
    kinds = memory["said"]
    found = {"case": name, "kinds": kinds} | beside("bytes", kinds["bytes"], memory["was"])
    return found | (beside("seconds", time["said"], time["was"]) if time else {})


def beside(kind: str, said: float, was: float) -> measure.Result:
    """What was said, what was, and the error."""
    return {kind: [said, was], f"{kind}_error": said / was - 1}


def run(names: tuple[str, ...] = tuple(CASES)) -> measure.Result:
    """All cases, each in a process of its own."""
    rows = [compared(name) for name in names]
    worst = {
        kind: max((abs(row[f"{kind}_error"]) for row in rows if kind in row), default=0.0)
        for kind in ("bytes", "seconds")
    }
    return measure.record(
        "plan_accuracy",
        ours=worst["bytes"],
        baseline=MEMORY,
        ratio=worst["bytes"] / MEMORY,
        unit="largest relative error of the predicted peak memory, and the promised one",
        seconds_error=worst["seconds"],
        seconds_promised=SECONDS,
        cases={row["case"]: line(row) for row in rows},
    )


def fresh(name: str, what: str, settings: dict[str, str]) -> measure.Result:
    """`measured`, in a new process."""
    command = [sys.executable, "-m", "springroll.bench.plan_accuracy", name, what]
    done = subprocess.run(
        command, env=os.environ | settings, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def line(row: measure.Result) -> str:
    """Predicted and measured."""
    said, was = row["bytes"]
    memory = f"{said / 1e9:.3f} GB said, {was / 1e9:.3f} was ({row['bytes_error']:+.1%})"
    if "seconds" not in row:
        return memory
    said, was = row["seconds"]
    return f"{memory}; {said:.2f} s said, {was:.2f} was ({row['seconds_error']:+.1%})"


def main() -> None:
    parser = measure.Arguments(description=str(__doc__).splitlines()[0])
    parser.add_argument("case", nargs="?", choices=CASES, help="one of them, not all")
    parser.add_argument("kind", nargs="?", choices=("bytes", "seconds"), help="in this process")
    options = parser.parse_args()
    if options.kind is not None:
        print(json.dumps(measured(options.case, options.kind)), flush=True)
    elif options.case is not None:
        print(json.dumps(compared(options.case)), flush=True)
    else:
        measure.report(run())


if __name__ == "__main__":
    main()
