"""`springroll sample` on models with a tokenizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import springroll as sr
from springroll.cli.main import main
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS
from springroll.tokens.byte_tokenizer import write_byte_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model of bytes as a Hugging Face folder."""
    where = tmp_path_factory.mktemp("sample") / "model"
    model = decoder(CONFIGS["llama-tiny"])
    params = jax.tree.map(lambda w: 4 * w if w.ndim > 1 else w, model.init(jax.random.key(0)))
    sr.save_hf(where, model, params, dtype="float32")
    write_byte_tokenizer(where)
    return where


def likeliest(folder, start, length):
    """By whole forwards of the text so far, up to its end; a text begins with a zero."""
    model, params = sr.load_hf(folder)
    apply, text = jax.jit(model.apply), [0, *start]
    for _ in range(length):
        padded = np.zeros((1, 16), np.int32)
        padded[0, : len(text)] = text
        text.append(int(jnp.argmax(apply(params, jnp.asarray(padded))[0, len(text) - 1])))
        if text[-1] == 0:
            return bytes(text[1:-1])
    return bytes(text[1:])


def test_a_folder_writes_what_its_model_finds_likeliest(folder, tmp_path, capsys):
    options = ["--length", "8", "--temperature", "0", "--out", str(tmp_path / "text")]
    assert main(["sample", str(folder), "--prompt", "def f", *options]) == 0
    expected = likeliest(folder, b"def f", 8).decode(errors="replace")
    assert (tmp_path / "text").read_bytes().decode() == expected
    assert capsys.readouterr().out.startswith("def f")


def test_texts_follow_from_the_seed_and_begin_anywhere(folder, capsys):
    def sampled(*options):
        assert main(["sample", str(folder), "--length", "8", *options]) == 0
        return capsys.readouterr().out

    first, again, other = (sampled("--seed", seed) for seed in "112")
    assert first == again != other


@pytest.mark.parametrize(
    "options, message",
    [
        (["--chat"], "chat template"),
        (["--length", "0"], "length is 0"),
    ],
)
def test_wrong_options_are_one_line(folder, options, message, capsys):
    assert main(["sample", str(folder), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_cut_short_is_one_line(folder, tmp_path, capsys):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard = tmp_path / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert main(["sample", str(tmp_path)]) == 2
    assert "model.safetensors" in capsys.readouterr().err
