"""`springroll train --engine stream --experts-per-bundle`: the same run, and what it refuses."""

import json
import re

import numpy as np
import pytest
from tiny import text_file

from springroll.cli import trained
from springroll.cli.main import main

SIZE = (
    "--steps 2 --batch 4 --tokens 16 --valid-streams 4 --valid-tokens 16 --log-every 0 "
    "--eval-every 0 --schedule-steps 2 --lr 0.03 --engine stream --depth 1 --memory 560KiB"
).split()


def command(tmp_path, out, *more, model="moe-tiny"):
    text = text_file(tmp_path)
    return ["train", "--data", str(text), "--out", str(out), "--model", model, *SIZE, *more]


def test_its_weights_are_those_of_the_model(tmp_path, capsys):
    assert main(command(tmp_path, tmp_path / "run", "--experts-per-bundle", "2")) == 0
    assert "layers passing" in capsys.readouterr().err
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["experts_per_bundle"] == 2
    params = trained.load(str(tmp_path / "run")).params
    assert params["layers"]["mlp"]["experts"]["gate_proj"].shape[:2] == (2, 4)
    assert np.isfinite(params["lm_head"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--experts-per-bundle 3", "is 3; it must divide the 4 experts; take 2"),
        ("--experts-per-bundle 0", "experts_per_bundle is 0; it must be above 0"),
        ("--experts-per-bundle 2 --optimizer lowgrad", "lowgrad streams whole layers; leave out"),
        ("--experts-per-bundle 2 --model llama-tiny", "for mixtures of experts; the model has"),
        ("--memory 200KiB", "on the device, 200 KiB are .* or pass --experts-per-bundle 2"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(tmp_path, capsys, options, message):
    assert main(command(tmp_path, tmp_path / "run", *options.split())) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert not (tmp_path / "run").exists()
