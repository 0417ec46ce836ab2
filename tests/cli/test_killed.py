"""The real command, killed and interrupted, ends with the bytes of a run that never was."""

import signal
import time

import pytest

from springroll.cli.main import main
from springroll.run.journal import Journal
from tests.cli.tiny import outcome, pretrain, start, text_file

GENERATIONS = 80


def wait_for(process, run, records):
    """Until the journal of a run holds so many generations."""
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up:
        assert process.poll() is None, process.communicate()
        if (run / "journal").exists() and (run / "journal").stat().st_size > 100:
            with Journal.read_only(run / "journal") as journal:
                if len(journal) >= records:
                    return
        time.sleep(0.02)
    raise AssertionError("nothing was journalled within two minutes")


@pytest.mark.slow
def test_kill_9_and_ctrl_c_leave_no_trace(tmp_path):
    text = text_file(tmp_path)
    end = ("--generations", str(GENERATIONS))

    first = start(pretrain(text, tmp_path / "run", *end))
    wait_for(first, tmp_path / "run", 10)
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL

    second = start(["pretrain", "--resume", "--out", str(tmp_path / "run"), *end])
    with Journal.read_only(tmp_path / "run" / "journal") as journal:
        done = len(journal)
    wait_for(second, tmp_path / "run", done + 10)
    second.send_signal(signal.SIGINT)
    code, said = outcome(second)
    assert code == 130
    assert "Ctrl-C again to stop at once" in said
    assert f"go on with --resume --out {tmp_path / 'run'}" in said

    assert main(["pretrain", "--resume", "--out", str(tmp_path / "run")]) == 0
    assert main(pretrain(text, tmp_path / "undisturbed", *end)) == 0
    for name in ("journal", f"checkpoints/{GENERATIONS:09d}.safetensors"):
        resumed = (tmp_path / "run" / name).read_bytes()
        assert resumed == (tmp_path / "undisturbed" / name).read_bytes()
