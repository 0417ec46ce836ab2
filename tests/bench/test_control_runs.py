"""The interquartile mean and its interval: by the book, and right as often as they say."""

import math

import numpy as np
import pytest
from scipy import stats

from springroll.bench.control_runs import (
    Interval,
    interquartile_mean,
    interquartile_range,
    interval,
)


@pytest.mark.parametrize("count", range(1, 14))
def test_it_is_the_trimmed_mean_of_scipy(count):
    scores = np.random.default_rng(count).normal(size=(count, 3))
    np.testing.assert_allclose(interquartile_mean(scores), stats.trim_mean(scores.ravel(), 0.25))
    for axis in (0, 1):
        found = interquartile_mean(scores, axis=axis)
        np.testing.assert_allclose(found, stats.trim_mean(scores, 0.25, axis=axis))


def test_one_run_of_ten_does_not_move_it():
    scores = np.arange(10.0)
    spoilt = np.where(scores == 9, 1e9, scores)
    assert interquartile_mean(scores) == interquartile_mean(spoilt) == 4.5
    assert interquartile_mean(scores[::-1]) == 4.5


def test_equal_runs_leave_no_doubt():
    assert interval([3.0] * 10) == Interval(3.0, 3.0, 3.0)
    assert interval(np.full((4, 3), 2.0)) == Interval(2.0, 2.0, 2.0)


def test_tasks_are_drawn_each_by_itself():
    """Tasks that are far apart but sure by themselves leave no doubt in the mean of all."""
    scores = np.tile([0.0, 1.0, 10.0, 100.0], (5, 1))
    assert interval(scores) == Interval(5.5, 5.5, 5.5)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        found = interval(rng.normal(size=20), repeats=400, seed=trial)
        held += found.low <= 0.0 <= found.high
    # The bootstrap of 20 runs is a little too narrow; 95 % within five deviations and that.
    assert 0.95 - 5 * math.sqrt(0.95 * 0.05 / 300) - 0.03 < held / 300 <= 1.0


def test_more_runs_make_it_narrower():
    scores = np.random.default_rng(1).normal(size=160)
    width = lambda found: found.high - found.low
    ratio = width(interval(scores[:10])) / width(interval(scores))
    assert 2 < ratio < 8  # about the root of 16


def test_the_quartiles_and_what_is_said():
    low, high = interquartile_range(np.arange(5.0)[:, None])
    assert (low, high) == (1.0, 3.0)
    assert str(Interval(0.5, 0.25, 1.0)) == "0.5 [0.25, 1]"
    assert interval([1.0, 2.0, 4.0], seed=3) == interval([1.0, 2.0, 4.0], seed=3)
