"""Model folders of whatever content: a model or one line, in little memory and little time."""

import io
import json
import os
import zipfile
from typing import cast

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from springroll.errors import InputError
from springroll.models.decoder_config import DecoderConfig
from springroll.models.hf.decoder import hf_config
from springroll.models.hf.files import INDEX, leaves_of, open_hf, read_config
from springroll.models.hf.load import load_hf, read_params
from springroll.models.hf.pth import mapped_pth
from springroll.models.hf.rwkv7 import fla_json
from springroll.models.rope import Llama3Scaling, YarnScaling, frequencies
from springroll.models.rwkv7.config import RWKV7_CONFIGS, RWKV7Config
from springroll.safetensors_map import mapped
from tests.hostile import EXAMPLES, damaged, fuzz, other_json
from tests.models.test_hf import FAMILIES, LLAMA3, config_of, tensors_of, write
from tests.models.test_hf_pth import SAVED

TENSORS = {
    "a": np.arange(30, dtype=np.float32).reshape(6, 5),
    "b": np.arange(5).astype(ml_dtypes.bfloat16),
    "steps": np.arange(7, dtype=np.int64),
    "nothing": np.zeros((0, 3), np.float32),
    "one": np.array(3.0, np.float32),
}
FILE = save(TENSORS, metadata={"format": "pt"})
HEADER = json.loads(FILE[8 : 8 + int.from_bytes(FILE[:8], "little")])
NUMBERS = FILE[8 + int.from_bytes(FILE[:8], "little") :]


def with_header(header):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + NUMBERS


def reads_only_the_file(found, size):
    for x in found.values():
        assert x.nbytes <= size
        x.tobytes()


@pytest.mark.parametrize("examples", EXAMPLES)
def test_safetensors(examples, tmp_path):
    path = tmp_path / "x.safetensors"

    def read(content):
        path.write_bytes(content)
        reads_only_the_file(mapped(path), len(content))

    fuzz(examples, st.one_of(damaged(FILE), other_json(HEADER).map(with_header)), read)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_index(examples, tmp_path):
    write(tmp_path, config_of("tied"), tensors_of(hf_config(config_of("tied"))), shards=2)
    index = json.loads((tmp_path / INDEX).read_text())

    def read(content):
        (tmp_path / INDEX).write_bytes(content)
        open_hf(tmp_path)

    as_bytes = lambda value: json.dumps(value).encode()
    inputs = st.one_of(other_json(index).map(as_bytes), damaged(as_bytes(index)))
    fuzz(examples, inputs, read)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
CONFIGS = [
    *map(config_of, FAMILIES),
    config_of("llama") | {"rope_scaling": YARN, "layer_types": ["full_attention"] * 2},
    fla_json(RWKV7_CONFIGS["rwkv7-tiny"]),
]


@pytest.mark.parametrize("examples", EXAMPLES)
def test_config(examples, tmp_path):
    def read(content):
        (tmp_path / "config.json").write_bytes(content)
        config = read_config(tmp_path)
        assert config.parameters > 0 and leaves_of(config)
        if isinstance(config, DecoderConfig) and config.head_dim <= 1024:
            for rope in filter(None, set(config.ropes)):
                assert np.isfinite(frequencies(*rope)).all()
        with pytest.raises(InputError, match="holds neither"):
            open_hf(tmp_path)

    as_bytes = lambda value: json.dumps(value).encode()
    configs = st.sampled_from(CONFIGS)
    inputs = st.one_of(
        configs.flatmap(other_json).map(as_bytes), configs.flatmap(lambda c: damaged(as_bytes(c)))
    )
    fuzz(examples, inputs, read)


def archive(program, compression=zipfile.ZIP_STORED, **members):
    """The saved file with another pickle, and other members."""
    file = io.BytesIO()
    with zipfile.ZipFile(SAVED) as old, zipfile.ZipFile(file, "w") as new:
        for item in old.infolist():
            name = item.filename.split("/", 1)[1]
            data = program if name == "data.pkl" else members.get(name, old.read(item))
            new.writestr(item.filename, data, compression)
    return file.getvalue()


def listed():
    with zipfile.ZipFile(SAVED) as file:
        return next(file.read(n) for n in file.namelist() if n.endswith("data.pkl"))


@pytest.mark.parametrize("examples", EXAMPLES)
def test_pth(examples, tmp_path):
    path = tmp_path / "x.pth"

    def read(content):
        path.write_bytes(content)
        reads_only_the_file(mapped_pth(path), len(content))

    fuzz(examples, st.one_of(damaged(SAVED.read_bytes()), damaged(listed()).map(archive)), read)


