"""A worker process by itself: messages, progress, and what is left when it goes."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from springroll import worker as module
from springroll.errors import InputError
from springroll.tasks.user_code import arguments_taken
from springroll.worker import Progress, Worker, WorkerLost, read_message, serve, write_message
from tests.tasks.reward_functions import holding
from tests.tasks.test_function_task import gone


def main(progress, *arguments):
    """What the worker of these tests does; it runs there."""

    def answer(message, payload):
        if "hold" in message:
            holding(message["hold"])
        for item in range(message.get("calls", 0)):
            progress.begin(item)
            time.sleep(message["each"])
        if "die at" in message:
            progress.begin(message["die at"])
            os._exit(1)
        progress.rest()
        found = {"pid": os.getpid(), "arguments": arguments, "jax": os.environ["JAX_PLATFORMS"]}
        return found, payload[::-1]

    def load():
        if "refuse" in arguments:
            raise InputError("not today")
        return answer

    serve(load, 60.0)


def made(*arguments, limit=20.0):
    return Worker("tests.test_worker", *arguments, limit=limit, what="the thing")


def test_messages_there_and_back():
    worker = made("a", "ü")
    payload = bytes(range(256)) * 4000  # more than a pipe holds
    answer, back = worker.ask({"text": "\ud800\n"}, payload)
    assert (answer["arguments"], answer["jax"]) == (["a", "ü"], "cpu") and back == payload[::-1]
    assert worker.ask({})[0]["pid"] == answer["pid"] == worker.pid and worker.alive
    with pytest.raises(WorkerLost) as lost:
        worker.ask({"die at": 7})
    assert (lost.value.kind, lost.value.item, worker.alive) == ("crashed", 7, False)
    assert worker.ask({})[0]["pid"] != answer["pid"]
    worker.end()
    assert worker.pid is None and gone(answer["pid"])
    with pytest.raises(WorkerLost, match="crashed"):
        worker.receive()


def test_progress_tells_what_is_slow_from_what_hangs():
    worker = made(limit=1.5)  # a busy machine may well stop a process for half a second
    answer, _ = worker.ask({"calls": 8, "each": 0.2})
    with pytest.raises(WorkerLost) as lost:
        worker.ask({"calls": 2, "each": 1000})
    assert (lost.value.kind, lost.value.item) == ("timeout", 0)
    assert lost.value.line == "more than 1.5 s" and gone(answer["pid"])


def test_a_worker_that_does_not_load():
    worker = made("refuse")
    with pytest.raises(InputError, match="not today"):
        worker.ask({})
    assert worker.pid is None


def test_a_torn_message_is_none(tmp_path):
    pipe = io.BytesIO()
    write_message(pipe, {"a": 1}, b"12", np.frombuffer(b"345", np.int8)[None], b"")
    write_message(pipe, {"b": 2})
    whole = pipe.getvalue()
    read = lambda data: read_message(io.BytesIO(data))
    assert read(whole) == ({"a": 1}, b"12345") and read(whole[: whole.index(b"5")]) is None
    assert read(b"") is None and read(b'{"a": 1') is None
    again = io.BytesIO(whole)
    assert [read_message(again) for _ in range(3)] == [({"a": 1}, b"12345"), ({"b": 2}, b""), None]
    (tmp_path / "p").write_bytes(bytes(Progress.size))
    here, there = Progress(str(tmp_path / "p")), Progress(str(tmp_path / "p"))
    here.begin(5)
    assert (there.calls, there.item) == (1, 5)
    here.rest()
    assert (there.calls, there.item) == (1, -1)


def test_how_many_arguments_a_function_is_given():
    given = {0: [lambda: 0], 1: [lambda a: 0, lambda a, scale=2.0: 0, iter, lambda a=1: 0]}
    given[2] = [lambda a, b: 0, lambda a, b=None: 0, lambda *a: 0, lambda a, b, c: 0]
    for count, functions in given.items():
        assert [arguments_taken(function) for function in functions] == [count] * len(functions)


def test_nothing_outlives_a_parent_that_is_killed(tmp_path):
    """Neither the worker, nor what it started, whatever session that put itself in."""
    code = """
import json, sys
from tests.test_worker import made
worker = made()
print(worker.ask({"hold": sys.argv[1]})[0]["pid"], flush=True)
worker.ask({"calls": 1, "each": 1000})
"""
    pids = tmp_path / "pids"
    command = [sys.executable, "-c", code, str(pids)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        started = [int(parent.stdout.readline()), *map(int, pids.read_text().split())]
        assert len(started) == 3
        parent.kill()
    assert all(map(gone, started))


def test_a_killed_worker_takes_along_what_it_started(tmp_path):
    worker = made()
    pids = tmp_path / "pids"
    answer, _ = worker.ask({"hold": str(pids)})
    os.kill(answer["pid"], signal.SIGKILL)
    assert all(gone(int(pid)) for pid in pids.read_text().split())
    with contextlib.suppress(WorkerLost):  # whoever notices it first
        worker.ask({})
    assert worker.ask({})[0]["pid"] != answer["pid"]
    worker.end()


def test_without_a_keeper_the_pipe_keeps_nobody_either(monkeypatch, tmp_path):
    """As on systems that do not hand orphans to anybody: what left the session stays."""
    monkeypatch.setattr(module, "keepers_exist", lambda: False)
    worker = made()
    pids = tmp_path / "pids"
    with pytest.raises(WorkerLost, match="crashed"):
        worker.ask({"hold": str(pids), "die at": 3})
    for pid in map(int, pids.read_text().split()):
        os.kill(pid, signal.SIGKILL)
    worker = made(limit=1.5)
    pids.unlink()
    with pytest.raises(WorkerLost, match="timeout"):
        worker.ask({"hold": str(pids), "calls": 1, "each": 1000})
    for pid in map(int, pids.read_text().split()):
        os.kill(pid, signal.SIGKILL)


def test_a_request_that_nobody_reads_keeps_nobody(monkeypatch, tmp_path):
    """More than a pipe holds, to a process that hangs and whose child holds the pipe."""
    monkeypatch.setattr(module, "keepers_exist", lambda: False)
    worker = made(limit=1.5)
    pids = tmp_path / "pids"
    worker.start()
    worker.send({"hold": str(pids), "calls": 1, "each": 1000})
    worker.send({}, bytes(1 << 20))
    with pytest.raises(WorkerLost, match="timeout"):
        worker.receive()
    for pid in map(int, pids.read_text().split()):
        os.kill(pid, signal.SIGKILL)
