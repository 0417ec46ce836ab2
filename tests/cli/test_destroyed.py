"""A step that destroys the weights ends every job with exit code 2, and nothing broken is saved."""

import numpy as np
import pytest
from safetensors import safe_open

from springroll.cli.main import main
from tests.cli.test_finetune import command as finetune
from tests.cli.test_finetune import place  # noqa: F401  (a fixture)
from tests.cli.test_train import command as train
from tests.cli.tiny import pretrain, text_file

LR = "1e38"
RL = (
    "rl --env CartPole-v1 --pop-size 8 --width 8 --layers 1 --max-steps 20 --eval-episodes 4 "
    "--generations 3 --no-gif --compute float32 --optimizer adam"
).split()


def all_finite(run):
    for path in (*run.glob("checkpoints/*.safetensors"), *run.glob("best/*.safetensors")):
        with safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118
                array = file.get_tensor(name)
                assert array.dtype.kind in "iub" or np.isfinite(array).all(), (path, name)


def stopped(line, run, capsys):
    code, said = main(line), capsys.readouterr().err
    assert code in (0, 2) and "Traceback" not in said
    all_finite(run)
    return code == 2 and "stopped, the checkpoints" in said.splitlines()[-1]


@pytest.mark.slow
def test_pretrain(tmp_path, capsys):
    out, text = tmp_path / "run", text_file(tmp_path)
    line = pretrain(text, out, "--precision", "float32", "--lr", LR, "--generations", "3")
    assert stopped(line, out, capsys)


def test_train(tmp_path, capsys):
    line = train(str(text_file(tmp_path)), tmp_path / "run", "--lr", LR)
    assert stopped(line, tmp_path / "run", capsys)


@pytest.mark.slow  # `train` ends in the same loop
@pytest.mark.parametrize("more", [(), ("--weights", "int8"), ("--method", "grpo")], ids=str)
def test_finetune(place, tmp_path, capsys, more):  # noqa: F811
    line = finetune(place, tmp_path / "run", "--lr", LR, "--pop-size", "4", *more)
    assert stopped(line, tmp_path / "run", capsys)


@pytest.mark.slow
def test_rl(tmp_path, capsys):
    """Returns say nothing of weights that are far too large, but finite."""
    stopped([*RL, "--out", str(tmp_path / "run"), "--lr", LR], tmp_path / "run", capsys)
