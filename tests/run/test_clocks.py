"""When things are due."""

import pytest

from springroll.run.clocks import Clock, Stopwatch


@pytest.fixture
def tick(monkeypatch):
    """A clock of the test's own; call it to let seconds pass."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def pass_by(seconds=0.0):
        now[0] += seconds
        return now[0]

    return pass_by


def spend(clock, tick, seconds):
    with clock.spending():
        tick(seconds)


def test_a_stopwatch_goes_on_and_stands_still(tick):
    watch = Stopwatch(30.0)
    assert watch() == 30.0
    tick(2.0)
    with watch.pause():
        tick(5.0)
        assert watch() == 32.0
    tick(1.0)
    assert watch() == 33.0
    with pytest.raises(KeyError), watch.pause():
        tick(9.0)
        raise KeyError
    assert watch() == 33.0


def test_work_is_due_every_so_many_seconds(tick):
    clock = Clock(tick, 10.0)
    assert not clock.due()
    tick(9.9)
    assert not clock.due()
    tick(0.1)
    assert clock.due()
    spend(clock, tick, 0.0)
    assert not clock.due()


def test_work_never_takes_more_than_its_share(tick):
    clock, spent = Clock(tick, 0.0, share=0.05), 0.0
    start = tick()
    for _ in range(2000):
        tick(0.1)
        if clock.due():
            spend(clock, tick, 0.3)
            spent += 0.3
    assert 0.04 < spent / (tick() - start) <= 0.051


def test_cheap_work_is_due_every_time(tick):
    clock = Clock(tick, 0.0, share=0.05)
    for _ in range(100):
        tick(1.0)
        assert clock.due()
        spend(clock, tick, 0.01)


def test_the_first_time_is_free_where_it_compiles(tick):
    for compiles in (True, False):
        clock = Clock(tick, 1.0, share=0.1, compiles=compiles)
        spend(clock, tick, 100.0)
        tick(2.0)
        assert clock.due() == compiles
