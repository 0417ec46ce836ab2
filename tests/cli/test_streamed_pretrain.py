"""`springroll pretrain --engine stream`: the run folder of the resident run, byte for byte."""

import json

import jax
import numpy as np
import pytest
from tiny import pretrain, text_file

from springroll.cli.main import main
from springroll.cli.pretrain import config_of
from springroll.errors import InputError
from springroll.models.egg import EggConfig, EggStages, egg
from springroll.stream.link import Link
from springroll.train.pretrain import build
from springroll.train.streamed_pretrain import must_stream

GENERATIONS, BREAK = 6, 4
END = ("--n-layers", "2", "--generations", str(GENERATIONS))
NEWEST = f"checkpoints/{GENERATIONS:09d}.safetensors"


class Death(BaseException):
    """Nothing that a program could answer to."""


def test_the_folder_is_that_of_the_resident_run_even_after_a_crash(tmp_path, monkeypatch, capsys):
    """It dies between the two layers of a generation, one of which has taken its step."""
    text = text_file(tmp_path)
    died, resident = tmp_path / "died", tmp_path / "resident"
    fetch, steps = Link.fetch, []

    def dying(link, tree):
        steps.append(tree)
        if len(steps) > 2 * BREAK:
            raise Death
        return fetch(link, tree)

    monkeypatch.setattr(Link, "fetch", dying)
    with pytest.raises(Death):
        main(pretrain(text, died, *END, "--engine", "stream"))
    monkeypatch.undo()
    assert not (died / "summary.json").exists()

    assert main(["pretrain", "--resume", "--out", str(died), "--members-per-chunk", "8"]) == 0
    said = capsys.readouterr().err
    assert f"going on with {died}" in said and "not the journal's" not in said
    assert main(pretrain(text, resident, *END)) == 0
    for name in ("journal", NEWEST):
        assert (died / name).read_bytes() == (resident / name).read_bytes()
    scores = [json.loads((run / "summary.json").read_text()) for run in (died, resident)]
    one, other = (score["valid_bits_per_byte"] for score in scores)
    assert one == pytest.approx(other, rel=1e-6)


def built(tmp_path, *options):
    return build(config_of(pretrain(text_file(tmp_path), tmp_path / "run", *options)[1:]))


def test_what_does_not_fit_the_device_streams(tmp_path):
    model = egg(EggConfig(n_layers=1, hidden=8))
    params = jax.eval_shape(model.init, jax.random.key(0))
    strategy = built(tmp_path, "--engine", "resident").strategy
    needed = 5 * 4904 + 12  # weights, votes and residuals of the integer rule; seed, generation
    for memory, streams in ((needed, False), (needed - 1, True)):
        config = config_of(["--device-memory", f"{memory}B"])
        assert must_stream(config, strategy, params) is streams
    assert not must_stream(config_of([]), strategy, params)
    with pytest.raises(InputError, match=r"weights and state take .* or --engine stream"):
        must_stream(
            config_of(["--engine", "resident", "--device-memory", "1KiB"]), strategy, params
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--engine steam", "--engine is 'steam'; expected one of auto, resident, stream"),
        ("--engine stream --devices 2", "devices is 2; --engine stream runs on one device"),
        ("--device-memory 2", "device_memory is '2'; expected a number and a unit"),
        ("--engine stream --precision compat", "cannot evolve layer by layer: the published noise"),
        ("--engine stream --device-memory 1KiB", "device_budget is 1 KiB; a layer of"),
    ],
)
def test_what_cannot_be_streamed(tmp_path, capsys, options, message):
    text = text_file(tmp_path)
    assert main(pretrain(text, tmp_path / "run", *options.split())) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_stages_of_the_byte_model_make_its_score(precision):
    model = egg(EggConfig(n_layers=2, hidden=8, precision=precision))
    stages, params = EggStages(model.config), model.init(jax.random.key(0))
    tokens = np.array([7, 0, 3, 200, 9], np.uint8)
    state = (model.init(jax.random.key(1))["blocks"]["norm_ffn"]).astype(model.state().dtype)

    def by_parts(params, tokens, state):
        x, states = stages.embed(params, tokens), []
        for index in range(2):
            layer = jax.tree.map(lambda w, i=index: w[i], params["blocks"])
            x, new = stages.block(layer, x, state[index], index)
            states.append(new)
        return stages.score(params, x, tokens), states

    got, states = jax.jit(by_parts)(params, tokens, state)
    want, new_state = jax.jit(model.score)(params, tokens, state)
    np.testing.assert_allclose(got, want, rtol=0 if precision == "int8" else 1e-6)
    np.testing.assert_allclose(np.stack(states), new_state, rtol=1e-6)
