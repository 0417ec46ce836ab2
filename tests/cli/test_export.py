"""`springroll export`: weights of a run as a folder that loads again."""

import numpy as np
import pytest

import springroll as sr
from springroll.cli.main import main
from tests.cli.newest import newest_weights
from tests.cli.tiny import text_file

SIZE = (
    "--batch 4 --sequence 16 --valid-streams 4 --valid-tokens 16 --rank 4 "
    "--refresh-interval 2 --log-every 0 --steps 3 --model llama-tiny"
).split()


@pytest.mark.parametrize(
    "options",
    [
        "--engine stream --depth 1 --device-memory 560KiB --dtype bfloat16",
        "--optimizer lowgrad",
    ],
)
@pytest.mark.slow
def test_the_folder_holds_the_weights_of_the_run(tmp_path, options, capsys):
    text, run = str(text_file(tmp_path)), str(tmp_path / "run")
    assert main(["train", "--data", text, "--out", run, *SIZE, *options.split()]) == 0
    capsys.readouterr()
    assert main(["export", run, str(tmp_path / "hf"), "--dtype", "float32"]) == 0
    assert "37,024 float32 parameters of generation 3" in capsys.readouterr().out
    _, params = sr.load_hf(tmp_path / "hf")
    expected = newest_weights(run).params
    for path in ("embed_tokens", "norm", "lm_head"):
        np.testing.assert_array_equal(params[path], np.asarray(expected[path], np.float32))
    down = np.asarray(expected["layers"]["mlp"]["down_proj"], np.float32)
    np.testing.assert_array_equal(params["layers"]["mlp"]["down_proj"], down)
    assert main(["export", run, str(tmp_path / "hf")]) == 2
    assert "holds" in capsys.readouterr().err


def test_what_has_no_such_form_is_said(tmp_path, capsys):
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "hf")]) == 2
    assert "does not exist" in capsys.readouterr().err
