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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    text = str(text_file(out))
    stream = "--engine stream --depth 1 --device-memory 560KiB --dtype bfloat16".split()
    for name, more in (("stream", stream), ("lowgrad", ["--optimizer", "lowgrad"])):
        assert main(["train", "--data", text, "--out", str(out / name), *SIZE, *more]) == 0
    return out


@pytest.mark.parametrize("name", ["stream", "lowgrad"])
def test_the_folder_holds_the_weights_of_the_run(runs, tmp_path, name, capsys):
    assert main(["export", str(runs / name), str(tmp_path / "hf"), "--dtype", "float32"]) == 0
    assert "37,024 float32 parameters of generation 3" in capsys.readouterr().out
    _, params = sr.load_hf(tmp_path / "hf")
    expected = newest_weights(str(runs / name)).params
    for path in ("embed_tokens", "norm", "lm_head"):
        np.testing.assert_array_equal(params[path], np.asarray(expected[path], np.float32))
    down = np.asarray(expected["layers"]["mlp"]["down_proj"], np.float32)
    np.testing.assert_array_equal(params["layers"]["mlp"]["down_proj"], down)
    assert main(["export", str(runs / name), str(tmp_path / "hf")]) == 2
    assert "holds" in capsys.readouterr().err


def test_what_has_no_such_form_is_said(tmp_path, capsys):
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "hf")]) == 2
    assert "does not exist" in capsys.readouterr().err
