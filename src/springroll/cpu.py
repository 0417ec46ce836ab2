"""The cores of a CPU: how many there are, and each as a device. Imports no JAX by itself."""

import os


def cores() -> int:
    """Cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def use_cpu_devices(devices: int | None) -> None:
    """One CPU device per core (or `devices`), if the backend has not started yet.

    Members are independent, so a core with a population of its own needs no barrier after every
    operation; the result does not depend on it.
    """
    import jax

    try:
        jax.config.update("jax_num_cpu_devices", devices or cores())
    except RuntimeError:
        return  # somebody started the backend: its devices are what there is


def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has units for products of 16-bit numbers (AMX)."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return any("amx_bf16" in line for line in file if line.startswith("flags"))
    except OSError:  # another system than Linux
        return False
