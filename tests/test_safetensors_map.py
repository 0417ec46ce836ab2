"""Mapped safetensors: the numbers of the format's own library, and what is damaged is named."""

import json
import mmap

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from springroll.errors import InputError
from springroll.safetensors_map import forget, mapped


def tensors():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 5)).astype(np.float32)
    return {
        "a": x,
        "b": x[0].astype(ml_dtypes.bfloat16),
        "c": x.astype(np.float16),
        "steps": np.arange(7, dtype=np.int64),
        "nothing": np.zeros((0, 3), np.float32),
        "one": np.array(3.0, np.float32),
    }


@pytest.fixture
def path(tmp_path):
    save_file(tensors(), tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


def test_tensors_come_back_bit_for_bit(path):
    found = mapped(path)
    assert found.keys() == tensors().keys()
    for name, x in tensors().items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape
        assert found[name].tobytes() == x.tobytes()


def test_they_are_views_of_the_file_and_read_only(path):
    found = mapped(path)
    assert not any(x.flags.owndata or x.flags.writeable for x in found.values())
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0] = 0


def test_forgotten_pages_are_read_again(tmp_path):
    big = {k: np.full((3, mmap.PAGESIZE), i, np.float32) for i, k in enumerate("abc")}
    save_file(big, tmp_path / "big.safetensors")
    found = mapped(tmp_path / "big.safetensors")
    for _ in range(2):
        for name, x in found.items():
            np.testing.assert_array_equal(x, big[name])
            forget(x)
            forget(x[1:2, 5:])
    mine = np.ones(3)
    forget(mine)
    assert (mine == 1).all()


def header(entries, numbers=b"\x00" * 8):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + numbers


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"x": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"no safetensors file, or cut short \(0 bytes\)"),
        (b"\x00" * 7, "cut short"),
        (b"\xff" * 30, "no safetensors file"),
        (header(entry())[:20], "cut short"),
        (header(entry())[:-1], r"it has \d+ bytes and its header says \d+; download it again"),
        (header(entry()) + b"!", "its header says"),
        (b"\x02" + b"\x00" * 7 + b"{!", "damaged header"),
        (b"\x02" + b"\x00" * 7 + b"[]", "damaged header"),
        (header(entry(shape=(3,))), "x has 8 bytes where its shape needs 12"),
        (header(entry(dtype="Q4")), "x has the unknown dtype Q4"),
        (header({"x": {"dtype": "F32"}}), "damaged header"),
        (header(entry(offsets=(-8, 0))), "damaged header"),
    ],
)
def test_damage_is_named_with_the_file(tmp_path, content, message):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"cannot read .*broken\.safetensors: .*{message}") as e:
        mapped(path)
    assert "\n" not in str(e.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*gone: No such file"):
        mapped(tmp_path / "gone")
