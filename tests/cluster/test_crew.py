"""Messages between processes, which here are threads."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from springroll.cluster import crew as crews
from springroll.cluster.crew import ClusterError, Crew, Ended
from springroll.cluster.packed import pack, unpack
from springroll.errors import InputError
from tests.cluster.memory_store import MemoryStore


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(crews, "LOOK", 0.02)
    monkeypatch.setattr(crews, "PIECE", 16)


def together(
    size: int, work: Callable[[Crew], Any], **options: Any
) -> tuple[list[Any], MemoryStore]:
    """`work(crew)` of every process, at the same time; what each returned or raised."""
    store = options.pop("store", None) or MemoryStore(size)
    with ThreadPoolExecutor(size) as pool:
        each = [pool.submit(work, Crew(rank, size, store, **options)) for rank in range(size)]
        return [x.exception() or x.result() for x in each], store


def test_messages_arrive_in_order_whatever_their_size_and_are_forgotten():
    def work(crew):
        found = []
        for size in (0, 15, 16, 17, 100):
            parts = crew.gather(bytes([crew.rank]) * size)
            found.append(parts)
            assert crew.tell(b"x" * size if crew.leads else b"") == b"x" * size
        crew.gather(b"")
        return found

    (leader, *others), store = together(3, work)
    sizes = (0, 15, 16, 17, 100)
    assert leader == [[bytes([rank]) * size for rank in range(3)] for size in sizes]
    assert others == [[[]] * 5] * 2
    assert set(store.data) == {"joined/1", "joined/2"}


def test_a_signal_reaches_the_leader():
    def work(crew):
        crew.gather(b"abc", 15 if crew.rank == 1 else None)
        return crew.signal

    assert together(2, work)[0] == [15, None]


def test_processes_that_differ_are_named_everywhere():
    def work(crew):
        crew.agree({"version": "1", "corpus": "b" if crew.rank == 2 else "a"})

    for found in together(3, work)[0]:
        assert isinstance(found, InputError)
        assert "process 2 has corpus b, process 0 has a" in str(found)


def test_a_process_that_is_gone_is_waited_for_and_then_named():
    store, said = MemoryStore(2), []
    store.gone.add(1)
    leader = Crew(0, 2, store, patience=0.1, say=said.append)
    with pytest.raises(ClusterError, match="process 1 of 2 is gone"):
        leader.gather(b"")
    assert said == ["process 1 is gone; waiting up to 0.1 s for it"]


def test_a_process_that_is_started_again_begins_with_the_last_message():
    store, said = MemoryStore(2), []
    gone = threading.Event()

    def leader():
        crew = Crew(0, 2, store, say=said.append)
        crew.news = lambda: b"at generation 2"
        crew.agree({"version": "1"})
        found = []
        for word in (b"go", b"go on"):
            crew.tell(word)
            found.append(crew.gather(b""))
        return found

    def dies():
        crew = Crew(1, 2, store)
        crew.agree({"version": "1"})
        assert crew.tell() == b"go"
        crew.gather(b"first")
        gone.set()

    def comes_back(version):
        gone.wait()
        crew = Crew(1, 2, store)
        crew.agree({"version": version})
        assert crew.back == b"at generation 2"
        assert crew.tell() == b"go on"
        crew.gather(b"second")

    with ThreadPoolExecutor(3) as pool:
        first, led = pool.submit(dies), pool.submit(leader)
        with pytest.raises(InputError, match="process 1 has version 2, process 0 has 1"):
            comes_back("2")
        pool.submit(comes_back, "1").result()
        first.result()
        assert led.result() == [[b"", b"first"], [b"", b"second"]]
    assert said == ["process 1 was started again"] * 2


def test_a_process_that_failed_says_why():
    store = MemoryStore(2)
    Crew(1, 2, store).fail("it has no such file", 2)
    with pytest.raises(ClusterError, match="process 1 of 2 failed: it has no such file"):
        Crew(0, 2, store).gather(b"")


def test_where_the_leader_ends_the_others_end_with_its_code():
    store = MemoryStore(2)
    Crew(0, 2, store).fail("the disk is full", 2)
    with pytest.raises(Ended) as ended:
        Crew(1, 2, store).tell()
    assert ended.value.exit_code == 2


def test_arrays_come_back_as_they_were():
    import ml_dtypes

    arrays = [
        np.arange(6, dtype=np.int8).reshape(2, 3),
        np.zeros((0, 4), np.float32),
        np.ones(3, ml_dtypes.bfloat16),
        np.float32(np.nan),
        np.array([True, False]),
    ]
    for before, after in zip(arrays, unpack(pack(arrays)), strict=True):
        assert np.asarray(before).dtype == after.dtype
        assert np.asarray(before).shape == after.shape
        assert np.asarray(before).tobytes() == after.tobytes()


def test_fitness_takes_little_more_than_its_numbers():
    assert len(pack([np.zeros(1024, np.float32)])) < 4 * 1024 + 64
