"""Ctrl-C, SIGTERM and kill -9 on real processes, resumed to the bytes of an undisturbed one."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from springroll.run.signals import Stop

GENERATIONS = 300
ROOT = Path(__file__).parents[2]
DEADLINE = 120.0  # seconds, for a machine that is very busy


def command(folder, generations=GENERATIONS, pause=0.004):
    module = ["-m", "tests.run.toy_process"]
    return [sys.executable, "-W", "error", *module, str(folder), str(generations), str(pause)]


@contextlib.contextmanager
def running(folder, **changes):
    """A run in a process of its own, which does not outlive the block."""
    with subprocess.Popen(
        command(folder, **changes), stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(folder):
    done = subprocess.run(command(folder, pause=0.0), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stderr


def wait_for(process, condition):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.002)


def size_of(path):
    return path.stat().st_size if path.exists() else 0


def final_bytes(folder):
    names = ("journal", f"checkpoints/{GENERATIONS:09d}.safetensors")
    return [(folder / name).read_bytes() for name in names]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(folder)
    return final_bytes(folder)


def test_killed_at_random_moments_a_run_ends_with_the_same_bytes(tmp_path, undisturbed):
    rng = random.Random(0)
    journal, size = tmp_path / "journal", 0
    for _ in range(3):
        size += rng.randint(1, 6000)  # of about 24000
        with running(tmp_path) as process:
            wait_for(process, lambda size=size: size_of(journal) >= size)
            process.kill()
            assert process.wait() == -signal.SIGKILL
        size = size_of(journal)
    finish(tmp_path)
    assert final_bytes(tmp_path) == undisturbed


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)],
)
def test_a_first_signal_saves_and_says_how_to_go_on(tmp_path, undisturbed, number, code):
    with running(tmp_path) as process:
        wait_for(process, lambda: size_of(tmp_path / "journal") > 3000)
        process.send_signal(number)
        _, printed = process.communicate(timeout=DEADLINE)
    assert process.returncode == code, printed
    assert "stopping after this generation; Ctrl-C again to stop at once" in printed
    assert f"all saved; go on with --resume --out {tmp_path}" in printed
    assert "Traceback" not in printed
    printed = finish(tmp_path)
    assert "generations behind" not in printed  # it was all saved
    assert final_bytes(tmp_path) == undisturbed


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    """Even in the middle of a generation that takes an hour."""
    with running(tmp_path, pause=3600.0) as process:
        wait_for(process, lambda: size_of(tmp_path / "journal") > 0)
        lines, errors = [], process.stderr
        assert errors is not None
        reader = threading.Thread(target=lambda: lines.extend(errors))
        reader.start()
        process.send_signal(signal.SIGINT)
        wait_for(process, lambda: any("stopping" in line for line in lines))
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 130
        reader.join()


@pytest.fixture
def heeded():
    """In the background of a script SIGINT is ignored, and so it would be in a test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_within_a_process_the_handlers_are_put_back():
    said = []
    before = signal.getsignal(signal.SIGINT)
    with Stop(lambda: said.append("first"), lambda: said.append("second")) as stop:
        assert stop.signal is None
        os.kill(os.getpid(), signal.SIGINT)
        end = time.monotonic() + DEADLINE
        while stop.signal is None and time.monotonic() < end:
            time.sleep(0.001)
        assert stop.signal == signal.SIGINT
    assert said == ["first"]
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(DEADLINE)


def test_other_signals_and_other_threads_are_left_alone():
    before = signal.getsignal(signal.SIGINT)
    heard = []
    old = signal.signal(signal.SIGUSR1, lambda *_: heard.append("usr1"))
    try:
        with Stop(lambda: heard.append("first"), lambda: None) as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.05)
            assert stop.signal is None and heard == ["usr1"]
    finally:
        signal.signal(signal.SIGUSR1, old)

    def elsewhere():
        with Stop(lambda: None, lambda: None) as stop:
            heard.append(stop.signal)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert heard == ["usr1", None]
    assert signal.getsignal(signal.SIGINT) is before
