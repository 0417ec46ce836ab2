"""The pool: the bundle needed first goes first, failures come out, nothing hangs."""

import gc
import threading
import weakref

import pytest

from springroll.errors import InputError
from springroll.stream.priority_pool import PriorityPool

PATIENCE = 20  # seconds after which a test has failed; no test takes them


def held(pool):
    """Occupy the one thread of a pool; the event lets it go."""
    began, go = threading.Event(), threading.Event()

    def job():
        began.set()
        assert go.wait(PATIENCE)

    pool.submit(-1, [job])
    assert began.wait(PATIENCE)
    return go


def test_the_smallest_index_goes_first_and_its_jobs_in_order():
    order = []
    note = lambda *what: lambda: order.append(what)
    with PriorityPool(1) as pool:
        go = held(pool)
        for index in (3, 1, 2, 0):
            pool.submit(index, [note(index, k) for k in range(3)])
        pool.submit(1, [note(1, "later")])
        go.set()
    expected: list[tuple[int, int | str]] = [(i, k) for i in range(4) for k in range(3)]
    expected.insert(6, (1, "later"))
    assert order == expected


def test_a_bundle_handed_in_later_overtakes_one_that_waits():
    order = []
    with PriorityPool(1) as pool:
        pool.submit(5, [lambda: pool.submit(0, [lambda: order.append(0)]), lambda: order.append(5)])
        pool.wait(5)
    assert order == [0, 5]


def test_waiting_for_one_bundle_does_not_wait_for_the_next():
    with PriorityPool(2) as pool:
        go, done = threading.Event(), []
        pool.submit(7, [lambda: go.wait(PATIENCE)])
        future = pool.submit(0, [lambda: done.append(0)] * 5)
        pool.wait(0)
        assert done == [0] * 5 and future.done()
        pool.wait(3)  # nothing was submitted for it
        go.set()
        pool.drain()


def test_no_jobs_are_done_at_once():
    with PriorityPool(1) as pool:
        assert pool.submit(0, []).done()
        pool.wait(0)
        pool.drain()


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_every_job_runs_once_whatever_the_number_of_threads(threads):
    counts, lock = {}, threading.Lock()

    def job(index):
        with lock:
            counts[index] = counts.get(index, 0) + 1

    with PriorityPool(threads) as pool:
        for step in range(20):
            for index in reversed(range(8)):
                pool.submit(index, [lambda i=index: job(i)] * 5)
            for index in range(8):
                pool.wait(index)
                assert counts[index] == 5 * (step + 1)
    assert sum(counts.values()) == 20 * 8 * 5


def boom():
    raise ZeroDivisionError("in a job")


def test_a_failure_reaches_every_wait_and_drops_the_rest():
    ran = []
    pool = PriorityPool(1)
    go = held(pool)
    failed = pool.submit(1, [boom, lambda: ran.append(1)])
    after = pool.submit(2, [lambda: ran.append(2)])
    go.set()
    for call in (lambda: pool.wait(1), lambda: pool.wait(2), lambda: pool.wait(9), pool.drain):
        with pytest.raises(ZeroDivisionError, match="in a job"):
            call()
    for future in (failed, after):
        with pytest.raises(ZeroDivisionError):
            future.result(PATIENCE)
    with pytest.raises(ZeroDivisionError):
        pool.submit(0, [lambda: ran.append(0)])
    pool.close()
    assert not ran


def test_a_failure_is_told_only_when_no_job_of_the_bundle_runs():
    go, ended = threading.Event(), []

    def slow():
        assert go.wait(PATIENCE)
        ended.append(True)

    def fails_and_lets_go():
        go.set()
        boom()

    with pytest.raises(ZeroDivisionError), PriorityPool(2) as pool:
        pool.submit(0, [slow, fails_and_lets_go])
        with pytest.raises(ZeroDivisionError):
            pool.wait(0)
        assert ended


def test_leaving_the_block_drains_and_raises_what_failed():
    ran = []
    with PriorityPool(2) as pool:
        pool.submit(0, [lambda: ran.append(0)] * 100)
    assert len(ran) == 100
    with pytest.raises(ZeroDivisionError), PriorityPool(2) as pool:
        pool.submit(0, [boom])


def test_an_error_of_the_block_drops_what_waits():
    ran, submitted = [], []
    with pytest.raises(KeyError), PriorityPool(1) as pool:
        go = held(pool)
        submitted.append(pool.submit(0, [lambda: ran.append(0)]))
        threading.Timer(0.05, go.set).start()
        raise KeyError
    assert not ran
    with pytest.raises(RuntimeError, match="closed before"):
        submitted[0].result(PATIENCE)


def test_threads_are_daemons_and_end():
    before = set(threading.enumerate())
    pool = PriorityPool(4)
    mine = set(threading.enumerate()) - before
    assert len(mine) == 4 and all(t.daemon for t in mine)
    pool.close()
    pool.close()
    assert not any(t.is_alive() for t in mine)
    with pytest.raises(RuntimeError, match="the pool is closed"):
        pool.submit(0, [])
    with pytest.raises(InputError, match="0 threads; expected at least 1"):
        PriorityPool(0)


def test_a_job_does_not_outlive_its_run():
    class View:
        pass

    view = View()
    gone = weakref.ref(view)
    with PriorityPool(1) as pool:
        pool.submit(0, [lambda held=view: None])
        del view
        pool.wait(0)
        pool.wait(0)
        gc.collect()
        assert gone() is None
