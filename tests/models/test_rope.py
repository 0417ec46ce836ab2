"""Rotary positions: rotations, relative, and scaled where they should be."""

import jax
import jax.numpy as jnp
import numpy as np

from springroll.models.rope import Llama3Scaling, YarnScaling, frequencies, rotate, rotation
from tests.compiling import normal, quick_jit


def test_the_score_depends_on_the_distance_only():
    q, k = normal(0, 2, 8)
    repeat = lambda x: jnp.broadcast_to(x, (1, 12, 1, 8))
    turn = rotation(12, 8, 100.0)
    turned = quick_jit(rotate)
    score = np.einsum("BTHK,BSHK->TS", turned(repeat(q), turn), turned(repeat(k), turn))
    for distance in (0, 3, 7):
        np.testing.assert_allclose(
            np.diff(np.diagonal(np.asarray(score, np.float32), -distance)), 0, atol=1e-4
        )


def test_position_zero_stays_and_lengths_are_kept():
    x, turn = normal(0, 2, 5, 3, 8), rotation(5, 8, 100.0)
    y = quick_jit(rotate)(x, turn)
    np.testing.assert_allclose(y[:, 0], x[:, 0], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    assert jax.eval_shape(rotate, x.astype(jnp.bfloat16), turn).dtype == jnp.bfloat16


def test_llama3_scaling_keeps_fast_channels_and_slows_down_slow_ones():
    rate = frequencies(128, 500000.0)
    scaled = frequencies(128, 500000.0, Llama3Scaling(factor=8.0))
    turns = 8192 * rate / (2 * np.pi)
    np.testing.assert_allclose(scaled[turns >= 4], rate[turns >= 4])
    np.testing.assert_allclose(scaled[turns <= 1], rate[turns <= 1] / 8)
    blended = (turns > 1) & (turns < 4)
    assert np.all((scaled < rate)[blended] & (scaled > rate / 8)[blended])


def test_yarn_scaling_blends_over_channels_and_scales_the_rotation():
    scaling = YarnScaling(factor=32.0, truncate=False)
    rate, scaled = frequencies(64, 150000.0), frequencies(64, 150000.0, scaling)
    np.testing.assert_allclose(scaled[:8], rate[:8])
    np.testing.assert_allclose(scaled[18:], rate[18:] / 32)
    assert np.all(np.diff(scaling.share_kept(rate)) <= 0)
    turn = rotation(4, 64, 150000.0, scaling)
    np.testing.assert_allclose(turn.cos[0], 0.1 * np.log(32) + 1, rtol=1e-6)
    wider = YarnScaling(factor=32.0)
    assert wider.share_kept(rate)[8] == 1
    assert wider.share_kept(rate)[18] == 0
