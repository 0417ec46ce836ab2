"""Training from a disk, measured on a model of a few megabytes."""

import json

import pytest

from bench import disk_stream


@pytest.mark.slow
def test_traffic_and_memory_are_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(disk_stream, "PIECES", 2)
    monkeypatch.setattr(disk_stream, "MODEL", "llama-130m")
    disk_stream.main(str(tmp_path), layers=8, host="400MiB", steps=1, turns=1, device="300MiB")
    found = json.loads(capsys.readouterr().out)
    assert found["planned"]["disk"] > 0 and found["planned"]["host"] <= 400 << 20
    assert found["ours"] > 0 and found["baseline"] > 0 and len(found["losses"]) == 2