def refused(message, read, *arguments):
    with pytest.raises(InputError, match=message) as error:
        read(*arguments)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": {"shape": [-6, -5]}}, r"a has the shape \[-6, -5\], which no array has"),
        ({"a": {"shape": [6.0, 5.0]}}, r"a has the shape \[6\.0, 5\.0\], which no array has"),
        ({"a": {"shape": [True, 30]}}, "which no array has"),
        ({"a": {"shape": [30] + [1] * 64}}, "which no array has"),
        ({"nothing": {"shape": [0, 2**62, 2]}}, "which no array has"),
        ({"a": {"shape": "65"}}, "which no array has"),
        ({"a": {"data_offsets": [0, 120, 0]}}, "expected its begin and end"),
        ({"a": {"data_offsets": [0.0, 120.0]}}, "expected its begin and end"),
        ({"b": {"data_offsets": HEADER["one"]["data_offsets"]}}, "b has 4 bytes where"),
        ({"one": {"dtype": "F4"}}, "one has the unknown dtype F4"),
        ({"one": {"dtype": ["F32"]}}, "one has the unknown dtype"),
        ({"\x1b[2Jx": {}}, "\ufffd.2Jx has the unknown dtype None"),
        ({"__metadata__": {"format": 1}}, "__metadata__ is no object of texts"),
    ],
)
def test_a_header_that_no_array_fits_is_refused(tmp_path, change, message):
    header = HEADER | {name: HEADER.get(name, {}) | about for name, about in change.items()}
    (tmp_path / "x.safetensors").write_bytes(with_header(header))
    refused(message, mapped, tmp_path / "x.safetensors")


def test_tensors_that_overlap_or_leave_a_gap_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    entry = lambda begin, end: {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
    for header, message in (
        ({"a": entry(0, 8), "b": entry(4, len(NUMBERS))}, "b overlaps another"),
        ({"a": entry(0, 8), "b": entry(9, len(NUMBERS))}, "b leaves a gap before it"),
        ({"a": entry(1, len(NUMBERS))}, "a leaves a gap before it"),
    ):
        path.write_bytes(with_header(header))
        refused(message, mapped, path)
    text = json.dumps({"a": entry(0, len(NUMBERS))}).replace("}}", '}, "a": {}}').encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + NUMBERS)
    refused("has the name 'a' twice", mapped, path)
    text = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    path.write_bytes(len(text).to_bytes(8, "little") + text + NUMBERS)
    refused("nested deeper than 64 levels", mapped, path)


def test_json_has_a_number_of_parts(tmp_path):
    text = b'{"a":[' + b"{}," * 500_000 + b"1]}"
    (tmp_path / "config.json").write_bytes(text)
    refused("more than 500,000 objects and lists", read_config, tmp_path)
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    refused("more than 500,000 objects and lists", mapped, tmp_path / "x.safetensors")


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    refused("a pipe or a device", read_config, tmp_path)
    os.mkfifo(tmp_path / "x.pth")
    refused("a pipe or a device", mapped_pth, tmp_path / "x.pth")
    (tmp_path / "x.safetensors").symlink_to("/dev/zero")
    refused("a pipe or a device", mapped, tmp_path / "x.safetensors")


