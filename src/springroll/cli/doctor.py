"""`springroll doctor`: what this machine has, and whether springroll works on it.

The five-second self-test of `springroll doctor`: does what matters most hold on this machine?
"""

import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from springroll.cli.options import parse
from springroll.pretrain.config import PretrainConfig
from springroll.program import pip_install
from springroll.run.progress import gibibytes, si

if TYPE_CHECKING:
    from rich.console import Console


TOLERANCE = 0.02  # an accelerator's default matrix precision; on a CPU it is 1e-6
TEXT = b"".join(b"def double_%d(x):\n    return %d * x\n\n" % (i, 2 * i) for i in range(200))


class Check(NamedTuple):
    """One thing that was tried."""

    name: str
    passed: bool
    detail: str


def self_test() -> list[Check]:
    """Run every check; one that raises has failed."""
    checks: dict[str, Callable[[], tuple[bool, str]]] = {
        "thin weights equal dense ones": thin_equals_dense,
        "an int8 run, stopped and resumed, ends with the same bytes": resumed_equals_undisturbed,
    }
    return [_tried(name, check) for name, check in checks.items()]


def thin_equals_dense() -> tuple[bool, str]:
    """A factored function on base + thin term against the function on the formed weight."""
    import jax
    import jax.numpy as jnp

    import springroll as sr

    keys = jax.random.split(jax.random.key(0), 4)
    normal = lambda i, *shape: jax.random.normal(keys[i], shape)
    w = sr.Factored(base=normal(0, 64, 32), left=normal(1, 64, 2), right=normal(2, 32, 2))
    x = normal(3, 8, 64)
    fn = lambda w, x: jnp.tanh(x @ w)
    error = float(jnp.abs(sr.factored(fn)(w, x) - fn(w.dense(), x)).max())
    return error < TOLERANCE, f"largest difference {error:.1e}"


def resumed_equals_undisturbed() -> tuple[bool, str]:
    """Two generations of a tiny int8 model, in one go and in two: journal and checkpoint."""
    from springroll.pretrain.build import build

    with tempfile.TemporaryDirectory() as place:
        text = Path(place, "text")
        text.write_bytes(TEXT)
        config = PretrainConfig(
            data=str(text),
            hidden=8,
            pop_size=16,
            tokens_per_member=4,
            streams=4,
            valid_streams=2,
            valid_tokens=32,
            generations=2,
            devices=1,
        )
        made = build(config)
        _train(Path(place, "whole"), config, made.task)
        _train(Path(place, "parts"), replace(config, generations=1), made.task)
        _train(Path(place, "parts"), config, made.task)
        files = ("journal", "checkpoints/000000002.safetensors")
        differing = [
            name
            for name in files
            if Path(place, "whole", name).read_bytes() != Path(place, "parts", name).read_bytes()
        ]
    return not differing, f"these differ: {', '.join(differing)}" if differing else "2 generations"


def _train(path: Path, config: PretrainConfig, task: Any) -> None:

    from springroll.run.folder import RunFolder
    from springroll.run.loop import run

    new = not path.exists()
    folder = RunFolder.create(path, config) if new else RunFolder.resume(path)
    run(config, task, folder)


def _tried(name: str, check: Callable[[], tuple[bool, str]]) -> Check:
    try:
        return Check(name, *check())
    except Exception as error:  # whatever is broken here is what the doctor is asked to find
        return Check(name, False, f"{type(error).__name__}: {error}")


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

    from springroll.cli.doctor import self_test

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
        for device in jax.local_devices()
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
        lacks = f"lacks {', '.join(dict.fromkeys(missing))}"
        table.add_row(f"extra {extra}", lacks if missing else "installed")
    integers = found["integers"]
    for registers, speed in integers["operations_per_second"].items():
        mark = " (used)" if registers == integers["chosen"] else ""
        table.add_row(f"int8 in {registers}", f"{si(speed)} operations/s{mark}")
    for check in found["self_test"]:
        verdict = "ok" if check["passed"] else "FAILED"
        table.add_row("self-test", f"{verdict}: {check['name']} ({check['detail']})")
    table.add_row("", f"{found['self_test_seconds']} s")
    console.print(table, markup=False, highlight=False)
    for extra in (extra for extra, missing in found["extras"].items() if missing):
        line = f"the extra {extra} is installed by: {pip_install(extra)}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)  # to be copied whole
    if not all(check["passed"] for check in found["self_test"]):
        print("the self-test failed; please report the lines above", file=sys.stderr)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
