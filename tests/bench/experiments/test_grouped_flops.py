"""The bench of experts: its count is right, and the claim holds at 64 experts, 8 per token."""

import functools

import jax
import jax.numpy as jnp
import pytest

from bench import grouped_flops
from springroll.models.decoder_config import llama
from springroll.models.dispatch import block_count, block_size
from springroll.models.grouped import grouped_dot

pytestmark = pytest.mark.slow

SMALL = llama(32, 16, 2, 1, vocab=16, experts=64, top_k=8)


def test_flops_of_64_experts_top_8_are_within_the_claim():
    best = grouped_flops.ideal(grouped_flops.CONFIG, 2048)
    assert best < grouped_flops.block_flops(grouped_flops.CONFIG, 2048) <= 1.3 * best


def test_one_round_is_three_products_of_a_block():
    assert grouped_flops.one_round(16, 64, 32) == pytest.approx(3 * 2 * 16 * 64 * 32, rel=0.02)


def test_the_count_with_rounds_added_is_that_of_an_unrolled_loop(monkeypatch):
    """The compiler counts an unrolled program whole; the padded products are all there is."""
    size, rounds, width, out = 8, 6, 64, 32
    shape = grouped_flops._shape
    args = (shape(size * rounds, width), shape(3, width, out))
    group = jax.ShapeDtypeStruct((rounds,), jnp.int32)
    looped = grouped_flops.counted(grouped_dot, *args, group)
    scan = jax.lax.scan
    monkeypatch.setattr(jax.lax, "scan", functools.partial(scan, unroll=True))
    jax.clear_caches()  # of the loop's trace
    unrolled = grouped_flops.counted(grouped_dot, *args, group)
    one = 2 * size * width * out
    assert unrolled == pytest.approx(rounds * one, rel=0.01)
    assert looped + (rounds - 1) * one == pytest.approx(unrolled, rel=0.01)


def test_result_names_both_and_ragged_dot_multiplies_by_every_expert():
    result = grouped_flops.run(SMALL, tokens=64, repeats=1)
    assert result["baseline"] > 32
    assert result["ratio"] == pytest.approx(result["baseline"] / result["ours"], rel=1e-2)
    assert result["seconds"] > 0
    picks = 64 * 8
    padded = block_count(picks, 64, block_size(picks, 64)) * block_size(picks, 64) / picks
    assert result["ours"] > padded
