"""What a generation knows, on fitness that is made up: the parts and the rate are those put in."""

import numpy as np
import pytest

from bench.fitness_signal import signal_of


def made_up(rng, members, prompts, spread, chance, loss):
    """Rewards whose differences between pairs are `spread` on all prompts, `chance` on each."""
    own = rng.normal(size=(members // 2, 1)) * spread
    noise = rng.normal(size=(members // 2, 2, prompts)) * chance
    pairs = np.stack([own, -own], axis=1) + noise
    return 0.5 - loss + pairs.reshape(members, prompts), np.full(prompts, 0.5)


def test_the_parts_are_found_again():
    rng = np.random.default_rng(0)
    rewards, base = made_up(rng, 4096, 32, spread=0.02, chance=0.1, loss=0.05)
    found = signal_of(rewards, base)
    shared, alone = 4 * 0.02**2, 2 * 0.1**2 / 32
    assert found.reliability == pytest.approx(shared / (shared + alone), abs=0.05)
    assert found.base == 0.5 and found.mean == pytest.approx(0.45, abs=0.005)


def test_the_rate_is_the_best_of_its_quadratic():
    """Gain of a step minus its loss, at the rate found and a little beside it."""
    rewards, base = made_up(np.random.default_rng(1), 512, 16, 0.05, 0.1, 0.1)
    found = signal_of(rewards, base)
    factor = np.sqrt(16) / rewards.std()
    total = (rewards[0::2] - rewards[1::2]).mean(axis=1).var(ddof=1)
    loss = found.base - found.mean
    towards = lambda lr: lr * np.sqrt(512) * factor * total * found.reliability / 4
    gain = lambda lr: towards(lr) - lr**2 * factor**2 * total * loss / 2
    assert found.gain == pytest.approx(gain(found.rate))
    assert gain(found.rate) > max(gain(0.9 * found.rate), gain(1.1 * found.rate))


def test_where_members_are_alike_there_is_nothing_to_follow():
    alike = signal_of(np.zeros((8, 4)), np.zeros(4))
    assert alike.reliability == 0.0 and alike.rate == np.inf
