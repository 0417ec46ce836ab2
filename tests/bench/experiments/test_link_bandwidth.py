"""The bench of copies: what moves, and that what runs beside them ends with them."""

import threading

import jax
import numpy as np
import pytest

from bench import link_bandwidth
from bench.link_bandwidth import Copies, adamw_beside_copies, bandwidth, copying
from springroll.stream.link import Link

pytestmark = pytest.mark.slow


def test_all_ways_of_every_size_are_timed():
    result = bandwidth((0.01, 0.1), repeats=1)
    table = result["gigabytes_per_second"]
    assert list(table) == ["0.01 MB", "0.1 MB"]
    ways = {"to_device", "to_host", "both", "pageable_to_device", "pageable_to_host"}
    assert all(row.keys() == ways and min(row.values()) > 0 for row in table.values())
    assert result["ours"] == table["0.1 MB"]["to_device"]
    assert result["page_locked"]  # JAX on a CPU has the kind, if not the speed


@pytest.mark.parametrize("locked", [True, False])
def test_copies_go_where_they_say(monkeypatch, locked):
    if not locked:
        monkeypatch.setattr(Link, "on_host", None)
    link = Link()
    copies = Copies(link, 0.001)
    assert copies.bytes == 1000
    there, back = copies.both()
    assert there.sharding.memory_kind == "device"
    assert isinstance(back, jax.Array) == locked
    if isinstance(back, jax.Array):
        assert back.sharding.memory_kind == "pinned_host"
    for x in (there, back, copies.pageable_to_device(), copies.pageable_to_host()):
        np.testing.assert_array_equal(np.asarray(x), np.ones(250, np.float32))
    link.close()


def test_copying_ends_with_its_block_even_if_that_fails():
    threads = threading.active_count()
    with pytest.raises(KeyError), copying(0.001):
        raise KeyError
    assert threading.active_count() <= threads
    with copying(0.001) as rate:
        assert rate["both"] == 0.0
    assert rate["both"] > 0


def test_adamw_is_timed_alone_and_beside_copies():
    result = adamw_beside_copies(numbers=5000, megabytes=0.01, repeats=1)
    assert result["ours"] > 0 and result["baseline"] > 0
    assert result["ratio"] == pytest.approx(result["ours"] / result["baseline"], rel=1e-2)


def test_what_is_hidden_of_a_copy_follows_from_the_times(monkeypatch):
    """A copy of 2 s and a computation of 3 s that take 3 s together hide all of the copy."""
    monkeypatch.setattr(link_bandwidth, "seconds", lambda *_: 2.0)
    took = {"copy": 2.0, "compute": 3.0, "put_first": 3.0, "compute_first": 5.0}
    monkeypatch.setattr(link_bandwidth.measure, "medians", lambda _: took)
    monkeypatch.setattr(link_bandwidth.measure, "interleaved", lambda *_: {})
    result = link_bandwidth.put_before_compute(0.001, side=8, repeats=1)
    assert (result["hidden_put_first"], result["hidden_compute_first"]) == (1.0, 0.0)
    assert result["ratio"] == 0.6
