"""The bench of generation beside transformers: both write the same, from prompts of one length."""

from typing import Any

import jax
import numpy as np
import pytest

from bench import generate_vs_transformers
from springroll.models import decoder, named, save_hf
from springroll.tokens import write_byte_tokenizer


def test_texts_are_alike_up_to_their_first_difference():
    ours = np.array([[[1, 2, 3, 4]], [[1, 2, 3, 4]]])
    theirs = np.array([[[1, 2, 0, 4]], [[1, 2, 3, 4]]])
    assert generate_vs_transformers.share_alike(ours, theirs) == (2 + 4) / 8


@pytest.mark.slow
def test_it_measures_what_it_says(tmp_path):
    model = decoder(named("llama-tiny"))
    save_hf(tmp_path, model, model.init(jax.random.key(0)))
    write_byte_tokenizer(tmp_path)
    sizes: dict[str, Any] = {
        "members": 2,
        "prompts": 3,
        "prompt_tokens": 10,
        "tokens": 4,
        "repeats": 1,
    }
    result = generate_vs_transformers.run(str(tmp_path), "float32", **sizes)
    assert result["share_alike"] == 1 and result["rows"] == 6
    assert result["ratio"] == pytest.approx(result["ours"] / result["baseline"], rel=1e-3)
    assert min(result["ours"], result["baseline"], result["plain"]) > 0
