"""How every number is taken: one pinned core, interleaved runs, medians, and where and when it was.

Times of two variants are only comparable when they come from the same minutes of the same machine,
so variants run in turn (A B A B ...) and the ratio is that of their medians.
"""

import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from springroll.cpu import cores


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
    variants: dict[str, Callable[[], Any]],
    repeats: int = 7,
    warmup: int = 1,
    settle_seconds: float = 0.0,
) -> dict[str, list[float]]:
    """Wall seconds of each variant, run in turn `repeats` times after `warmup` untimed rounds.

    A variant is a call without arguments whose result is waited for. XLA frees temporary buffers
    after the result is there; a pause of `settle_seconds` before each call keeps one variant's
    gigabyte from being given back in the time of the next.
    """
    import jax

    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(warmup + repeats):
        for name, call in variants.items():
            time.sleep(settle_seconds)
            start = time.perf_counter()
            jax.block_until_ready(call())
            if round_ >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(times) for name, times in seconds.items()}


def temp_bytes(jitted: Any, *args: Any) -> int:
    """Temporary memory of a jitted function, from the compiler's buffer assignment."""
    return int(jitted.lower(*args).compile().memory_analysis().temp_size_in_bytes)


def record(name: str, ours: float, baseline: float, ratio: float, **details: Any) -> dict[str, Any]:
    """The result of one benchmark: what, how much, beside what, where, at which commit, when."""
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


def machine() -> dict[str, Any]:
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
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def report(result: dict[str, Any]) -> None:
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
