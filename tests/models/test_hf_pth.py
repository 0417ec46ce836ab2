"""Files of torch.save: every tensor as PyTorch has it, and nothing else is ever built or called."""

import io
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.models.hf.pth import mapped_pth

SAVED = Path(__file__).parents[1] / "golden" / "rwkv7_saved.pth"  # by torch, see make_rwkv7.py


def rewritten(folder, change=None, **members):
    """The file again with other members: bytes, or None to leave one out."""
    path = folder / "x.pth"
    with zipfile.ZipFile(SAVED) as old, zipfile.ZipFile(path, "w") as new:
        for item in old.infolist():
            name = item.filename.split("/", 1)[1]
            data = members.get(name.replace("/", "_").replace(".", "_"), old.read(item))
            if data is not None:
                new.writestr(item.filename, change(name, data) if change else data)
    return path


def program(value):
    """A pickle of a value, to stand where the list of tensors stands."""
    file = io.BytesIO()
    pickle.dump(value, file, protocol=2)
    return file.getvalue()


def test_every_tensor_is_the_one_that_was_saved():
    found = mapped_pth(SAVED)
    numbers = np.arange(24, dtype=np.float32).reshape(4, 6)
    expected = {
        "whole": numbers,
        "turned": numbers.T,
        "part": numbers[1:3, 2:],
        "short": numbers.astype(ml_dtypes.bfloat16),
        "half": numbers.astype(np.float16)[2],
        "double": numbers.astype(np.float64).reshape(1, 1, 24),
        "one": np.float32(7),
    }
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape
        np.testing.assert_array_equal(found[name], x)
        assert not found[name].flags.writeable


def test_a_rewritten_file_is_the_same(tmp_path):
    np.testing.assert_array_equal(
        mapped_pth(rewritten(tmp_path))["part"], mapped_pth(SAVED)["part"]
    )


class Runs:
    """A pickle that would run a command."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Runs(), r"it names \w+\.exec; only tensors are read"),
        ({"x": Runs()}, r"it names \w+\.exec; only tensors are read"),
        ({"x": Path("/")}, "it names pathlib"),
        ([1, 2], "expected a dictionary of tensors and nothing else"),
        ({"model": {"x": 1}}, "expected a dictionary of tensors and nothing else"),
    ],
)
def test_what_is_no_tensor_is_refused_and_never_run(tmp_path, value, message):
    with pytest.raises(InputError, match=message):
        mapped_pth(rewritten(tmp_path, data_pkl=program(value)))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"data_0": None}, "it lacks .*data/0; download it again"),
        ({"data_0": b"1234"}, "the numbers of whole are cut short"),
        ({"data_pkl": b"\x80\x02."}, "cannot read"),
        ({"data_pkl": b""}, "cannot read"),
        ({"data_pkl": None}, "a zip file, but not one that torch.save wrote"),
        ({"byteorder": b"big"}, "not little-endian"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, members, message):
    with pytest.raises(InputError, match=message):
        mapped_pth(rewritten(tmp_path, **members))


def test_a_tensor_outside_of_its_numbers_is_refused(tmp_path):
    with zipfile.ZipFile(SAVED) as file:
        listed = next(file.read(n) for n in file.namelist() if n.endswith("data.pkl"))
    for change in ((b"K\x04K\x06", b"K\x05K\x06"), (b"K\x06K\x01", b"K\x07K\x01")):  # shape, stride
        assert change[0] in listed
        with pytest.raises(InputError, match="reaches outside of its numbers"):
            mapped_pth(rewritten(tmp_path, data_pkl=listed.replace(*change)))


def test_a_file_cut_short_or_of_another_kind_is_named(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(SAVED.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"cut short, or not a file that torch\.save wrote"):
        mapped_pth(path)
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")  # as PyTorch before 1.6 began
    with pytest.raises(InputError, match=r"since PyTorch 1\.6"):
        mapped_pth(path)
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        mapped_pth(tmp_path / "none.pth")
