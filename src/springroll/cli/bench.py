"""`springroll bench [NAME]`: measure a claim on this machine.

Every benchmark runs in a process of its own, which binds itself to one core before JAX starts
unless it is about all of them.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from springroll.atomic import replacing
from springroll.cli.options import parse
from springroll.errors import InputError, suggestion

if TYPE_CHECKING:
    from rich.table import Table

BENCHES: dict[str, str] = {
    "int8_throughput": "int8 training beside inference of the same model, tokens per second",
    "population_forward": "a population's forward beside a plain one and dense members",
    "mlp_step": "one evaluation and update of a small policy beside threefry drawn twice",
    "openes_ratio": "a step of EGGROLL beside one of OpenES",
    "lattice_rules": "bits per byte at equal tokens of the integer rules",
    "train_step": "a training step with each optimizer beside AdamW's",
    "lowgrad_memory": "memory of a step at the shape of LLaMA-7B, compiled and not run",
    "lowgrad_communication": "bytes that 8 devices exchange per step, full and low-rank gradients",
    "layerwise_memory": "memory of a step that keeps one layer's gradient, at LLaMA-7B's shape",
    "optimizer_state": "bytes of optimizer state, 60M to 7B, beside the published ones",
    "subspace_refresh": "a new subspace by a power step beside a full SVD; three minutes",
    "state_quantization": "error of moments in 8 and 4 bits beside linear codes",
    "grouped_flops": "FLOPs of 64 experts beside the ideal and ragged_dot",
    "expert_granular": "what holds of the claims for mixtures of experts; minutes",
    "stream_overlap": "a streamed step beside its busiest resource and MegaTrain's order; minutes",
    "largest_step": "a step of a 1B model under 2 GiB of device memory; ten minutes, 17 GB",
    "link_bandwidth": "copies each way, page-locked and pageable, and what they overlap with",
    "streamed_throughput": "streamed beside resident steps at 24 GB; for a GPU",
    "largest_streamed": "the deepest model that takes a step in this machine's memory; for a GPU",
    "host_adamw": "AdamW on host memory beside a triad, bytes per second",
    "plan_accuracy": "the planner's memory and time beside measurements; six minutes",
    "evolve_from_disk": "a generation of a model of 4B parameters in a mapped folder; minutes",
    "verifier": "verdicts on 10,000 generated problems beside brute force, and on hostile texts",
    "decode": "a population that writes text beside pure inference and noise drawn every step",
    "int8_finetune": "fine-tuning int8 weights beside float32 ones; minutes",
    "finetune_vs_grpo": "evolution beside GRPO at equal wall-clock, three seeds; 20 minutes",
    "control": "EGGROLL, OpenES and PPO on control tasks at equal wall-clock; an hour and more",
    "control_goals": "the quick recipes of rl beside their goals, three seeds; half an hour",
    "environment_rate": "the paper's sixteen tasks, bare and under a population; half an hour",
    "evosax_rate": "EGGROLL beside Open_ES of evosax, steps per second and returns; ten minutes",
    "reference_rate": "members per second on one core beside the reference's",
    "gymnasium_pool": "Gymnasium environments in the pool beside the same alone",
    "lowgrad_quality": "final loss of low-rank and full gradients, each at its best rate; an hour",
}
ALL = "all"
FAILED = 1  # exit code


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Measure one of the claims on this machine: one JSON line per result, and a table.

    Without a name, lists what there is. What follows ` -- ` goes to the benchmark, as in
    `springroll bench control -- --tasks CartPole-v1 --seeds 3`.
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    """The benchmark, or `all`."""
    out: str | None = None
    """Also write the JSON lines to this file."""


def run(argv: Sequence[str]) -> int:
    """List, or measure and print."""
    argv, given = split(list(argv))
    options = parse(BenchOptions, argv, prog="springroll bench")
    if options.name is None:
        width = max(map(len, BENCHES))
        print("\n".join(f"{name:{width}}  {what}" for name, what in BENCHES.items()))
        return 0
    if given and options.name == ALL:
        raise InputError(f"what follows -- is of one benchmark; name it instead of {ALL}")
    names = list(BENCHES) if options.name == ALL else [known(options.name)]
    results: list[dict[str, Any]] = []
    failed = False
    for name in names:
        found, code = measured(name, given)
        results += found
        failed |= code != 0 or not found
        show(found)
    if options.out is not None:
        with replacing(Path(options.out)) as file:
            file.write("".join(json.dumps(result) + "\n" for result in results).encode())
    return FAILED if failed else 0


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """What stands before and after ` -- `."""
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def known(name: str) -> str:
    """The name of a benchmark, in either spelling.

    Raises:
        InputError: there is none of that name; the nearest is named.
    """
    name = name.replace("-", "_")
    if name not in BENCHES:
        hint = suggestion(name, BENCHES, otherwise=f"there are {', '.join(BENCHES)}")
        raise InputError(f"unknown benchmark {name!r}{hint}")
    return name


def command(name: str, given: Sequence[str] = ()) -> list[str]:
    """What runs a benchmark in a process of its own."""
    return [sys.executable, "-m", f"springroll.bench.{name}", *given]


def measured(name: str, given: Sequence[str] = ()) -> tuple[list[dict[str, Any]], int]:
    """The JSON lines that a benchmark prints, and its exit code; what else it says is passed on."""
    results = []
    with subprocess.Popen(command(name, given), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                results.append(found)
    return results, process.returncode


def show(results: list[dict[str, Any]]) -> None:
    """A table per result, on standard error: standard output stays JSON."""
    from rich.console import Console

    for result in results:
        Console(stderr=True).print(table(result))


def table(result: dict[str, Any]) -> "Table":
    """One result for people."""
    from rich.table import Table

    out = Table.grid(padding=(0, 2, 0, 0))
    for key, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {each}" for name, each in value.items())
        out.add_row(key, f"{value:,}" if isinstance(value, int | float) else str(value))
    return out
