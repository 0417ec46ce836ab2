"""Weights in four bits: the nearest level of each block, and slices that are the same numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from springroll.quant.nf4_weights import BLOCK, LEVELS, in_blocks_of, nf4_of, nf4_real
from springroll.trees import tree_bytes
from tests.compiling import normal


def test_every_number_is_the_nearest_level_of_its_block():
    w = normal(0, 2, 3, 2 * BLOCK)
    found = np.asarray(nf4_real(nf4_of(w)))
    blocks = np.asarray(w).reshape(2, 3, 2, BLOCK)
    scale = np.abs(blocks).max(-1, keepdims=True).astype(jnp.bfloat16).astype(np.float32)
    levels = scale[..., None] * LEVELS
    nearest = np.abs(blocks[..., None] - levels).min(-1)
    np.testing.assert_allclose(np.abs(found.reshape(blocks.shape) - blocks), nearest, atol=1e-6)


def test_normal_weights_are_off_by_nine_percent_and_take_four_bits_and_a_quarter():
    w = normal(1, 64, 8 * BLOCK)
    coded = nf4_of(w)
    off = np.asarray(nf4_real(coded) - w)
    assert np.sqrt(np.square(off).mean()) == pytest.approx(0.092, abs=0.003)
    assert tree_bytes(coded) * 8 / w.size == 4.25
    assert nf4_real(coded, jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize("width", [1, 5, 63, 64, 65, 88])
def test_any_width_is_coded(width):
    w = normal(2, 3, width)
    coded = nf4_of(w)
    found = np.asarray(nf4_real(coded))
    assert coded.shape == found.shape == (3, width)
    assert np.abs(found - np.asarray(w)).max() <= 0.16 * np.abs(np.asarray(w)).max()


def test_zeros_and_levels_are_kept():
    w = jnp.asarray(np.stack([np.zeros(32), np.tile(LEVELS, 2)]), jnp.float32)
    np.testing.assert_array_equal(nf4_real(nf4_of(w)), w)


@pytest.mark.parametrize(("width", "size"), [(128, 64), (128, 16), (88, 8), (88, 2)])
def test_finer_blocks_hold_the_same_numbers(width, size):
    coded = nf4_of(normal(3, 2, width))
    finer = in_blocks_of(coded, size)
    assert finer.scale.shape == (2, width // size)
    np.testing.assert_array_equal(nf4_real(finer), nf4_real(coded))
