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


def on_each(what: str, devices: int) -> str:
    """The heading of a column of bytes: `what`, or those of each of several devices."""
    return what if devices == 1 else f"each of {devices} devices"


def available_bytes(devices: Sequence[Any] = ()) -> int | None:
    """Bytes a program can have on each device, by default on the first alone: on the one that has
    least, or on a CPU a share of what the host has left.

    None where the system does not tell.
    """
    import jax

    devices = devices or jax.local_devices()[:1]
    stats = [device.memory_stats() or {} for device in devices]
    left = [s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats if s.get("bytes_limit")]
    host = None if left else host_memory()
    return min(left) if left else host and host // len(devices)


def uneven(devices: Sequence[Any]) -> str | None:
    """A line where devices differ in their memory, which names the smallest: that one counts."""
    limits = [_limit(device) for device in devices]
    least, most = min(limits), max(limits)
    if least == most or not least:
        return None
    smallest = devices[limits.index(least)]
    return (
        f"{smallest} has {spelt(least)} of memory, others have up to {spelt(most)}: a step must "
        "fit on the smallest; hide it (CUDA_VISIBLE_DEVICES) to use more"
    )


def _limit(device: Any) -> int:
    """Bytes that a process can have of a device; 0 where it does not tell."""
    return (device.memory_stats() or {}).get("bytes_limit", 0)


def host_memory() -> int | None:
    """Bytes of host memory that are left; None where the system does not tell."""
    limits = [free for free in (_free_memory(), _free_in_container()) if free is not None]
    return min(limits, default=None)


def all_memory() -> int | None:
    """Bytes of host memory and of accelerators together; None where the system does not tell."""
    import jax

    host = host_memory()
    return None if host is None else host + sum(map(_limit, jax.local_devices()))


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


def allow_page_locking(limit: int | None = None) -> None:
    """Let JAX lock host memory; to be called before its backend starts.

    XLA's pool of page-locked memory for GPUs ends at 64 GB unless it is told otherwise by then. It
    grows by doubling, so that up to its limit it may hold twice what is in it.

    Args:
        limit: bytes; by default all that is free, which is never exceeded.
    """
    bounds = [bound for bound in (host_memory(), limit) if bound is not None]
    if bounds:
        most = max(1, min(bounds) >> 30)
        os.environ.setdefault("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", str(most))


def claim_device_memory() -> None:
    """Let JAX take nine tenths of a GPU's memory, where it would take three quarters; to be called
    before its backend starts. What is left is for the driver and its libraries."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")


def check_within_device(given: int, name: str) -> None:
    """Refuse a budget that is larger than what a process can have of the device.

    Args:
        given: bytes.
        name: of the option, as "--device-memory".

    Raises:
        InputError: the device has less. Where it does not tell, nothing is refused.
    """
    import jax

    limit = _limit(jax.local_devices()[0])
    if limit and given > limit:
        raise InputError(
            f"{name} is {spelt(given)}; a process can have {spelt(limit)} of this device (a share "
            "of its memory that XLA_PYTHON_CLIENT_MEM_FRACTION sets); leave it out, or take less"
        )


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


def trim_heap() -> None:
    """Let the C library give back to the system what was freed so far: once, where
    `return_freed_blocks` would cost time with every block. Other C libraries than glibc keep it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


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