def test_shards_stay_in_the_folder_and_links_of_a_cache_work(tmp_path):
    """A hub cache links every file of a snapshot to one beside it."""
    folder, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    folder.mkdir()
    blobs.mkdir()
    config = hf_config(config_of("llama"))
    write(folder, config_of("llama"), tensors_of(config), shards=2)
    for file in list(folder.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(f"../blobs/{file.name}")
    whole = read_params(folder, config)
    np.testing.assert_array_equal(whole["norm"], read_params(folder, config)["norm"])
    index = json.loads((blobs / INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    for name in ("../blobs/" + shards[0], str(blobs / shards[0]), "x/../../y", "..\\y", "C:\\y"):
        weight_map = {k: name if v == shards[0] else v for k, v in index["weight_map"].items()}
        (blobs / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        refused("lies outside of the folder", open_hf, folder)
    for name in ("x" * 5000, "a\0b", "\ud800", ""):
        (blobs / INDEX).write_text(json.dumps({"weight_map": {"norm": name}}))
        refused("lacks 1 of its 1 shards", open_hf, folder)
    (folder / "again.safetensors").symlink_to(f"../blobs/{shards[0]}")
    (blobs / INDEX).write_text(
        json.dumps({"weight_map": dict(zip("abc", [*shards, "again.safetensors"], strict=True))})
    )
    refused("twice, the second time in model", open_hf, folder)


MISTRAL, SMOL, GEMMA = ({"model_type": name} for name in ("mistral", "smollm3", "gemma2"))
QWEN = {"model_type": "qwen2", "use_sliding_window": True}
PHI = {"model_type": "phi3"}


def long(**changes):
    scaling = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}
    return PHI | {"rope_scaling": scaling | changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0; expected a whole number from 1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0; expected"),
        ({"hidden_size": "4096"}, "hidden_size is '4096'; expected a whole number"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000; expected .* to 16,777,216"),
        ({"num_hidden_layers": 10_001}, "num_hidden_layers is 10001; expected .* to 10,000"),
        ({"num_hidden_layers": 2.0}, r"num_hidden_layers is 2\.0; expected a whole number"),
        ({"vocab_size": True}, "vocab_size is True; expected a whole number"),
        ({"rope_theta": "abc"}, "rope_theta is 'abc'; expected a number above 0"),
        ({"rope_theta": float("nan")}, "rope_theta is nan; expected a number above 0"),
        ({"rope_theta": 1e-300}, "rope_theta is 1e-300; it must be at least 1"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf; expected a number above 0"),
        ({"layer_types": 5}, "layer_types is 5; expected a list"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; expected true or"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\]; expected an object"),
        ({"rope_scaling": LLAMA3 | {"factor": "8"}}, r"rope_scaling: factor is '8'; expected a"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4}}, "the first must be smaller"),
        ({"rope_scaling": YARN, "rope_theta": 1.0}, "YaRN needs at least 2 and 4"),
        ({"model_type": ["llama"]}, r"model_type is \['llama'\]; known are llama"),
        ({"hidden_size": [[[["x" * 10**6]]]]}, r"hidden_size is .{10,150}; expected"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"head_dim": 7}, "head_dim is 7; rotary positions need an even number"),
        (MISTRAL | {"sliding_window": -4}, "sliding_window is -4; expected a whole number from 1"),
        (MISTRAL | {"sliding_window": True}, "sliding_window is True; expected a whole number"),
        (QWEN | {"max_window_layers": "2"}, "max_window_layers is '2'; expected a whole number"),
        (
            QWEN | {"layer_types": ["sliding_attention"] * 3},
            "layer_types has 3 values; expected 2, one for each layer",
        ),
        (SMOL | {"no_rope_layers": [1]}, r"no_rope_layers is \[1\]; expected 2 values"),
        (SMOL | {"no_rope_layers": [1, 2]}, r"no_rope_layers is \[1, 2\]; expected 2 values"),
        (SMOL | {"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0; expected a whole"),
        (GEMMA | {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0; expected a number"),
        (GEMMA | {"final_logit_softcapping": -1}, "final_logit_softcapping is -1; expected a num"),
        (GEMMA | {"sliding_window": None}, "the key 'sliding_window' is missing"),
        (long(long_factor=[1.0] * 3), "rope has 3 long factors; expected 4, one for"),
        (long(short_factor=[0.0] * 4), r"short_factor is 0\.0; expected a number above 0"),
        (long(short_factor=[1e-9] * 4), "short is 1e-09; expected 1e-6 to 1e6"),
        (long(long_factor="1"), "long_factor is '1'; expected a list"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: the key 'factor' is missing"),
        (
            {"rope_scaling": {"type": "linear", "factor": 1e300}},
            r"factor is 1e\+300; expec",
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2}},
            "'max_position_embeddings' is mis",
        ),
        (PHI | {"partial_rotary_factor": 1.5}, r"partial_rotary_factor 1\.5 is not supported"),
        (PHI | {"partial_rotary_factor": 0.4}, "rotary_dim is 3; it must be an even number"),
        ({"model_type": "mixtral", "num_local_experts": 0}, "num_local_experts is 0; expected a"),
    ],
)
def test_values_of_a_config_have_a_type_and_a_range(tmp_path, change, message):
    (tmp_path / "config.json").write_text(json.dumps(config_of("llama") | change))
    refused(rf"^{tmp_path}/config\.json.*{message}", read_config, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value_dim": 5}, "value_dim is 5; expected a list"),
        ({"num_heads": "8", "head_dim": None}, "num_heads is '8'; expected a whole number"),
        ({"norm_eps": 0}, "norm_eps is 0; expected a number above 0"),
        ({"hidden_ratio": 1e-300, "intermediate_size": None}, "ffn is 0|expected a whole"),
        ({"head_dim": 24}, "heads of width 24 must divide it evenly"),
    ],
)
def test_values_of_an_rwkv_config_have_too(tmp_path, change, message):
    values = fla_json(RWKV7_CONFIGS["rwkv7-tiny"]) | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    refused(rf"^{tmp_path}/config\.json: .*{message}", read_config, tmp_path)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: RWKV7Config(vocab=5, hidden=64, layers=1, ffn=cast(int, "8")),
            "ffn is '8'; it must be a",
        ),
        (lambda: RWKV7Config(vocab=5, hidden=2**30, layers=1, ffn=8), "at most 16,777,216"),
        (lambda: Llama3Scaling(factor=float("nan")), "factor is nan; it must be a finite"),
        (lambda: YarnScaling(factor=0.0), r"factor is 0\.0; it must be a finite number above 0"),
    ],
)
def test_configurations_of_python_have_too(build, message):
    refused(message, build)


