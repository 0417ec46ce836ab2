"""`springroll pretrain --engine stream`: the run folder of the resident run, byte for byte."""

import json
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.cli.main import main
from springroll.errors import InputError
from springroll.models.egg import EggConfig, egg
from springroll.models.protocols import read_part
from springroll.pretrain.build import build
from springroll.pretrain.streamed import must_stream
from springroll.run.checkpoint import differing_paths
from tests.cli.tiny import config_of, pretrain, start, text_file

GENERATIONS = 4
LAYERS = ("--n-layers", "2")


def newest(run, generation=GENERATIONS):
    return (run / "checkpoints" / f"{generation:09d}.safetensors").read_bytes()


@pytest.mark.slow
def test_a_resident_run_goes_on_streamed_to_the_same_bytes(tmp_path, monkeypatch, capsys):
    """From what a kill left: the checkpoint before the last, a journal with a torn last record."""
    monkeypatch.setattr("springroll.run.session.SAVE_SHARE", 1.0)  # after every generation
    resident, killed = tmp_path / "resident", tmp_path / "killed"
    end = ("--generations", str(GENERATIONS))
    assert main(pretrain(text_file(tmp_path), resident, *LAYERS, *end)) == 0
    shutil.copytree(resident, killed)
    for path in (killed / "checkpoints").glob(f"{GENERATIONS:09d}.*"):
        path.unlink()
    journal = (resident / "journal").read_bytes()
    (killed / "journal").write_bytes(journal[:-5])
    capsys.readouterr()

    on = ["--resume", "--out", str(killed), "--engine", "stream", "--members-per-chunk", "8"]
    assert main(["pretrain", *on]) == 0
    assert f"going on with {killed} at generation {GENERATIONS - 1}" in capsys.readouterr().err
    assert (killed / "journal").read_bytes() == journal
    assert newest(killed) == newest(resident)
    scores = [json.loads((run / "summary.json").read_text()) for run in (killed, resident)]
    one, other = (score["valid_bits_per_byte"] for score in scores)
    assert one == pytest.approx(other, rel=1e-6)


def test_both_begin_with_the_same_state(tmp_path):
    engines = [built(tmp_path, *LAYERS, "--engine", name) for name in ("resident", "stream")]
    assert differing_paths(*(made.task.init() for made in engines)) == []


@pytest.mark.slow
def test_kill_9_leaves_no_trace(tmp_path, capsys):
    text, run = text_file(tmp_path), tmp_path / "run"
    end = (*LAYERS, "--generations", "200", "--engine", "stream")
    process = start(pretrain(text, run, *end))
    give_up = time.monotonic() + 120
    while not (run / "journal").exists() or (run / "journal").stat().st_size < 2000:
        assert process.poll() is None and time.monotonic() < give_up
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (run / "summary.json").exists()
    assert main(["pretrain", "--resume", "--out", str(run)]) == 0
    assert main(pretrain(text, tmp_path / "undisturbed", *end)) == 0
    assert newest(run, 200) == newest(tmp_path / "undisturbed", 200)
    capsys.readouterr()
    assert main(["replay", str(run)]) == 0
    assert "equal to the checkpoint of generation 200, bit for bit" in capsys.readouterr().out


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


def test_stages_of_the_byte_model_make_its_score():
    model = egg(EggConfig(n_layers=2, hidden=8))
    params = model.init(jax.random.key(0))
    tokens = np.array([7, 0, 3, 200, 9], np.uint8)
    state = (model.init(jax.random.key(1))["blocks"]["norm_ffn"]).astype(model.state().dtype)

    def by_parts(params, tokens, state):
        x, states = model.embed(params, read_part(tokens)), []
        for index in range(2):
            layer = jax.tree.map(lambda w, i=index: w[i], params["blocks"])
            x, new = model.block(layer, x, jnp.int32(index), state[index])
            states.append(new)
        return -model.finish(params, x, None, tokens)[0], states

    got, states = jax.jit(by_parts)(params, tokens, state)
    want, new_state = jax.jit(model.score)(params, tokens, state)
    assert got == want
    np.testing.assert_array_equal(np.stack(states), new_state)
