"""Random problems by number: the same on every machine, uniform, and on one side each."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from springroll.errors import InputError
from springroll.tasks.draws import ONE_IN, Draws, draw, is_held_out


def test_draws_follow_from_their_key_and_nothing_else():
    many = lambda *key: [draws.below(1000) for draws in [Draws(*key)] for _ in range(200)]
    assert many("a", 1) == many("a", 1)
    assert many("a", 1) != many("a", 2)
    assert many("a", 1)[:3] == [207, 48, 902]  # on any machine, in any version


def test_draws_are_uniform():
    drawn = [Draws("uniform", i).below(7) for i in range(14_000)]
    counts = np.array([Counter(drawn)[k] for k in range(7)])
    assert ((counts - 2000) ** 2 / 2000).sum() < 22.5  # chi squared, 6 degrees: p = 0.001
    long = Draws("long")
    assert abs(np.mean([long.below(2) for _ in range(20_000)]) - 0.5) < 0.0125  # 3.5 sigma


def test_an_eighth_is_held_out():
    assert abs(np.mean([is_held_out(f"key {i}") for i in range(20_000)]) - 1 / ONE_IN) < 0.0083


def test_the_kind_of_number_makes_no_difference():
    make = lambda draws: (f"{(n := draws.below(10**6))}", n)
    numpy: Any = (np.int64(3), np.True_, np.int32(5))
    assert draw(make, 3, True, 5) == draw(make, *numpy)


def test_sides_do_not_meet_under_any_seed():
    make = lambda draws: (f"{(n := draws.below(200))}", n)
    side = lambda held_out: {draw(make, s, held_out, i) for s in range(4) for i in range(400)}
    train, held_out = side(False), side(True)
    assert not train & held_out
    assert train | held_out == set(range(200))


def test_draws_that_make_no_problem_are_drawn_again():
    make = lambda draws: (f"{n}", n) if (n := draws.below(100)) % 10 == 0 else None
    assert all(draw(make, 0, False, i) % 10 == 0 for i in range(50))


def test_too_few_problems_are_said():
    with pytest.raises(InputError, match="found no held-out problem in 10,000 draws"):
        draw(lambda draws: ("train only", 0) if not is_held_out("train only") else None, 0, True, 0)
