"""Files as `torch.save` writes them, without PyTorch: float32 tensors by name."""

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from unittest import mock


class FloatStorage:
    """Stands for the class of that name."""


def rebuild(*_):
    """Stands for the function `_rebuild_tensor_v2`."""


class Numbers:
    """A storage, by its key in the file."""

    def __init__(self, key, count):
        self.key, self.count = key, count


class Tensor:
    """An array that lies in a storage from its beginning."""

    def __init__(self, numbers, array):
        self.numbers, self.array = numbers, array

    def __reduce__(self):
        strides = tuple(step // self.array.itemsize for step in self.array.strides)
        return rebuild, (self.numbers, 0, self.array.shape, strides, False, OrderedDict())


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, Numbers):
            return ("storage", FloatStorage, obj.key, "cpu", obj.count)
        return None


def save(tensors, path):
    """Write a file; the same array under two names is stored once."""
    utils = types.ModuleType("torch._utils")
    torch = types.ModuleType("torch")
    vars(utils)["_rebuild_tensor_v2"] = rebuild
    vars(torch).update(FloatStorage=FloatStorage, _utils=utils)
    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    FloatStorage.__module__ = "torch"
    arrays = {id(array): array for array in tensors.values()}
    keys = {each: str(k) for k, each in enumerate(arrays)}
    listed = {n: Tensor(Numbers(keys[id(x)], x.size), x) for n, x in tensors.items()}
    program = io.BytesIO()
    with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}):
        Pickler(program, protocol=2).dump(listed)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", program.getvalue())
        for each, array in arrays.items():
            file.writestr(f"archive/data/{keys[each]}", array.tobytes())
