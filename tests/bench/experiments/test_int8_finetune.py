"""The bench of fine-tuning on int8 weights, on a model of a few numbers."""

import jax
import pytest

import springroll as sr
from bench import int8_finetune
from springroll.models.decoder import decoder
from springroll.models.decoder_config import llama
from springroll.tokens.byte_tokenizer import write_byte_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    model, folder = decoder(llama(16, 24, 1, 1, vocab=256, tied=True)), tmp_path_factory.mktemp("m")
    sr.save_hf(folder, model, model.init(jax.random.key(0)))
    write_byte_tokenizer(folder)
    # One token: the rest of generation need not be compiled to compare runs.
    options = {"pop_size": 8, "prompts": 2, "eval_problems": 16, "max_tokens": 1}
    with pytest.MonkeyPatch.context() as patch:
        runs = {name: int8_finetune.RUNS[name] for name in ("float32", "error feedback")}
        patch.setattr(int8_finetune, "RUNS", runs)
        return int8_finetune.run(folder, 1, 1, **options)


def test_variants_begin_at_the_same_model_and_are_compared(result):
    assert set(result["after"]) == {"float32", "error feedback"}
    assert all(0 <= each <= 1 for found in result["after"].values() for each in found)
    before = result["before"]
    assert abs(before["float32"] - before["error feedback"]) <= 1 / 8
    for name, kind in (("float32", "baseline"), ("error feedback", "ours")):
        assert result[kind] == pytest.approx(result["after"][name][0] - before[name])


def test_bytes_are_counted_per_weight(result):
    of_matrices, of_all = result["bytes_per_matrix_weight"], result["bytes_per_parameter"]
    assert of_matrices["float32"] == {"weights": 4, "residual": 0, "optimizer": 4}
    fed = of_matrices["error feedback"]
    assert fed["residual"] == 1 and fed["optimizer"] == 4
    assert fed["weights"] == pytest.approx(1 + 4 * 128 / 2176, abs=1e-3)  # a scale per channel
    assert of_all["error feedback"]["weights"] < of_all["float32"]["weights"] == 4
