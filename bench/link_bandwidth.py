"""Copies between host and device: their bandwidth, and what they overlap with.

    python -m bench.link_bandwidth

- each way and both at once, of page-locked (`pinned_host`) and of pageable memory, by size;
- AdamW on the host with all cores, alone and while both directions of the link are busy;
- a copy that was begun before a computation beside both one after the other.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.host_adamw import variants
from springroll.bench import measure
from springroll.stream.host_adamw import CHUNK
from springroll.stream.link import Link
from springroll.stream.priority_pool import PriorityPool

SIZES = (16, 64, 256, 512)  # MB
REPEATS = 5


def seconds(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median of a call whose result is waited for, after one to warm up."""
    return measure.medians(measure.interleaved({"it": call}, repeats))["it"]


class Copies:
    """An array in all three kinds of memory, and what moves it; the result is to be waited for."""

    def __init__(self, link: Link, megabytes: float):
        self.bytes = int(megabytes * 1e6) // 4 * 4
        self.pageable = np.ones(self.bytes // 4, np.float32)
        self._link = link
        self._host = link.on_host
        self.there = jax.device_put(self.pageable, link.on_device)
        self.pinned = jax.device_put(self.pageable, self._host) if self._host else self.pageable
        jax.block_until_ready((self.there, self.pinned))

    def to_device(self) -> Any:
        return jax.device_put(self.pinned, self._link.on_device)

    def to_host(self) -> Any:
        # JAX keeps what it copied to NumPy once: a new array each time.
        return jax.device_put(self.there, self._host) if self._host else np.array(self.there)

    def both(self) -> Any:
        return self.to_device(), self.to_host()

    def pageable_to_device(self) -> Any:
        return jax.device_put(self.pageable, self._link.on_device)

    def pageable_to_host(self) -> Any:
        return np.array(jax.block_until_ready(self.there + 0))


def bandwidth(sizes: tuple[float, ...] = SIZES, repeats: int = REPEATS) -> dict[str, Any]:
    """GB/s by size and way; "both" counts the bytes of both ways."""
    link, table = Link(), {}
    for size in sizes:
        copies = Copies(link, size)
        calls = {
            "to_device": copies.to_device,
            "to_host": copies.to_host,
            "both": copies.both,
            "pageable_to_device": copies.pageable_to_device,
            "pageable_to_host": copies.pageable_to_host,
        }
        took = measure.medians(measure.interleaved(calls, repeats))
        moved = {name: copies.bytes * (2 if name == "both" else 1) / 1e9 for name in calls}
        table[f"{size:g} MB"] = {name: _short(moved[name] / took[name]) for name in calls}
    link.close()
    most = table[f"{sizes[-1]:g} MB"]
    return measure.record(
        "link_bandwidth",
        ours=most["to_device"],
        baseline=most["pageable_to_device"],
        ratio=most["to_device"] / most["pageable_to_device"],
        unit="GB/s to the device at the largest size; baseline: pageable memory",
        page_locked=link.on_host is not None,
        gigabytes_per_second=table,
    )


def adamw_beside_copies(
    numbers: int = 1 << 28, megabytes: float = 256, threads: int = 1, repeats: int = REPEATS
) -> dict[str, Any]:
    """Parameters per second of AdamW on the host while copies run, and alone."""
    jobs = variants(numbers, CHUNK)["adamw"]
    with PriorityPool(threads) as pool:

        def update() -> None:
            pool.submit(0, jobs())
            pool.wait(0)

        alone = numbers / seconds(update, repeats)
        with copying(megabytes) as rate:
            beside = numbers / seconds(update, repeats)
    return measure.record(
        "adamw_beside_copies",
        ours=beside,
        baseline=alone,
        ratio=beside / alone,
        unit="parameters per second on the host; baseline: without copies",
        threads=threads,
        copied_gigabytes_per_second=rate["both"],
    )


@contextlib.contextmanager
def copying(megabytes: float) -> Iterator[dict[str, float]]:
    """Both directions of the link busy in the block; "both": GB/s, known when it is left."""
    link, done, rate = Link(), threading.Event(), {"both": 0.0}
    copies = Copies(link, megabytes)

    def copy() -> None:
        start, count = time.perf_counter(), 0
        while count == 0 or not done.is_set():
            jax.block_until_ready(copies.both())
            count += 1
        rate["both"] = 2 * count * copies.bytes / 1e9 / (time.perf_counter() - start)

    busy = threading.Thread(target=copy)
    busy.start()
    try:
        yield rate
    finally:
        done.set()
        busy.join()
        link.close()


def put_before_compute(megabytes: float = 512, side: int = 8192, repeats: int = 7) -> Any:
    """How much of the shorter of a copy and a computation disappears beside the other: 1 is all."""
    link = Link()
    copies = Copies(link, megabytes)
    a = jax.device_put(jnp.full((side, side), 1e-4, jnp.bfloat16), link.on_device)
    products = jax.jit(lambda a, n: jax.lax.fori_loop(0, n, lambda _, x: x @ a, a))
    one = seconds(lambda: products(a, 4), repeats) / 4
    copy = seconds(copies.to_device, repeats)
    count = max(1, round(copy / one))
    calls = {
        "copy": copies.to_device,
        "compute": lambda: products(a, count),
        "put_first": lambda: (copies.to_device(), products(a, count)),
        "compute_first": lambda: (products(a, count), copies.to_device())[::-1],
    }
    took = measure.medians(measure.interleaved(calls, repeats))
    link.close()
    hidden = lambda name: (
        (took["copy"] + took["compute"] - took[name]) / min(took["copy"], took["compute"])
    )
    return measure.record(
        "put_before_compute",
        ours=took["put_first"],
        baseline=took["copy"] + took["compute"],
        ratio=took["put_first"] / (took["copy"] + took["compute"]),
        unit="seconds of a copy begun before a computation; baseline: one after the other",
        hidden_put_first=hidden("put_first"),
        hidden_compute_first=hidden("compute_first"),
        seconds={name: _short(s) for name, s in took.items()},
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def main() -> None:
    measure.report(bandwidth())
    measure.report(put_before_compute())


if __name__ == "__main__":
    main()
