"""`springroll train --engine stream`: the same run folder, loop and resume; kill -9; refusals."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from springroll.cli.main import main
from springroll.errors import InputError
from springroll.models.decoder import decoder
from springroll.models.decoder_config import named
from springroll.program import pip_install
from springroll.run import checkpoint
from springroll.stream import unnamed_file
from tests.cli.newest import newest_weights
from tests.cli.tiny import text_file

STEPS = 4
SIZE = (
    "--batch 4 --sequence 16 --valid-streams 4 --valid-tokens 16 --rank 4 "
    "--refresh-interval 2 --log-every 0 --eval-every 0 --schedule-steps 4 --lr 0.03"
).split()
# Less than two layers and all that goes with them, so that layers do stream.
STREAM = ["--engine", "stream", "--depth", "1", "--device-memory", "560KiB"]
# Of the five layers of llama-1m none stays on the device, and host memory does not hold them.
ON_DISK = "--engine stream --depth 1 --clip-by previous --dtype bfloat16 --device-memory 2100KiB"
ON_DISK += " --host-memory 12MiB"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return str(text_file(tmp_path_factory.mktemp("text")))


def command(text, out, *more, model="llama-tiny", steps=STEPS):
    base = ["train", "--data", text, "--out", str(out), "--model", model, "--steps", str(steps)]
    return [*base, *SIZE, *more]


def newest(folder, step=STEPS):
    return (folder / "checkpoints" / f"{step:09d}.safetensors").read_bytes()


def valid(folder):
    """The first and the last validation; in between there is one when there is time."""
    rows = [json.loads(r) for r in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [row["valid_bits_per_byte"] for row in rows if "valid_bits_per_byte" in row]
    return found[0], found[-1]


def test_it_streams_when_a_step_does_not_fit_and_learns_the_same(tmp_path, text, capsys):
    assert main(command(text, tmp_path / "whole", "--engine", "resident")) == 0
    assert main(command(text, tmp_path / "stream", *STREAM[2:])) == 0
    config = json.loads((tmp_path / "stream" / "config.json").read_text())["config"]
    assert config["engine"] == "stream"
    said = capsys.readouterr().err
    for word in ("layers passing", "host", "working set"):
        assert word in said
    np.testing.assert_allclose(valid(tmp_path / "stream"), valid(tmp_path / "whole"), rtol=1e-4)
    whole, stream = (newest_weights(str(tmp_path / name)).params for name in ("whole", "stream"))
    np.testing.assert_allclose(stream["lm_head"], whole["lm_head"], atol=1e-4)
    assert main(["eval", str(tmp_path / "stream"), "--data", text]) == 0


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            "--dtype bfloat16 --weight-decay 0.1 --accumulate 2 --clip-by previous",
            marks=pytest.mark.slow,
        ),
        "--optimizer muon --state-bits 8 --clip-by layer",
        pytest.param("--optimizer lowgrad --dtype bfloat16", marks=pytest.mark.slow),
    ],
)
def test_it_resumes_to_the_same_bytes(tmp_path, text, options, monkeypatch, capsys):
    """From the checkpoint before the last, as a kill leaves it."""
    monkeypatch.setattr("springroll.run.session.SAVE_SHARE", float("inf"))  # after every step
    more = [*options.split(), *STREAM[:4], "--device-memory", "900KiB"]
    assert main(command(text, tmp_path / "whole", *more)) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for path in (tmp_path / "parts" / "checkpoints").glob(f"{STEPS:09d}.*"):
        path.unlink()
    assert main(command(text, tmp_path / "parts", "--resume")) == 0
    assert f"at step {STEPS - 1}" in capsys.readouterr().err
    assert newest(tmp_path / "parts") == newest(tmp_path / "whole")


@pytest.mark.slow
def test_two_devices_go_on_where_one_stopped_and_end_where_one_does(tmp_path, text):
    assert main(command(text, tmp_path / "one", *STREAM)) == 0
    assert main(command(text, tmp_path / "two", *STREAM, steps=2)) == 0
    assert main(command(text, tmp_path / "two", "--resume", "--devices", "2")) == 0
    one, two = (newest_weights(str(tmp_path / name)).params for name in ("one", "two"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--engine stream --device-memory 200KiB", "streaming needs .* on the device, 200 KiB are"),
        (
            "--engine stream --host-memory 100KiB --device-memory 560KiB --depth 1",
            "of host memory, 100",
        ),
        ("--engine stream --layerwise", "leave out --layerwise"),
        ("--engine stream --update host --optimizer muon", "leave out --update host for muon"),
        ("--engine stream --devices 3", "batch is 4; it must divide evenly over 3 devices"),
        ("--engine resident --clip-by layer", "clip_by layer is of streaming"),
        (f"{ON_DISK} --model llama-1m", "12.6 MiB of host memory, 12 MiB .* a folder for layers"),
        (f"{ON_DISK} --model llama-1m --disk /dev/null", "/dev/null is a file, expected a folder"),
        ("--engine resident --disk here", "disk is of streaming, the engine is resident; leave"),
        ("--engine streem", "did you mean stream"),
        ("--depth 0", "depth is 0"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(tmp_path, text, capsys, options, message):
    assert main(command(text, tmp_path / "run", *options.split())) == 2
    said = capsys.readouterr().err
    import re

    assert re.search(message, said), said
    assert not (tmp_path / "run").exists()


def test_a_disk_that_cannot_be_written_to_leaves_no_run_behind(tmp_path, text, capsys, monkeypatch):
    def refused(**options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(unnamed_file.tempfile, "TemporaryFile", refused)
    more = [*ON_DISK.split(), "--disk", str(tmp_path / "disk")]
    assert main(command(text, tmp_path / "run", *more, model="llama-1m")) == 2
    said = capsys.readouterr().err
    assert "cannot keep a store in" in said and "Read-only file system" in said
    assert not (tmp_path / "run").exists()


def killed(arguments, out, later):
    """Run a command or go on with its run, and kill it seconds after its second checkpoint."""
    resume = ["--resume"] if (out / "config.json").exists() else []
    line = [sys.executable, "-m", "springroll", *arguments, *resume]
    with subprocess.Popen(line, env=os.environ) as process:
        for _ in range(600):
            if len(checkpoint.saved(out / "checkpoints")) > 1:
                break
            time.sleep(0.1)
        time.sleep(later)
        process.send_signal(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("update", "device", "host"), [("host", "2100KiB", "12MiB"), ("device", "4300KiB", "14MiB")]
)
def test_layers_on_a_disk_make_the_same_run_whenever_it_is_killed(
    tmp_path, text, update, device, host, capsys
):
    """The same bytes as in memory; nothing is left on the disk."""
    steps, tight = 30, ON_DISK.replace("2100KiB", device).replace("12MiB", host)
    roomy = tight.replace(host, "64MiB")
    start = lambda out: command(text, tmp_path / out, model="llama-1m", steps=steps)
    assert main([*start("whole"), *roomy.split(), "--update", update]) == 0
    folder = tmp_path / "disk"
    more = [*tight.split(), "--update", update, "--disk", str(folder)]
    for attempt in range(3):
        killed([*start("parts"), *more], tmp_path / "parts", 0.05 * attempt)
        assert not os.listdir(folder)
    capsys.readouterr()
    assert main([*start("parts"), *more, "--resume"]) == 0
    assert "disk" in capsys.readouterr().err
    assert newest(tmp_path / "parts", steps) == newest(tmp_path / "whole", steps)


@pytest.mark.slow
def test_a_kill_in_the_middle_of_updates_mixes_no_two_steps(tmp_path, text):
    """Killed again and again at any moment, the run ends with the bytes of an undisturbed one."""
    more = [*STREAM, "--dtype", "bfloat16", "--update", "host"]
    steps = 40
    assert main(command(text, tmp_path / "whole", *more, steps=steps)) == 0
    first = command(text, tmp_path / "parts", *more, steps=steps)
    for attempt in range(4):
        killed(first, tmp_path / "parts", 0.05 * attempt)
    assert main([*first, "--resume"]) == 0
    assert newest(tmp_path / "parts", steps) == newest(tmp_path / "whole", steps)


def test_without_numba_the_device_updates_and_asking_for_the_host_says_so(monkeypatch):
    from springroll.stream import host_adamw
    from springroll.train import streamed as streaming
    from springroll.train.config import TrainConfig

    def absent(name):
        raise ModuleNotFoundError("no numba", name="numba")

    monkeypatch.setattr(streaming, "find_spec", lambda name: None)
    assert not streaming.on_host(TrainConfig()) and streaming.on_host(TrainConfig(update="host"))
    host_adamw.kernels.cache_clear()
    monkeypatch.setattr(host_adamw.importlib, "import_module", absent)
    with pytest.raises(InputError, match=re.escape(pip_install("stream"))):
        streaming.step_spec(TrainConfig(update="host"), decoder(named("llama-tiny")))
    monkeypatch.undo()
    host_adamw.kernels.cache_clear()
