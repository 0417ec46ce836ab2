"""metrics.jsonl, TensorBoard, and the peak of memory."""

import json
import math
import os
import struct

import numpy as np
import pytest

from springroll.errors import InputError
from springroll.run.metrics import MetricsFile, peak_memory_bytes, read_rows


def rows(*generations):
    return [{"generation": g, "loss": float(g)} for g in generations]


def write(path, *generations, after=0, tensorboard=None):
    metrics = MetricsFile(path, tensorboard, after=after)
    for row in rows(*generations):
        metrics.write(row)
    metrics.close()
    return metrics


def test_rows_are_written_as_they_come(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.write({"generation": 1, "loss": 0.5, "note": "x"})
    assert json.loads(path.read_text()) == {"generation": 1, "loss": 0.5, "note": "x"}
    metrics.close()


def test_on_resume_what_comes_after_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 5, 9, 12)
    metrics = write(path, 10, after=9)
    assert metrics.newest == {"generation": 10, "loss": 10.0}
    write(path, 11, after=10)
    assert read_rows(path) == rows(1, 5, 9, 10, 11)


def test_a_run_from_the_start_begins_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2)
    write(path, 0)
    assert read_rows(path) == rows(0)


def test_the_newest_of_every_figure_is_known(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.write({"generation": 1, "a": 1.0, "b": 2.0})
    metrics.write({"generation": 3, "a": 4.0})
    metrics.close()
    for again in (metrics, MetricsFile(path, after=3)):
        assert again.newest == {"generation": 3, "a": 4.0, "b": 2.0}
        assert again.newest_at == {"generation": 3, "a": 3, "b": 1}
        again.close()


def test_a_full_disk_is_one_line(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.close()
    with (
        open("/dev/full", "ab", buffering=0) as metrics._file,
        pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"),
    ):
        metrics.write({"generation": 1})


def test_torn_lines_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 2, 3)
    path.write_bytes(path.read_bytes()[:-4] + b'\n[1]\n"x"\n{"loss": 1}\n\xff\n')
    assert read_rows(path) == rows(1, 2)
    assert read_rows(tmp_path / "none") == []


@pytest.mark.parametrize(
    "value", ["[1]", '{"a": 1}', "1e999", "1" + "0" * 400, "NaN", "9" * 5000, "[" * 10_000]
)
def test_rows_that_nobody_wrote_are_left_out(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    write(path, 1)
    with open(path, "a") as file:
        file.write(f'{{"generation": 2, "loss": {value}}}\n{{"generation": {value}}}\n')
    assert read_rows(path) == rows(1)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(InputError, match=f"cannot read .*{name}: "):
            read_rows(tmp_path / name)


def test_a_disk_that_gets_full_takes_a_part_of_a_row(tmp_path):
    class Short:
        def __init__(self, file):
            self._file = file

        def write(self, content):
            if len(content) < 8:
                raise OSError(28, "No space left on device")
            return self._file.write(content[: len(content) // 2])

    metrics = MetricsFile(tmp_path / "m")
    whole = metrics._file
    metrics._file = Short(whole)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(OSError, match=r"No space left on device: .*m'"):
        metrics.write({"generation": 1, "loss": 0.5})
    metrics._file = whole
    metrics.close()
    assert (tmp_path / "m").stat().st_size > 0 and read_rows(tmp_path / "m") == []


def test_a_board_that_cannot_be_written_is_an_error_and_closed(tmp_path):
    """TensorBoard's own thread would die, and the run wait for it for ever."""
    metrics = MetricsFile(tmp_path / "m", tmp_path / "board")
    assert metrics._board
    metrics._board._file.close()
    metrics._board._file._writer = open("/dev/full", "wb")  # noqa: SIM115
    for generation in range(300):
        try:
            metrics.write({"generation": generation, "loss": 0.5})
        except OSError as error:
            assert "No space left on device" in str(error)
            break
    else:
        pytest.fail("events went nowhere")
    with pytest.raises(OSError, match="No space left on device"):
        metrics.close()
    assert metrics._board._file._writer.closed and metrics._file.closed


def test_what_is_not_finite_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.write({"generation": 1, "a": math.nan, "b": -math.inf, "c": 2.0})
    metrics.close()
    assert read_rows(path) == [{"generation": 1, "a": None, "b": None, "c": 2.0}]


def events(folder):
    """(step, tag, value) of every scalar in the event files, by the format's own framing."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    found = []
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 12 + length + 4
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


def test_tensorboard_gets_the_same_numbers(tmp_path):
    write(tmp_path / "m", 1, 2, tensorboard=tmp_path / "board")
    assert events(tmp_path / "board") == [(1, "loss", 1.0), (2, "loss", 2.0)]


def test_tensorboard_goes_on_after_a_resume(tmp_path):
    write(tmp_path / "m", 1, 2, 3, tensorboard=tmp_path / "board")
    write(tmp_path / "m", 3, after=2, tensorboard=tmp_path / "board")
    assert events(tmp_path / "board")[-1] == (3, "loss", 3.0)


def test_the_peak_grows_with_what_is_used():
    before = peak_memory_bytes()
    assert before > 2**20
    block = np.ones(2**26, np.uint8)
    assert peak_memory_bytes() >= max(before, block.nbytes)


def test_an_accelerator_is_asked_for_its_own_peak(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    devices = [Device({"peak_bytes_in_use": 5}), Device({"peak_bytes_in_use": 7}), Device(None)]
    monkeypatch.setattr("jax.local_devices", lambda: devices)
    assert peak_memory_bytes() == 12
