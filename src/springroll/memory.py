"""How much memory there is, and memory as people spell it."""

import ctypes
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from springroll.errors import InputError, brief

UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
LARGE_BLOCK = 1 << 20  # bytes
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def parse_bytes(text: str, name: str = "memory") -> int:
    """'24GiB', '24 GB' or '512MiB' in bytes; a unit is needed, letter case does not matter.

    >>> parse_bytes("1.5 KiB")
    1536

    Raises:
        InputError: it is not a number and a unit, or less than a byte.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)\s*", text, re.IGNORECASE)
    if not match or match[2].upper() not in UNITS:
        raise InputError(f"{name} is {brief(text)}; expected a number and a unit, such as 24GiB")
    size = float(match[1]) * UNITS[match[2].upper()]
    if size >= 2**63:
        raise InputError(f"{name} is {brief(text)}; no machine has as much")
    if size < 1:
        raise InputError(f"{name} is {brief(text)}; expected memory above zero")
    return int(size)


def spelt(size: float) -> str:
    """Bytes in the smallest binary unit in which three digits suffice: '1.5 GiB', '0.996 GiB'."""
    for power, unit in (
        (2**60, "EiB"),
        (2**50, "PiB"),
        (2**40, "TiB"),
        (2**30, "GiB"),
        (2**20, "MiB"),
        (2**10, "KiB"),
    ):
        if size >= power * 999.5 / 1024:
            return f"{size / power:.3g} {unit}"
    return f"{size:.3g} B"


def available_bytes(devices: Sequence[Any] = ()) -> int | None:
    """Bytes a program can have on each device, by default on the first alone: on the one that has
    least, or on a CPU a share of what the host has left.

    None where the system does not tell.
    """
    import jax

    devices = devices or jax.devices()[:1]
    stats = [device.memory_stats() or {} for device in devices]
    left = [s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats if s.get("bytes_limit")]
    host = None if left else host_memory()
    return min(left) if left else host and host // len(devices)


def host_memory() -> int | None:
    """Bytes of host memory that are left; None where the system does not tell."""
    limits = [free for free in (_free_memory(), _free_in_container()) if free is not None]
    return min(limits, default=None)


def all_memory() -> int | None:
    """Bytes of host memory and of accelerators together; None where the system does not tell."""
    import jax

    host = host_memory()
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return None if host is None else host + sum(each.get("bytes_limit", 0) for each in stats)


def check_fits(needed: int, what: str, free: int | None = None) -> None:
    """Refuse what memory cannot hold, before it is allocated.

    Args:
        needed: bytes.
        what: takes them, for the message: "the weights of models/x".
        free: bytes there are; by default the host's. Where the system does not tell, all fits.

    Raises:
        InputError: more is needed than there is.
    """
    free = host_memory() if free is None else free
    if free is not None and needed > free:
        raise InputError(
            f"{what} would take {spelt(needed)} of memory; {spelt(free)} are left on this machine"
        )


def allow_page_locking() -> None:
    """Let JAX lock all host memory that is free; to be called before its backend starts.

    XLA's pool of page-locked memory for GPUs ends at 64 GB unless it is told otherwise by then.
    """
    free = host_memory()
    if free is not None:
        os.environ.setdefault("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", str(free >> 30))


def return_freed_blocks() -> None:
    """Let the C library give memory of large blocks back to the system as soon as they are freed.

    glibc does so from a size on that it raises, up to 32 MiB, with every such block that is freed.
    What XLA's programs took then stays in the heap, in holes that the next program does not fit:
    of fine-tuning a model of 135M parameters in float32, 0.6 to 1.3 GiB. Other C libraries know no
    such limit.
    """
    choose = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if choose is not None:
        choose(_MMAP_THRESHOLD, LARGE_BLOCK)


def _free_memory() -> int | None:
    table = Path("/proc/meminfo")
    match = re.search(r"MemAvailable:\s+(\d+) kB", table.read_text()) if table.exists() else None
    return int(match[1]) * 1024 if match else None


def _free_in_container() -> int | None:
    """What the control group leaves, where one sets a limit (version 2).

    Pages of files that were read count as used there and are given back when memory is short.
    """
    group = Path("/sys/fs/cgroup")
    limit, used, kinds = (group / f"memory.{name}" for name in ("max", "current", "stat"))
    if not limit.exists() or not used.exists() or limit.read_text().strip() == "max":
        return None
    stat = kinds.read_text() if kinds.exists() else ""
    of_files = sum(map(int, re.findall(r"^(?:in)?active_file (\d+)$", stat, re.MULTILINE)))
    return max(0, int(limit.read_text()) - int(used.read_text()) + of_files)
