"""Bundles on a disk: the same bits as in memory, however few memory holds; faults in a line."""

import errno
import os

import jax
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.quant.split_master import with_split_master
from springroll.stream import disk as disks
from springroll.stream.clipping import Clip
from springroll.stream.disk import Disk
from springroll.stream.fill_store import stacked_leaves
from springroll.stream.link import Link
from springroll.stream.store import HostStore
from springroll.stream.streamed import Streamed
from springroll.stream.unnamed_file import PageBuffers
from tests.stream.streaming import adam, arrays, leaves, model, shapes, tokens, update

LAYERS = 3


def trained(where, steps=2, **options):
    optimizer = with_split_master(adam()) if where == "host" else adam()
    narrow = where == "host"
    trainer = Streamed(model(), shapes(model()), update(where, optimizer), narrow=narrow, **options)
    state = trainer.fill(stacked_leaves(leaves(model().config, jax.random.key(0))))
    for i in range(steps):
        state, _ = trainer.step(state, tokens(i))
    return [x.tobytes() for x in arrays((state.params, state.optimizer))]


@pytest.mark.parametrize(
    ("where", "clip"),
    [
        ("host", Clip(1e-2, "global")),
        ("device", Clip()),
        pytest.param("host", Clip(), marks=pytest.mark.slow),
        pytest.param("device", Clip(1e-2, "global"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_bits_are_those_of_host_memory(tmp_path, where, clip):
    expected = trained(where, clip=clip)
    few = Disk(tmp_path / "new" / "folder", 0)
    assert trained(where, clip=clip, disk=few, on_disk=[0, 2, LAYERS]) == expected
    many = Disk(tmp_path, 1 << 40)
    assert trained(where, clip=clip, disk=many, on_disk=range(LAYERS)) == expected
    assert few.traffic.read > many.traffic.read > 0 < many.traffic.written
    assert not os.listdir(tmp_path / "new" / "folder")  # nothing that another run could meet


def test_parts_of_leaves_are_written_and_read(tmp_path):
    store = HostStore(Link(), disk=Disk(tmp_path, 0), on_disk=[0])
    given = {"a": np.arange(24, dtype=np.int16).reshape(2, 3, 4), "count": np.zeros((), np.int32)}
    store.append({"weights": given, "state": {}})
    store.write(0, "weights", 0, np.full((2, 4), 7), (1, slice(1, 3)))
    store.write(0, "weights", 1, np.asarray(5))
    expected = given["a"].copy()
    expected[1, 1:3] = 7
    np.testing.assert_array_equal(store.leaf(0, "weights", 0), expected)
    sent = store.arrays(0, ("weights", "state"))
    np.testing.assert_array_equal(sent["weights"]["a"], expected)
    assert sent["weights"]["count"] == 5 and sent["state"] == {}


def test_what_the_disk_refuses_in_a_step_is_one_line(tmp_path, monkeypatch):
    disk = Disk(tmp_path, 0)
    trainer = Streamed(model(), shapes(model()), update("host"), disk=disk, on_disk=[1])
    state = trainer.fill(stacked_leaves(leaves(model().config, jax.random.key(0))))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disks.os, "pwrite", full)
    with pytest.raises(InputError, match=r"cannot write the store in .*No space left.*--resume"):
        for i in range(3):
            state, _ = trainer.step(state, tokens(i))


def test_a_disk_that_is_too_small_is_found_before_the_first_step(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disks, "take", full)
    with pytest.raises(InputError, match=r"do not fit on the disk of .*No space left"):
        Streamed(model(), shapes(model()), update("host"), disk=Disk(tmp_path, 0), on_disk=[1])


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot keep a store in .*file"):
        Disk(tmp_path / "file", 0)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(InputError, match="is a file, expected a folder"):
        disks.free_on_disk(tmp_path / "file" / "below")
    assert disks.free_on_disk(tmp_path / "not" / "yet") > 0
    with pytest.raises(InputError, match="give disk"):
        Streamed(model(), shapes(model()), update("host"), on_disk=[1])


def test_what_is_promised_stays_in_memory(tmp_path):
    size = disks.SECTOR
    disk = Disk(tmp_path, 2 * size)
    a, b, c = (disk.reserve({"x": np.zeros(size, np.uint8)}) for _ in range(3))
    disk.soon(a, uses=2)
    for region in (b, c, a, a):
        disk.load(region).result()
    assert disk.traffic.read == 3 * size
    for region in (b, c, a):  # it makes room when all uses have come
        disk.load(region).result()
    assert disk.traffic.read == 6 * size


def test_of_promises_that_do_not_fit_the_nearest_are_kept(tmp_path):
    size = disks.SECTOR
    disk = Disk(tmp_path, 2 * size)
    a, b, c = (disk.reserve({"x": np.zeros(size, np.uint8)}) for _ in range(3))
    for region in (a, b, c):  # there is no room for c
        disk.soon(region)
    for region in (a, b):
        disk.leaf(region, 0)  # waits until it is there
    disk.load(c).result()
    disk.load(a).result()
    assert disk.traffic.read == 3 * size
    disk.load(b).result()
    assert disk.traffic.read == 4 * size


def test_memory_that_nobody_looks_at_is_used_again():
    buffers = PageBuffers(3 * disks.SECTOR)
    first = buffers.take(disks.SECTOR)
    view, place = first[8:16], first.ctypes.data
    del first
    assert buffers.take(disks.SECTOR).ctypes.data != place  # the view looks at it
    del view
    assert buffers.take(disks.SECTOR).ctypes.data == place
    large = buffers.take(3 * disks.SECTOR)  # the others are let go for it
    assert len(large) == 3 * disks.SECTOR and not buffers.take(0).size
