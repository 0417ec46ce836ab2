"""The rules that move integer weights, by themselves: levels, momentum, remainders, laws."""

import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.evolve.lattice import rule_named
from springroll.evolve.lattice_rules import (
    RULES,
    Votes,
    published,
    published_level,
    residual,
    threshold,
)
from tests.reference import egg_numpy as slow

SHAPE, PAIRS = (100, 100), 400


def noise_votes(rng, pairs=PAIRS, noise=256.0, signal=0.0):
    """Z of a fitness that knows nothing, plus `signal` in units of its deviation."""
    z = (rng.normal(size=SHAPE) + signal) * noise * math.sqrt(pairs)
    return Votes(jnp.asarray(np.rint(z), jnp.int32), noise, pairs)


def walk(rule, generations, signal=0.0, seed=0):
    """How far weights have gone after some generations: mean and deviation in steps."""
    rng, total = np.random.default_rng(seed), np.zeros(SHAPE)
    memory = rule.init(jnp.zeros(SHAPE, jnp.int8))
    move = jax.jit(lambda z, memory, t: rule.move(Votes(z, 256.0, PAIRS), memory, t))
    for t in range(generations):
        steps, memory = move(noise_votes(rng, signal=signal).total, memory, jnp.int32(t))
        total += np.asarray(steps)
    return total.mean(), total.std()


# --- the published threshold ---------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "decay"), [(4.0, 1000.0), (4.0, 100.0), (2.0, 37.5)])
def test_levels_are_the_formula_in_every_generation(alpha, decay):
    steps = np.concatenate([np.arange(3000), np.geomspace(3000, 1e6, 500).astype(int)])
    got = np.asarray(published_level(jnp.asarray(steps, jnp.int32), alpha, decay))
    np.testing.assert_array_equal(got, [slow.threshold_level(int(t), alpha, decay) for t in steps])


def test_levels_known_from_the_paper():
    level = lambda t: int(published_level(jnp.int32(t), 4.0, 1000.0))
    assert [level(t) for t in (0, 1, 10, 100, 500, 999)] == [0, 0, 2, 13, 25, 29]
    assert level(2**31 - 1) > 80  # and nothing overflows


@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.1])
def test_about_alpha_of_the_weights_move(fraction):
    t = round((1 / fraction - 1) * 1000)
    votes = noise_votes(np.random.default_rng(1))
    steps, _ = threshold(alpha=1.0, decay=1000.0).move(votes, (), jnp.int32(t))
    level = slow.threshold_level(t, 1.0, 1000.0)  # cut to a sixteenth
    expected = 2 * (1 - NormalDist().cdf(level / 16))
    assert abs(expected - fraction) < 0.06
    assert abs(float(jnp.mean(jnp.abs(steps))) - expected) < 0.02
    np.testing.assert_array_equal(jnp.sign(steps), steps)
    moved = np.asarray(steps) != 0
    np.testing.assert_array_equal(np.sign(votes.total)[moved], np.asarray(steps)[moved])


def test_without_a_vote_only_the_published_rule_moves():
    votes = Votes(jnp.array([-3, 0, 3], jnp.int32), 256.0, PAIRS)
    early, late = jnp.int32(0), jnp.int32(500)
    assert published().move(votes, (), early)[0].tolist() == [-1, -1, 1]
    assert threshold().move(votes, (), early)[0].tolist() == [-1, 0, 1]
    for rule in (published(), threshold()):
        assert rule.move(votes, (), late)[0].tolist() == [0, 0, 0]
    assert published().blind and not threshold().blind and not residual().blind


def test_the_edge_of_the_threshold_moves():
    """|Z| * 16 >= level * int(sqrt(pairs)) * 256, equality included."""
    level = int(published_level(jnp.int32(500), 4.0, 1000.0))
    least = level * 20 * 16
    votes = Votes(jnp.array([least - 1, least, -least, 1 - least], jnp.int32), 256.0, 401)
    assert published().move(votes, (), jnp.int32(500))[0].tolist() == [0, 1, -1, 0]


# --- momentum and remainder ----------------------------------------------------------------------


