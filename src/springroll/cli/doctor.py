"""`springroll doctor`: what this machine has, and whether springroll works on it."""

import json
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from springroll.cli.options import parse
from springroll.train.progress import gibibytes, si

if TYPE_CHECKING:
    from rich.console import Console

FAILED = 1  # exit code
SHOWN = ("springroll", "jax", "jaxlib", "numpy", "optax", "safetensors", "tyro", "rich")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Devices, versions, extras, speed of small integers, and a self-test of a few seconds.

    The exit code is 1 when the self-test fails.
    """

    json: bool = False
    """Print one JSON object instead of tables."""


def run(argv: Sequence[str]) -> int:
    """Look, test, print."""
    options = parse(DoctorOptions, argv, prog="springroll doctor")

    from springroll.cli.self_test import self_test

    found: dict[str, Any] = {
        "versions": versions(),
        "devices": devices(),
        "memory_bytes": host_memory(),
        "extras": extras(),
        "integers": integer_speed(),
    }
    start = time.perf_counter()
    found["self_test"] = [check._asdict() for check in self_test()]
    found["self_test_seconds"] = round(time.perf_counter() - start, 1)
    if options.json:
        print(json.dumps(found))
    else:
        from rich.console import Console

        show(Console(), found)
    return 0 if all(check["passed"] for check in found["self_test"]) else FAILED


def versions() -> dict[str, str]:
    """Python, the system, and the packages that matter."""
    named = {name: _version(name) or "missing" for name in SHOWN}
    return {"python": platform.python_version(), "system": platform.platform(), **named}


def devices() -> list[dict[str, Any]]:
    """The accelerators JAX finds, or the CPU, with their memory."""
    import jax

    return [
        {
            "platform": device.platform,
            "kind": device.device_kind,
            "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        }
        for device in jax.devices()
    ]


def host_memory() -> int | None:
    """Bytes of main memory, where the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def extras() -> dict[str, list[str]]:
    """The packages that each optional extra still misses."""
    missing: dict[str, list[str]] = {}
    for line in metadata.requires("springroll") or []:
        match = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line)
        if match:
            package, extra = match.groups()
            missing.setdefault(extra, []).extend([] if _version(package) else [package])
    return missing


def integer_speed() -> dict[str, Any]:
    """Operations per second of small integers in int8 and in float32 registers, and the choice."""
    from springroll.quant.registers import fastest_registers, matmul_seconds

    operations = 2 * 512**3
    speeds = {name: operations / seconds for name, seconds in matmul_seconds().items()}
    return {"operations_per_second": speeds, "chosen": fastest_registers()}


def show(console: "Console", found: dict[str, Any]) -> None:
    """The findings for people."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for name, version in found["versions"].items():
        table.add_row(name, version)
    for device in found["devices"]:
        memory = device["memory_bytes"]
        size = f", {gibibytes(memory)}" if memory else ""
        table.add_row("device", f"{device['platform']}: {device['kind']}{size}")
    if found["memory_bytes"]:
        table.add_row("memory", gibibytes(found["memory_bytes"]))
    for extra, missing in found["extras"].items():
        hint = f"lacks {', '.join(missing)}: pip install 'springroll[{extra}]'"
        table.add_row(f"extra {extra}", hint if missing else "installed")
    integers = found["integers"]
    for registers, speed in integers["operations_per_second"].items():
        mark = " (used)" if registers == integers["chosen"] else ""
        table.add_row(f"int8 in {registers}", f"{si(speed)} operations/s{mark}")
    for check in found["self_test"]:
        verdict = "ok" if check["passed"] else "FAILED"
        table.add_row("self-test", f"{verdict}: {check['name']} ({check['detail']})")
    table.add_row("", f"{found['self_test_seconds']} s")
    console.print(table, markup=False, highlight=False)
    if not all(check["passed"] for check in found["self_test"]):
        print("the self-test failed; please report the lines above", file=sys.stderr)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
