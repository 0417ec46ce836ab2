"""`springroll train --engine stream --experts-per-bundle`: what is built, and what it refuses."""

import json
import re

import jax
import numpy as np
import pytest

from springroll.cli.main import main
from springroll.models.decoder import decoder
from springroll.models.decoder_config import named
from springroll.planner.footprint import Placement, StepSpec, device_bytes, host_bytes
from springroll.planner.methods import method_bytes
from springroll.planner.working_set import WorkingSet
from springroll.train.config import TrainConfig
from springroll.train.streamed import float32_shapes, streamed
from tests.cli.newest import newest_weights
from tests.cli.tiny import text_file

SIZE = (
    "--steps 2 --batch 4 --sequence 16 --valid-streams 4 --valid-tokens 16 --log-every 0 "
    "--eval-every 0 --schedule-steps 2 --lr 0.03 --engine stream --depth 1 --device-memory 560KiB"
).split()


def command(tmp_path, out, *more, model="moe-tiny"):
    text = text_file(tmp_path)
    return ["train", "--data", str(text), "--out", str(out), "--model", model, *SIZE, *more]


@pytest.mark.slow
def test_a_run_ends_with_the_weights_of_the_model(tmp_path, capsys):
    once = command(tmp_path, tmp_path / "run", "--experts-per-bundle", "2")
    assert main(once) == 0
    assert "layers passing" in capsys.readouterr().err
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["experts_per_bundle"] == 2
    params = newest_weights(str(tmp_path / "run")).params
    assert params["layers"]["mlp"]["experts"]["gate_proj"].shape[:2] == (2, 4)
    assert np.isfinite(params["lm_head"]).all()
    assert main(["eval", str(tmp_path / "run"), "--data", str(text_file(tmp_path))]) == 0


def test_layers_that_stay_stay_with_all_their_bundles():
    config = TrainConfig(model="moe-tiny", experts_per_bundle=2, engine="stream")
    model = decoder(named("moe-tiny"))
    trainer = streamed(config, model, Placement("device", 1, 1), 2)
    assert trainer.store.bundles == 2 * 3 + 1
    assert [trainer.store.resident(i) for i in range(7)] == [False] * 3 + [True] * 3 + [False]
    assert trainer.engine.kept_inputs == 3
    params = trainer.state().params
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(
        lambda x: x.shape, float32_shapes(model)
    )


@pytest.mark.parametrize("mode", ["host", "device"])
def test_a_window_of_experts_is_what_the_figures_say(mode):
    config = named("gpt-oss-120b")
    spec = lambda few: StepSpec(
        config=config,
        method=method_bytes(config, "adamw"),
        tokens=16384,
        rows=2,
        sequence=2048,
        working=WorkingSet(0, 0),
        experts_per_bundle=few,
    )
    whole, few = spec(None), spec(16)
    assert (whole.bundles, few.bundles) == (1, 9)
    experts = 16 * (3 * 2880 * 2880 + 3 * 2880)  # three matrices and three biases each
    assert few.bundle == experts and whole.bundle == whole.layer > 8 * experts
    of_number = {"host": 2, "device": 12}[mode]  # weights, or the other half and moments as well
    place = Placement(mode, 0, 0)
    found = device_bytes(few, place)
    counters = found["layers passing"] - 3 * of_number * experts
    assert 0 <= counters <= 3 * 8  # the optimizer also counts its steps
    # At the peak, in the backward pass: the gradient of a bundle, twice if one is on its way to the
    # host. Those of head and embedding are elsewhere then.
    copies = {"host": 2, "device": 1}[mode]
    assert device_bytes(whole, place)["gradients"] == 4 * copies * whole.layer
    assert found["gradients"] == 4 * copies * experts
    assert found["embedding and head"] == 0
    kept = host_bytes(few, place)
    assert kept["layer inputs"] == 36 * 16384 * (2 * 2880 * 2 + 128 * 4)
    assert kept["weights"] == host_bytes(whole, place)["weights"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--experts-per-bundle 3", "is 3; it must divide the 4 experts; take 2"),
        ("--experts-per-bundle 0", "experts_per_bundle is 0; it must be at least 1"),
        ("--experts-per-bundle 2 --optimizer lowgrad", "lowgrad streams whole layers; leave out"),
        ("--experts-per-bundle 2 --model llama-tiny", "for mixtures of experts; the model has"),
        ("--device-memory 200KiB", "on the device, 200 KiB are .* or pass --experts-per-bundle 2"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(tmp_path, capsys, options, message):
    assert main(command(tmp_path, tmp_path / "run", *options.split())) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert not (tmp_path / "run").exists()