def test_residual_is_momentum_on_z_with_nothing_lost():
    """Against the same in real numbers: never more than a step apart, over 60 generations."""
    rng, rule = np.random.default_rng(3), residual(lr=0.3, momentum=0.9, decay=20.0)
    memory = rule.init(jnp.zeros(SHAPE, jnp.int8))
    beta = 1 - 26 / 256  # the momentum in 256ths
    rate = 0.3 * math.sqrt((1 + beta) / (1 - beta))
    m, far, gone = np.zeros(SHAPE), np.zeros(SHAPE), np.zeros(SHAPE)
    move = jax.jit(lambda z, memory, t: rule.move(Votes(z, 256.0, PAIRS), memory, t))
    for t in range(60):
        votes = noise_votes(rng, signal=0.3)
        steps, memory = move(votes.total, memory, jnp.int32(t))
        z = np.asarray(votes.total) / (256 * math.sqrt(PAIRS))
        m = beta * m + (1 - beta) * z
        far += rate / (1 + t / 20) * m
        gone += np.asarray(steps)
        assert np.abs(gone - far).max() < 1
    assert far.std() > 1 and far.mean() > 4


def test_noise_walks_and_a_gradient_marches():
    """Without a gradient lr steps a generation, at random; with one sqrt((1 + b) / (1 - b)) lr."""
    rule = residual(lr=0.5, momentum=0.9, decay=1e6)
    drift, spread = walk(rule, 100)
    beta = 1 - 26 / 256
    gain = math.sqrt((1 + beta) / (1 - beta))
    assert abs(drift) < 1 and abs(spread / (0.5 * gain * math.sqrt(100)) - 1) < 0.15
    drift, _ = walk(rule, 100, signal=1.0)
    assert abs(drift / (0.5 * gain * 100) - 1) < 0.15


def test_a_learning_rate_far_below_one_step_still_moves():
    drift, _ = walk(residual(lr=0.002, decay=1e6), 200, signal=1.0)
    assert abs(drift / (0.002 * 200 * 4.33) - 1) < 0.2


def test_the_learning_rate_falls_to_half():
    rule = residual(lr=0.5, momentum=0.0, decay=50.0)
    memory = (jnp.zeros(3, jnp.int16), jnp.zeros(3, jnp.int16))
    votes = Votes(jnp.full(3, 8 * 256 * 20, jnp.int32), 256.0, PAIRS)
    steps = [int(rule.move(votes, memory, jnp.int32(t))[0][0]) for t in (0, 50, 150, 2**31 - 1)]
    assert steps == [4, 2, 1, 0]


def test_moves_are_odd_in_the_votes():
    rng, rule = np.random.default_rng(4), residual(lr=0.9)
    plus = minus = rule.init(jnp.zeros(SHAPE, jnp.int8))
    for t in range(5):
        votes = noise_votes(rng)
        up, plus = rule.move(votes, plus, jnp.int32(t))
        down, minus = rule.move(votes._replace(total=-votes.total), minus, jnp.int32(t))
        np.testing.assert_array_equal(up, -down)


@pytest.mark.parametrize("pairs", [1, 3, 512, 131072, 1 << 20, 1 << 22])
@pytest.mark.parametrize("noise", [16.0, 256.0, 512.3])
def test_z_in_units_of_its_deviation(pairs, noise):
    """For one pair as for millions: within 0.2 % and up to 8 deviations at least."""
    deviation = noise * math.sqrt(pairs)
    z = np.array([-50.0, -7.9, -3.0, -0.01, 0.0, 0.5, 1.0, 7.9, 50.0])
    total = np.clip(np.rint(z * deviation), -(2**31) + 1, 2**31 - 1)
    got = np.asarray(Votes(jnp.asarray(total, jnp.int32), noise, pairs).in_units(12)) / 4096
    np.testing.assert_allclose(got, np.clip(total / deviation, -8, 8), rtol=2e-3, atol=3e-4)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (residual, {"lr": 0}, "lr 0, decay 1000.0; expected"),
        (residual, {"momentum": 1.0}, "momentum is 1.0"),
        (residual, {"lr": 2.0}, "lr is 2.0 with momentum 0.9; .* an lr of at most 0.925"),
        (threshold, {"alpha": 0.0}, "alpha is 0.0 and decay 1000.0; both must be positive"),
        (published, {"decay": -1.0}, "decay -1.0; both must be positive"),
    ],
)
def test_arguments_that_cannot_be(rule, options, message):
    with pytest.raises(InputError, match=message):
        rule(**options)


def test_names():
    assert {name: type(rule_named(name)).__name__ for name in RULES} == dict.fromkeys(RULES, "Rule")
    with pytest.raises(
        InputError, match="rule 'x' is unknown; expected one of published, residual"
    ):
        rule_named("x")
