"""Experts in MXFP4: the numbers of the format, expert by expert, and folders that hold them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from springroll.errors import InputError
from springroll.models.hf.decoder import hf_config
from springroll.models.hf.files import open_hf, read_config
from springroll.models.hf.load import read_layer, read_params
from springroll.models.hf.mxfp4 import Mxfp4, with_mxfp4
from springroll.models.hf.save import save_hf
from tests.models.test_hf import config_of, tensors_of

TABLE = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
VALUES = config_of("gpt_oss") | {"intermediate_size": 32, "quantization_config": {"x": "mxfp4"}}


def drawn(experts, rows, width):
    rng = np.random.default_rng(rows)
    blocks = rng.integers(0, 256, (experts, rows, width // 32, 16)).astype(np.uint8)
    return blocks, rng.integers(110, 135, blocks.shape[:3]).astype(np.uint8)


def slowly(blocks, scales):
    """(E, in, out), number after number."""
    experts, rows, count, _ = blocks.shape
    found = np.zeros((experts, 32 * count, rows), np.float32)
    for (e, row, block, byte), both in np.ndenumerate(blocks):
        for half, code in enumerate((int(both) & 15, int(both) >> 4)):
            scale = 2.0 ** (int(scales[e, row, block]) - 127)
            found[e, 32 * block + 2 * byte + half, row] = TABLE[code] * scale
    return found


def folder_of(path, **changes):
    """gpt-oss as it is published; and the float tensors that stand for the blocks."""
    tensors, floats = tensors_of(hf_config(VALUES), VALUES), {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, width, rows = tensors.pop(name).shape
        blocks, scales = drawn(experts, rows, width)
        floats[name] = slowly(blocks, scales)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    path.mkdir()
    (path / "config.json").write_text(json.dumps(VALUES))
    save_file(tensors | changes, path / "model.safetensors")
    return floats


def test_numbers_are_those_of_the_table_and_fit_bfloat16():
    blocks, scales = drawn(3, 6, 64)
    lazy, expected = Mxfp4(blocks, scales), slowly(blocks, scales)
    assert lazy.shape == expected.shape and lazy.dtype == jnp.bfloat16
    for e in range(3):
        for columns in (slice(None), slice(0, None, 2), slice(1, None, 2)):
            found = lazy[e, :, columns]
            np.testing.assert_array_equal(found.astype(np.float32), expected[e][:, columns])


def test_a_published_folder_is_read_as_its_floats_and_written_without_blocks(tmp_path):
    floats = folder_of(tmp_path / "a")
    config = read_config(tmp_path / "a")
    params = read_params(tmp_path / "a", config)
    experts = params["layers"]["mlp"]["experts"]
    assert experts["up_proj"].dtype == jnp.bfloat16
    for layer in range(config.layers):
        both = floats[f"model.layers.{layer}.mlp.experts.gate_up_proj"].swapaxes(1, 2)
        for name, start in (("gate_proj", 0), ("up_proj", 1)):
            found = experts[name][layer].astype(np.float32)
            np.testing.assert_array_equal(found, both[:, start::2])
    layer = read_layer(open_hf(tmp_path / "a"), 1)["mlp"]["experts"]["down_proj"]
    np.testing.assert_array_equal(layer, experts["down_proj"][1])
    save_hf(tmp_path / "b", config, params, dtype=jnp.bfloat16, like=tmp_path / "a")
    assert "quantization_config" not in json.loads((tmp_path / "b/config.json").read_text())
    again = read_params(tmp_path / "b", config)["layers"]["mlp"]["experts"]
    np.testing.assert_array_equal(again["gate_proj"], experts["gate_proj"])


def test_blocks_that_do_not_fit_are_refused(tmp_path):
    blocks, scales = drawn(2, 4, 32)
    for pair in ((blocks, scales[:1]), (blocks[..., :8], scales), (blocks.astype(np.int8), scales)):
        with pytest.raises(InputError, match=r"x_blocks is .* and its scales .*; expected bytes"):
            with_mxfp4(dict(zip(("x_blocks", "x_scales"), pair, strict=True)))
    name = "model.layers.0.mlp.experts.down_proj"
    folder_of(tmp_path / "a", **{f"{name}_blocks": drawn(6, 32, 64)[0]})
    with pytest.raises(InputError, match="down_proj_blocks is uint8"):
        open_hf(tmp_path / "a")
    blocks, scales = drawn(6, 32, 64)
    folder_of(tmp_path / "b", **{f"{name}_blocks": blocks, f"{name}_scales": scales})
    with pytest.raises(InputError, match=r"down_proj has the shape \[6, 64, 32\]; the model has"):
        open_hf(tmp_path / "b")
