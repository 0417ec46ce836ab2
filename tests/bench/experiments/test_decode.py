"""The decoding benchmark at a size that takes seconds."""

import jax
import numpy as np
import pytest

from bench import decode, decode_experts
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS

pytestmark = pytest.mark.slow


def test_every_way_of_drawing_decodes_and_keeping_changes_no_token():
    model = decoder(CONFIGS["llama-tiny"])
    params = model.init(jax.random.key(0))
    asked, _ = decode.ask(params, 4)
    loops = {draw: decode.loop(model, params, asked, draw) for draw in decode.DRAWN}
    tokens = {draw: np.asarray(call()) for draw, call in loops.items()}
    np.testing.assert_array_equal(tokens["once"], tokens["counted"])
    assert all(each.shape == (4,) for each in tokens.values())


def test_rates_compare_members_with_plain_rows():
    model = decoder(CONFIGS["llama-tiny"])
    params = model.init(jax.random.key(0))
    asked, drawing = decode.ask(params, 4)
    rate = decode.rates(model, params, asked, prompts=2, most=3, repeats=1)
    found = decode.compared(rate)
    assert found["ratio"] == rate["ours"] / rate["pure"] > 0
    assert drawing > 0


def test_chosen_experts_are_compared_with_all_of_them():
    record = decode_experts.run(members=4, config=CONFIGS["moe-tiny"], repeats=1)
    assert record["ratio"] > 0 and record["over_pure"] > 0
