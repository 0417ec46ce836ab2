"""GGUF files are read as the folders they were made from; what cannot be read is one line."""

import struct

import gguf
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from springroll.errors import InputError
from springroll.gguf import model_folder, packed, read_header
from springroll.gguf.config import _llama3_factors
from springroll.gguf.vocabulary import CUTS
from springroll.hub import hf_folder
from springroll.models.hf.files import is_hf_folder, open_hf, read_config
from springroll.models.hf.load import read_params
from springroll.models.rope import Llama3Scaling, frequencies
from springroll.tokens import open_tokenizer
from tests.gguf.files import TOKENS, tiny
from tests.hostile import EXAMPLES, damaged, fuzz
from tests.models.test_hf import write

Kind = gguf.GGMLQuantizationType


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("family", ["llama", "tied", "qwen2", "qwen3", "qwen3_moe", "olmoe"])
def test_a_file_is_the_folder_it_was_made_from(family, tmp_path):
    path = tmp_path / "x.gguf"
    values, tensors = tiny(path, family)
    folder = tmp_path / "folder"
    folder.mkdir()
    if family == "qwen3_moe":
        values |= {"norm_topk_prob": True}
    write(folder, values, tensors)
    config = read_config(path)
    assert config == read_config(folder)
    ours, theirs = read_params(path, config), read_params(folder, config)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_numbers_are_unpacked_to_the_type_that_is_asked_for(tmp_path):
    path = tmp_path / "x.gguf"
    kinds = {"blk.0.attn_q.weight": Kind.Q8_0, "token_embd.weight": Kind.F16}
    tensors = tiny(path, kinds=kinds)[1]
    config = read_config(path)
    exact = read_params(path, config, np.float32)["layers"]["self_attn"]["q_proj"][0]
    stored = tensors["model.layers.0.self_attn.q_proj.weight"]
    step = np.abs(stored).reshape(len(stored), -1, 32).max() / 127
    assert 0 < np.abs(exact - stored).max() <= 0.52 * step  # half a step, and the scale in 16 bits
    default = read_params(path, config)["layers"]["self_attn"]["q_proj"][0]
    assert default.dtype == "bfloat16"
    np.testing.assert_array_equal(default, exact.astype(default.dtype))


def test_a_folder_with_one_file_is_that_file(tmp_path):
    tiny(tmp_path / "x.gguf")
    assert is_hf_folder(tmp_path) and is_hf_folder(tmp_path / "x.gguf")
    assert hf_folder(tmp_path) == hf_folder(tmp_path / "x.gguf")
    tiny(tmp_path / "y.gguf")
    with pytest.raises(InputError, match="holds 2 GGUF files; give one of them"):
        model_folder(tmp_path)


def test_text_is_that_of_the_vocabulary_in_the_file(tmp_path):
    path = tmp_path / "x.gguf"
    tiny(path)
    tokenizer = open_tokenizer(path)
    number = TOKENS.index
    assert tokenizer.encode("the the<|im_end|>") == [number("the"), number("\u0120the"), 1]
    assert tokenizer.encode("12") == [number("1"), number("2")]  # this rule cuts every digit off
    text = "So it goes, é \n 12"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.end == {1}
    asked = tokenizer.chat([{"role": "user", "content": "hi"}])
    assert asked == "user: hi<|im_end|>"


@pytest.mark.parametrize("rule", CUTS)
def test_every_rule_cuts_and_keeps_the_text(rule, tmp_path):
    path = tmp_path / "x.gguf"
    tiny(path, keys={"string": {"tokenizer.ggml.pre": rule}})
    tokenizer = open_tokenizer(path)
    text = "Don't stop: 12345 naïve words\n\n  and 'spaces'  "
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_first_token_stands_before_every_text_where_the_file_says_so(tmp_path):
    path = tmp_path / "x.gguf"
    tiny(path, keys={"bool": {"tokenizer.ggml.add_bos_token": True}})
    assert open_tokenizer(path).encode("the") == [0, TOKENS.index("the")]


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_factors_of_llama_3_are_found_again(factor):
    plain = frequencies(64, 500_000.0, None)
    scaling = Llama3Scaling(
        factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192
    )
    scaled = frequencies(64, 500_000.0, scaling)
    np.testing.assert_allclose(_llama3_factors(factor, 64, 500_000.0), plain / scaled, rtol=1e-5)


REFUSED = {
    "architecture": ({"string": {"general.architecture": "mamba"}}, "is 'mamba'; known are llama"),
    "vocabulary": ({"string": {"tokenizer.ggml.model": "bert"}}, "of the kind 'bert'"),
    "rule": ({"string": {"tokenizer.ggml.pre": "viking"}}, "by the rule 'viking'"),
    "scaling": ({"string": {"llama.rope.scaling.type": "su"}}, "the rope scaling 'su'"),
    "split": ({"uint16": {"split.count": 3}}, "one of several parts"),
    "experts": ({"uint32": {"llama.expert_count": 8}}, "Mixtral"),
    "window": ({"uint32": {"llama.attention.sliding_window": 8}}, "sliding window"),
    "heads": ({"uint32": {"llama.attention.head_count": 0}}, "expected one whole number above 0"),
    "half a head": ({"uint32": {"llama.rope.dimension_count": 4}}, "other than 8"),
    "kinds": ({"array": {"tokenizer.ggml.token_type": [1, 1]}}, "have 2 kinds"),
}


@pytest.mark.parametrize(("keys", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_known_is_refused_by_name(keys, message, tmp_path):
    path = tmp_path / "x.gguf"
    tiny(path, keys=keys)
    with pytest.raises(InputError, match=message):
        hf_folder(path)
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_type_that_cannot_be_unpacked_is_refused_by_name(tmp_path):
    path = tmp_path / "x.gguf"
    tiny(path, kinds={"output_norm.weight": Kind.F32})
    content = bytearray(path.read_bytes())
    at = content.index(b"output_norm.weight") + len("output_norm.weight") + 4 + 8
    content[at : at + 4] = struct.pack("<I", Kind.I32)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"output_norm.weight is stored as I32, which cannot"):
        open_hf(hf_folder(path))


@pytest.mark.parametrize("keep", [0, 3, 20, 100, 3000, -1])
def test_a_file_cut_short_is_refused(keep, tmp_path):
    path = tmp_path / "x.gguf"
    tiny(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"cannot read .*x\.gguf: "):
        model_folder(path)


@pytest.mark.parametrize("examples", [50, *EXAMPLES[1:]])
def test_hostile_files(examples, tmp_path):
    path = tmp_path / "x.gguf"
    tiny(path)
    content = path.read_bytes()

    def read(content):
        path.write_bytes(content)
        for tensor in packed(read_header(path)).values():
            np.asarray(tensor)
        open_hf(hf_folder(path))
        open_tokenizer(path)

    fuzz(examples, st.one_of(damaged(content), damaged(content[:8000])), read)
