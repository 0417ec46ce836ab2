"""Everything of streaming that is worth timing on one accelerator, unattended.

    python -m bench.gpu_stream                # under 10 minutes on one H100-class GPU
    python -m bench.gpu_stream --small        # the same on a CPU in a minute, for tests

Prints one JSON line per measurement and writes them all, with chip and date, to bench/results/.

- link_bandwidth: copies each way and both at once, page-locked and pageable, 16 to 512 MB; the
  target for streaming is 0.9 of the page-locked ones.
- put_before_compute: whether a copy overlaps the computation that is asked for after it.
- host AdamW: parameters per second with all cores, alone and while copies run.
- streamed: tokens per second at a budget of 24 GB beside everything resident, LLaMA-7B's shape, 16k
  and 32k tokens per step (targets 0.85 and 0.95), and a step over its busiest resource (1.15).
- largest: the deepest model with layers of that shape that takes a step in this machine's memory,
  with exact AdamW and with moments in 8 bits.
"""

import os
from typing import Any

from bench import host_adamw, largest_streamed, link_bandwidth, streamed_throughput, unattended
from springroll.memory import allow_page_locking


def measurements(small: bool) -> list[tuple[str, Any]]:
    """Names and calls, the quick ones first."""
    threads = os.cpu_count() or 1
    copies, adamw, put = (
        link_bandwidth.bandwidth,
        link_bandwidth.adamw_beside_copies,
        link_bandwidth.put_before_compute,
    )
    if small:
        model = {"model": "llama-tiny", "layers": 8, "budget": "800KB", "sequence": 8, "rows": 1}
        little = {"model": "llama-tiny", "tokens": 8, "device": 400_000, "host": 2_000_000}
        return [
            ("link_bandwidth", lambda: copies((0.1, 1.0), 1)),
            ("put_before_compute", lambda: put(1.0, 64, 1)),
            ("host_adamw", lambda: host_adamw.run(numbers=5000, repeats=1, chunk=700)),
            ("adamw_beside_copies", lambda: adamw(5000, 0.1, 1, 1)),
            ("streamed", lambda: streamed_throughput.run(steps_of=(16,), repeats=1, **model)[0]),
            ("largest exact", lambda: largest_streamed.largest(state_bits=32, **little)),
            ("largest 8-bit", lambda: largest_streamed.largest(state_bits=8, **little)),
        ]
    both = Once(streamed_throughput.run)
    return [
        ("link_bandwidth", copies),
        ("put_before_compute", put),
        ("host_adamw", lambda: host_adamw.run(numbers=1 << 28, repeats=5)),
        ("adamw_beside_copies", lambda: adamw(threads=threads)),
        ("streamed 16k", lambda: both()[0]),
        ("streamed 32k", lambda: both()[1]),
        ("largest exact", lambda: largest_streamed.largest(state_bits=32)),
        ("largest 8-bit", lambda: largest_streamed.largest(state_bits=8)),
    ]


class Once:
    """A call whose result is kept."""

    def __init__(self, call: Any):
        self._call, self._kept = call, []

    def __call__(self) -> Any:
        if not self._kept:
            self._kept.append(self._call())
        return self._kept[0]


if __name__ == "__main__":
    allow_page_locking()
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    unattended.script("gpu_stream", str(__doc__).splitlines()[0], measurements)
