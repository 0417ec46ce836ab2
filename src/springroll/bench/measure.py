"""How every number is measured: one pinned core, interleaved runs, medians; where and when.

Times of two variants are only comparable when they come from the same minutes of the same machine,
so variants run in turn (A B A B ...) and the ratio is that of their medians.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from springroll.cpu import cores
from springroll.errors import InputError, one_line
from springroll.ranges import Number, Range, check_number, read_number

if TYPE_CHECKING:
    from jax.stages import Compiled, Wrapped

    from springroll.trees import PyTree

Result: TypeAlias = dict[str, Any]
"""A JSON object. Every benchmark has `ours`, `baseline` and `ratio`, and figures of its own."""


class Arguments(argparse.ArgumentParser):
    """A parser of a benchmark's own arguments: what does not fit is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"springroll: {one_line(message)}\n")

    def add_number(self, name: str, kind: type, range: Range, **options: Any) -> None:
        """An argument that is a number of a kind (int or float) in a range."""

        def read(text: str) -> Number:
            try:
                value = read_number(name, text, kind)
                check_number(name, value, kind, range)
            except InputError as error:
                raise argparse.ArgumentTypeError(str(error)) from None
            return value

        self.add_argument(name, type=read, **options)


def pin_one_core(core: int | None = None) -> int:
    """Bind this process to one core; call it before JAX starts its backend. Returns the core.

    Without `core`, the first allowed one. XLA sizes its thread pools by the affinity it finds when
    the backend starts; a system that has no affinity call (macOS) gets the XLA flag alone.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    core = allowed[0] if core is None else core
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    flag = "--xla_cpu_multi_thread_eigen=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    return core


def interleaved(
    variants: "dict[str, Callable[[], PyTree]]",
    repeats: int = 7,
    warmup: int = 1,
    settle_seconds: float = 0.0,
    clock: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each variant, run in turn `repeats` times after `warmup` untimed rounds.

    Args:
        variants: name -> a call without arguments, whose arrays are waited for.
        repeats: timed rounds.
        warmup: rounds before them, in which programs are compiled.
        settle_seconds: pause before each call. XLA frees temporary buffers after the result is
            ready; the pause keeps one variant's gigabyte from being freed in the time of the next.
        clock: seconds, by default of the wall; `time.process_time` counts those that this process
            computes, of which others take none where it is bound to one core.

    Returns:
        Name -> `repeats` times in seconds, in the order in which they were taken.
    """
    import jax

    clock = clock or time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(warmup + repeats):
        for name, call in variants.items():
            time.sleep(settle_seconds)
            start = clock()
            jax.block_until_ready(call())
            if round_ >= warmup:
                seconds[name].append(clock() - start)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The median time of each variant."""
    return {name: statistics.median(times) for name, times in seconds.items()}


def temp_bytes(jitted: "Wrapped", *args: "PyTree") -> int:
    """Temporary memory in bytes of a jitted function, from the compiler's buffer assignment."""
    stats = jitted.lower(*args).compile().memory_analysis()
    assert stats is not None
    return stats.temp_size_in_bytes


def peak_bytes(compiled: "Compiled") -> int:
    """Bytes that one call of a compiled program holds at most, donated arguments counted once."""
    stats = compiled.memory_analysis()
    assert stats is not None
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes + stats.temp_size_in_bytes + outputs


def record(name: str, ours: float, baseline: float, ratio: float, **details: Any) -> Result:
    """The result of one benchmark, with the machine, the commit and the date.

    Args:
        name: of the benchmark.
        ours: what springroll takes or reaches.
        baseline: the same figure of what it is compared with, from the same run.
        ratio: of the two, in the direction that the benchmark states.
        details: further entries. Floats are rounded to four digits, here and above.
    """
    return {
        "name": name,
        "ours": _rounded(ours),
        "baseline": _rounded(baseline),
        "ratio": _rounded(ratio),
        **{key: _rounded(value) for key, value in details.items()},
        "machine": machine(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def command(*arguments: str) -> None:
    """Run `springroll ARGUMENTS` in a process of its own; a run that was interrupted is resumed.

    A run whose `--out` folder holds a summary is finished and is not repeated.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    if "--out" in arguments:
        out = Path(arguments[arguments.index("--out") + 1])
        if (out / "summary.json").exists():
            return
        if (out / "config.json").exists():
            arguments = (*arguments, "--resume")
    print("springroll", *arguments, file=sys.stderr)
    subprocess.run([sys.executable, "-m", "springroll", *arguments], check=True, stdout=sys.stderr)


def machine() -> dict[str, str | int]:
    """Processor, cores this process may use, Python, JAX and device."""
    import jax

    return {
        "processor": _processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def commit() -> str | None:
    """The short commit of the checkout this package is run from; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        described = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def report(result: Result) -> None:
    """Print one JSON line."""
    print(json.dumps(result), flush=True)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
