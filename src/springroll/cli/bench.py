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
from typing import TYPE_CHECKING, Annotated

import tyro

from springroll.atomic import replacing
from springroll.cli.faults import BAD_INPUT
from springroll.cli.options import parse
from springroll.errors import InputError, suggestion

if TYPE_CHECKING:
    from rich.table import Table

    from springroll.bench.measure import Result

BENCHES: dict[str, str] = {
    "int8_throughput": "int8 training compared with inference of the same model, tokens per second",
    "openes_ratio": "a step of EGGROLL compared with one of OpenES",
    "lowgrad_memory": "memory of a step at the shape of LLaMA-7B, compiled and not run",
    "optimizer_state": "bytes of optimizer state, 60M to 7B, compared with the published ones",
    "stream_overlap": "a streamed step compared with its busiest resource and MegaTrain's order; "
    "minutes",
    "plan_accuracy": "the planner's memory and time compared with measurements; six minutes",
    "finetune_vs_grpo": "evolution compared with GRPO at equal wall-clock, three seeds; 20 minutes",
    "control": "EGGROLL, OpenES and PPO on control tasks at equal wall-clock; an hour and more",
    "lowgrad_quality": "final loss of low-rank and full gradients, each at its best rate; an hour",
}
ALL = "all"
FAILED = 1  # exit code; where the benchmark says that its input was bad, its own


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Measure one of the claims on this machine: one JSON line per result, and a table.

    Without a name, lists the benchmarks. What follows ` -- ` goes to the benchmark, as in
    `springroll bench control -- --tasks CartPole-v1 --seeds 3`.
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    """The benchmark, or `all`."""
    out: str | None = None
    """Also write the JSON lines to this file."""


def run(argv: Sequence[str]) -> int:
    """List, or measure and print."""
    argv, arguments = split(list(argv))
    options = parse(BenchOptions, argv, prog="springroll bench")
    if options.name is None:
        width = max(map(len, BENCHES))
        print("\n".join(f"{name:{width}}  {what}" for name, what in BENCHES.items()))
        return 0
    if arguments and options.name == ALL:
        raise InputError(f"what follows -- is of one benchmark; name it instead of {ALL}")
    names = list(BENCHES) if options.name == ALL else [known(options.name)]
    results: list[Result] = []
    code = 0
    for name in names:
        measured, ended = measure(name, arguments)
        results += measured
        failed = ended != 0 or not measured
        code = max(code, BAD_INPUT if ended == BAD_INPUT else FAILED if failed else 0)
        show(measured)
    if options.out is not None:
        with replacing(Path(options.out)) as file:
            file.write("".join(json.dumps(result) + "\n" for result in results).encode())
    return code


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """What stands before and after ` -- `."""
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def known(name: str) -> str:
    """The name of a benchmark, in either spelling.

    Raises:
        InputError: there is none of that name; the nearest is named, and an experiment of the clone
            that one stands in is shown with its own command.
    """
    name = name.replace("-", "_")
    if name not in BENCHES:
        if Path("bench", f"{name}.py").exists():
            raise InputError(f"{name} is an experiment; it is run by python -m bench.{name}")
        hint = suggestion(name, BENCHES, otherwise=f"there are {', '.join(BENCHES)}")
        raise InputError(f"unknown benchmark {name!r}{hint}")
    return name


def command(name: str, arguments: Sequence[str] = ()) -> list[str]:
    """What runs a benchmark in a process of its own."""
    return [sys.executable, "-m", f"springroll.bench.{name}", *arguments]


def measure(name: str, arguments: Sequence[str] = ()) -> "tuple[list[Result], int]":
    """The JSON lines that a benchmark prints, and its exit code; its output is passed on."""
    results = []
    with subprocess.Popen(command(name, arguments), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            try:
                result = json.loads(line)
            except ValueError:
                continue
            if isinstance(result, dict):
                results.append(result)
    return results, process.returncode


def show(results: "list[Result]") -> None:
    """A table per result, on standard error: standard output stays JSON."""
    from rich.console import Console

    for result in results:
        Console(stderr=True).print(table(result))


def table(result: "Result") -> "Table":
    """One result for people."""
    from rich.table import Table

    out = Table.grid(padding=(0, 2, 0, 0))
    for name, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        out.add_row(name, f"{value:,}" if isinstance(value, int | float) else str(value))
    return out
