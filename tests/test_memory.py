"""How much memory there is, and how people spell it."""

import ctypes
import os
import subprocess
import sys
from typing import NamedTuple

import pytest

from springroll import memory as budget
from springroll.errors import InputError
from springroll.memory import parse_bytes, spelt


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 << 30), ("24 gb", 24 * 10**9), ("1.5MiB", 3 << 19), ("7B", 7)],
)
def test_sizes_as_people_spell_them(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "24", "GiB", "-1GiB", "24 gibibytes", "1e3 MiB"])
def test_other_spellings_are_refused(text):
    with pytest.raises(InputError, match="expected a number and a unit, such as 24GiB"):
        parse_bytes(text)


def test_nothing_is_no_memory():
    with pytest.raises(InputError, match="cache_memory is '0GiB'; expected memory above zero"):
        parse_bytes("0GiB", "cache_memory")


def test_memory_of_the_host_and_of_a_container(tmp_path, monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 900 kB\nMemAvailable:   800 kB\n",
        "/sys/fs/cgroup/memory.max": "500000\n",
        "/sys/fs/cgroup/memory.current": "100000\n",
    }

    def path(name):
        there = tmp_path / name.strip("/").replace("/", "_")
        for known, text in files.items():
            (tmp_path / known.strip("/").replace("/", "_")).write_text(text)
        return there

    class Rooted(type(tmp_path)):
        def __truediv__(self, other):
            return path(f"{self}/{other}")

    monkeypatch.setattr(budget, "Path", lambda name: path(name) if "mem" in name else Rooted(name))
    assert budget.available_bytes() == 400000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert budget.available_bytes() == 800 * 1024


def test_of_cards_of_different_sizes_the_smallest_counts():
    class Card(NamedTuple):
        name: str
        bytes: int | None
        used: int = 0

        def memory_stats(self):
            return self.bytes and {"bytes_limit": self.bytes, "bytes_in_use": self.used}

        def __str__(self):
            return self.name

    large, small, silent = Card("cuda:0", 24 << 30), Card("cuda:1", 8 << 30), Card("cpu:0", None)
    assert budget.available_bytes([large, small]) == 8 << 30
    assert budget.available_bytes([large._replace(used=20 << 30), small]) == 4 << 30
    assert budget.uneven([large, large]) is budget.uneven([silent] * 2) is None
    said = "cuda:1 has 8 GiB of memory, others have up to 24 GiB: a step must fit on the smallest"
    assert str(budget.uneven([large, small, large])).startswith(said)
    everything = budget.available_bytes([silent])
    assert everything and budget.available_bytes([silent] * 2) == pytest.approx(
        everything / 2, rel=0.2
    )


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1536, "1.5 KiB"),
        (3 << 20, "3 MiB"),
        (1020 << 20, "0.996 GiB"),
        (24 << 30, "24 GiB"),
        (3 << 39, "1.5 TiB"),
    ],
)
def test_sizes_are_printed_in_the_largest_unit(size, text):
    assert spelt(size) == text


def test_page_locking_is_allowed_for_all_that_is_free_unless_it_was_set(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(budget, "host_memory", lambda: 100 << 30)
    budget.allow_page_locking()
    assert os.environ["XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"] == "100"
    monkeypatch.setattr(budget, "host_memory", lambda: 50 << 30)
    budget.allow_page_locking()
    assert os.environ["XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"] == "100"


def test_page_locking_keeps_within_what_the_host_may_have(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(budget, "host_memory", lambda: 100 << 30)
    budget.allow_page_locking(5 << 30)
    budget.claim_device_memory()
    assert os.environ == {
        "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": "5",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
    }


def test_a_budget_is_held_against_what_the_device_has(monkeypatch):
    class Card:
        def memory_stats(self):
            return {"bytes_limit": 10 << 30, "bytes_in_use": 1 << 30}

    monkeypatch.setattr("jax.local_devices", lambda: [Card()])
    budget.check_within_device(10 << 30, "--device-memory")
    with pytest.raises(InputError, match="--device-memory is 24 GiB; a process can have 10 GiB"):
        budget.check_within_device(24 << 30, "--device-memory")


MAPPED = """
import ctypes
from springroll import memory

class Info(ctypes.Structure):
    _fields_ = [(f"field{i}", ctypes.c_int) for i in range(10)]

c = ctypes.CDLL(None)
c.mallinfo.restype, c.malloc.restype = Info, ctypes.c_void_p
c.malloc.argtypes, c.free.argtypes = (ctypes.c_size_t,), (ctypes.c_void_p,)
apart = lambda: c.mallinfo().field3  # blocks that are mapped by themselves
memory.return_freed_blocks()
c.free(c.malloc(16 << 20))  # else the limit would now be 16 MiB
before = apart()
block = c.malloc(4 << 20)
with_it = apart()
c.free(block)
print(with_it - before, apart() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo"), reason="not the C library of GNU")
def test_a_large_block_does_not_stay_in_the_heap_after_one_was_freed():
    """In a process of its own: a heap that has holes fills them first."""
    done = subprocess.run([sys.executable, "-c", MAPPED], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["1", "0"]), done.stderr