def test_layers_without_number_are_not_counted_before_one_is_missing(tmp_path):
    values = config_of("olmoe") | {"num_hidden_layers": 10_000, "num_experts": 10_000}
    write(tmp_path, values, {"model.embed_tokens.weight": np.zeros((48, 32), np.float32)})
    refused("no tensor model.layers", open_hf, tmp_path)


def test_a_head_that_is_not_the_embedding_of_a_tied_model_is_refused(tmp_path):
    values = config_of("tied")
    tensors = tensors_of(hf_config(values))
    embedding = tensors["model.embed_tokens.weight"]
    write(tmp_path, values, tensors | {"lm_head.weight": embedding})
    assert open_hf(tmp_path).config == hf_config(values)
    for head in (embedding + 1, embedding[:5], embedding.astype(np.float16), np.float32(1)):
        save_file(tensors | {"lm_head.weight": np.asarray(head)}, tmp_path / "model.safetensors")
        refused(r"lm_head\.weight that differs from model\.embed_tokens", open_hf, tmp_path)


def test_what_memory_cannot_hold_is_refused_before_it_is_allocated(tmp_path, monkeypatch):
    config = hf_config(config_of("llama"))
    write(tmp_path, config_of("llama"), tensors_of(config))
    monkeypatch.setattr("springroll.memory.host_memory", lambda: 4 * config.parameters - 1)
    message = r"the weights of .* would take [\d.]+ KiB of memory; [\d.]+ KiB are left"
    refused(message, read_params, tmp_path, config)
    refused(message, load_hf, tmp_path)
    assert read_params(tmp_path, config, np.float16)["norm"].dtype == np.float16


def tensor_program(shape, stride, numbers=1):
    """A pickle as PyTorch writes it, of one tensor on the storage 0."""
    word = lambda text: b"X" + len(text).to_bytes(4, "little") + text.encode()
    long = lambda n: b"\x8a\x09" + n.to_bytes(9, "little")
    tuple_of = lambda numbers: b"(" + b"".join(map(long, numbers)) + b"t"
    storage = word("storage") + b"ctorch\nFloatStorage\n" + word("0") + word("cpu") + long(numbers)
    part = b"((" + storage + b"tQ" + long(0) + tuple_of(shape) + tuple_of(stride) + b"\x89Nt"
    return b"\x80\x02}" + word("x") + b"ctorch._utils\n_rebuild_tensor_v2\n" + part + b"Rs."


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (tensor_program((10**9, 10**9), (0, 0)), "x reaches outside of its numbers"),
        (tensor_program((1,), (2**62,)), "x reaches outside of its numbers"),
        (tensor_program((1,) * 65, (1,) * 65), "65 axes"),
        (tensor_program((2**62,), (1,), 2**62), "the numbers of x are cut short"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", None),  # would fill 32 GB of the interpreter in C
        (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".", "damaged, or written in"),
        (b"\x80\x02}" + b"N" + b"\x85" * 5000 + b"Ns.", "a dictionary of tensors and nothing"),
        (b"\x80\x02N" + b"2\x86" * 100 + b"q\x00}h\x00Ns.", "damaged, or written in"),
        (b"\x80\x02(" + b"]" * 4_000_000 + b"t.", "list of tensors is larger than 4 MB"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aNsb.", "a dictionary of"),
    ],
)
def test_a_pickle_takes_no_more_than_its_tensors(tmp_path, program, message):
    path = tmp_path / "x.pth"
    path.write_bytes(archive(program))
    if message is None:
        assert mapped_pth(path) == {}
    else:
        refused(message, mapped_pth, path)


def test_members_are_not_unpacked(tmp_path):
    path = tmp_path / "x.pth"
    bomb = archive(listed(), zipfile.ZIP_DEFLATED, byteorder=bytes(10_000_000))
    assert len(bomb) < 100_000
    path.write_bytes(bomb)
    refused("byteorder is compressed or cut short", mapped_pth, path)


def test_a_list_of_members_without_end_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("springroll.models.hf.pth._MAX_DIRECTORY", 100)
    refused("cut short, or not a file that torch", mapped_pth, SAVED)
