"""`springroll train` from the command line: learning, resuming, refusing, and reading its runs."""

import contextlib
import io
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from springroll.cli.main import main
from springroll.cli.sample import written
from springroll.errors import InputError
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS
from springroll.planner.devices import assumed_rates, named_card
from springroll.run.job import SampleOptions
from springroll.subspace.optimizers import OPTIMIZERS
from springroll.train import build
from springroll.train.build import resolved
from springroll.train.config import TrainConfig
from springroll.train.step_memory import Memory
from springroll.train.streamed import rates
from tests.cli.newest import newest_weights
from tests.cli.tiny import files, text_file

STEPS = 6
SIZE = (
    "--batch 4 --sequence 16 --valid-streams 4 --valid-tokens 16 --rank 4 "
    "--refresh-interval 2 --log-every 0 --eval-every 0 --schedule-steps 6"
).split()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return str(text_file(tmp_path_factory.mktemp("text")))


def command(text, out, *more, model="llama-tiny", steps=STEPS):
    base = ["train", "--data", text, "--out", str(out), "--model", model, "--steps", str(steps)]
    return [*base, *SIZE, *more]


def newest(folder, step=STEPS):
    return (folder / "checkpoints" / f"{step:09d}.safetensors").read_bytes()


def validations(folder):
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["valid_bits_per_byte"] for row in rows if "valid_bits_per_byte" in row]


LOW_BITS = [  # other dtypes, states and engines than the default
    "lowgrad --dtype bfloat16 --state-bits 8 --accumulate 2",
    "adamw --dtype bfloat16 --weight-decay 0.1",
    "apollo --dtype bfloat16 --rounding stochastic --state-bits 4 --weight-decay 0.1",
    "apollo-mini --layerwise --dtype bfloat16",
]


@pytest.mark.slow  # the quick one learns and resumes, below
@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, LOW_BITS[3]])
def test_an_optimizer_learns(tmp_path, text, optimizer):
    more = f"--lr 0.03 --optimizer {optimizer}".split()
    assert main(command(text, tmp_path / "run", *more)) == 0
    valid = validations(tmp_path / "run")
    assert valid[-1] < valid[0]


@pytest.mark.parametrize(
    "options",
    [
        LOW_BITS[1],
        *(
            pytest.param(x, marks=pytest.mark.slow)
            for x in [*LOW_BITS, *OPTIMIZERS]
            if x != LOW_BITS[1]
        ),
    ],
)
def test_it_learns_and_resumes_to_the_same_bytes(tmp_path, text, options):
    """Three runs each: the quick ones go through projectors, halves, moments in 8 bits and parts of
    a batch, and every optimizer's state is resumed in the slow ones."""
    more = f"--lr 0.03 --optimizer {options}".split()
    assert main(command(text, tmp_path / "whole", *more)) == 0
    # In the middle of a refresh interval.
    assert main(command(text, tmp_path / "parts", *more, steps=3)) == 0
    assert main(command(text, tmp_path / "parts", "--resume")) == 0
    assert newest(tmp_path / "parts") == newest(tmp_path / "whole")
    valid = validations(tmp_path / "whole")
    assert valid[-1] < valid[0]


def test_what_cannot_fit_is_refused_with_what_could(tmp_path, text, capsys, monkeypatch):
    """Peaks are given here: what compiling says of them is under test where memory is printed."""

    def memory_of(config, learner, placement):
        return Memory(0, 0, 0, 0, 0, (100 if config.remat else 300) << 10)

    monkeypatch.setattr(build, "memory_of", memory_of)
    options = ("--engine", "resident", "--device-memory", "200KiB")
    assert main(command(text, tmp_path / "run", *options)) == 2
    refused = capsys.readouterr().err
    assert "a step needs 300 KiB, 200 KiB are available; --remat needs 100 KiB" in refused
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # compiles every alternative
def test_what_fits_in_no_way_is_refused(tmp_path, text, capsys):
    assert main(command(text, tmp_path / "run", "--device-memory", "200KiB")) == 2
    said = capsys.readouterr().err
    assert "a step needs" in said and "200 KiB are available" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--optimizer adamv", "did you mean adamw?"),
        ("--model llama-2m", "no folder llama-2m is here, and no model named 'llama-2m'"),
        ("--model /gone/model", "model is /gone/model; there is no folder of that name"),
        ("--basis-bits 8", "adamw stores no bases of subspaces; leave out --basis-bits 8"),
        ("--optimizer apollo --basis-bits 4", "apollo stores no bases of subspaces"),
        ("--optimizer lowgrad --weight-decay 0.1", "weight_decay would not act"),
        ("--rank 0", "rank is 0; it must be at least 1"),
        ("--warmup 1", "warmup is 1.0; it must be a share from 0 to below 1"),
        ("--b2 1", "b2 is 1.0; it must be from 0 to below 1"),
        ("--batch 3 --devices 2", "batch is 3; it must divide evenly over 2 devices"),
        ("--devices 99", "devices is 99; this process has"),
        ("--fsdp --devices 2 --engine stream", "fsdp is of resident training"),
        ("--fsdp --devices 2 --optimizer lowgrad", "lowgrad has neither"),
        (
            "--device-memory much",
            "device_memory is 'much'; expected a number and a unit, such as 24GiB",
        ),
    ],
)
def test_bad_options_are_one_line_and_leave_no_folder(tmp_path, text, capsys, options, message):
    assert main(command(text, tmp_path / "run", *options.split())) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def shown():
    """What the run of this module printed, by stream."""
    return {"out": io.StringIO(), "err": io.StringIO()}


@pytest.fixture(scope="module")
def run(tmp_path_factory, text, shown):
    out = tmp_path_factory.mktemp("read") / "run"
    streams = contextlib.redirect_stdout(shown["out"]), contextlib.redirect_stderr(shown["err"])
    with streams[0], streams[1]:
        assert main(command(text, out, model="moe-tiny")) == 0
    return str(out)


def test_it_prints_the_memory_of_a_step_and_the_result(run, shown):
    for word in ("weights", "gradients", "state", "activations", "peak", "adamw"):
        assert word in shown["err"].getvalue()
    out = shown["out"].getvalue()
    assert "bits/byte" in out and "springroll sample" in out
    assert (Path(run) / "curve.png").stat().st_size > 0


def test_a_run_cannot_go_on_as_another(run, capsys):
    out = Path(run)
    before = files(out)
    for options, message in {
        "--rank 5": "rank is 5, but the run to resume has 4",
        "--optimizer muon": "optimizer is 'muon', but the run to resume has 'adamw'",
    }.items():
        assert main(["train", "--resume", "--out", str(out), *options.split()]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    assert main(["pretrain", "--resume", "--out", str(out)]) == 2
    assert "is a run of springroll train" in capsys.readouterr().err
    assert files(out) == before


def test_a_loss_that_is_nan_stops_after_ten_steps_and_names_the_checkpoint(tmp_path, text, capsys):
    out = tmp_path / "run"
    assert main(command(text, out, "--lr", "1e30", "--clip", "None", steps=40)) == 2
    said = capsys.readouterr().err
    assert "the loss is NaN or infinite for 10 steps in a row" in said
    assert "checkpoints" in said and "try a smaller learning rate" in said


@pytest.mark.parametrize(
    "split",
    ["--batch 4 --accumulate 2 --devices 4", "--batch 2 --accumulate 4"],
)
@pytest.mark.slow
def test_micro_batches_over_devices_give_the_same_weights(tmp_path, text, split):
    weights = []
    for name, options in (("whole", "--batch 8"), ("split", split)):
        assert main(command(text, tmp_path / name, *options.split())) == 0
        weights.append(newest_weights(str(tmp_path / name)).params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *weights)


@pytest.mark.parametrize(
    "options",
    ["adamw --accumulate 2", "muon --layerwise", "galore --state-bits 8"],
)
@pytest.mark.slow
def test_a_model_divided_over_devices_goes_on_where_one_device_stopped(
    tmp_path, text, options, capsys
):
    options = f"--optimizer {options} --engine resident".split()
    assert main(command(text, tmp_path / "whole", *options)) == 0
    assert main(command(text, tmp_path / "parts", *options, steps=2)) == 0
    for steps, devices in ((3, ["4", "--fsdp"]), (4, ["2"]), (STEPS, ["1"])):
        more = ["--resume", "--steps", str(steps), "--devices", *devices]
        assert main(["train", "--out", str(tmp_path / "parts"), *more]) == 0
    one, two = (newest_weights(str(tmp_path / name)).params for name in ("whole", "parts"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one, two)
    assert "fsdp divides nothing" in capsys.readouterr().err


def test_eval_agrees_with_the_validation_of_the_run(run, capsys):
    assert main(["eval", run, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    with open(f"{run}/summary.json") as file:
        summary = json.load(file)
    assert figures["bits_per_byte"] == pytest.approx(summary["valid_bits_per_byte"], rel=1e-5)


def test_sample_writes_what_the_model_finds_likeliest(run, capsys):
    found = newest_weights(run)
    text, _ = written(SampleOptions(run=run, prompt="def ", length=20, temperature=0.0))
    apply = jax.jit(decoder(CONFIGS["moe-tiny"]).apply)
    likeliest = list(b"\0def ")
    for _ in range(20):
        window = likeliest[-found.config.sequence :]
        rows = np.zeros((1, found.config.sequence), np.int32)
        rows[0, : len(window)] = window
        likeliest.append(int(np.argmax(apply(found.params, rows)[0, len(window) - 1])))
    assert text == bytes(likeliest[1:])
    assert main(["sample", run, "--length", "8"]) == 0


def test_replay_says_that_losses_are_no_weights(run, capsys):
    assert main(["replay", run]) == 2
    assert "was trained by gradients" in capsys.readouterr().err


def test_explain_reads_a_run_and_a_model_by_name(run, capsys):
    for target in (run, "llama-tiny"):
        assert main(["explain", target]) == 0
        assert "q_proj" in capsys.readouterr().out


def test_the_schedule_is_that_of_the_steps_the_run_began_with():
    assert resolved(TrainConfig(generations=50)).schedule_steps == 50
    assert resolved(TrainConfig(generations=50, schedule_steps=9)).schedule_steps == 9
    assert resolved(TrainConfig(seconds=3.0)).schedule_steps is None


def test_the_card_that_places_layers_is_decided_when_a_run_begins(monkeypatch):
    assert resolved(TrainConfig(engine="stream")).card is None  # on a CPU, as ever
    monkeypatch.setattr(build, "card_at_hand", lambda: named_card("RTX 4090"))
    assert resolved(TrainConfig()).card == "RTX 4090"
    assert resolved(TrainConfig(card="H200")).card == "H200"
    assert resolved(TrainConfig(engine="resident")).card is None
    with pytest.raises(InputError, match="did you mean RTX 4090"):
        resolved(TrainConfig(card="RTX 4091"))
    here, there = (rates(TrainConfig(card=card)) for card in (None, "RTX 4090"))
    assert here == assumed_rates(named_card("H100"))  # as runs of earlier versions
    assert there == assumed_rates(named_card("RTX 4090"), dtype=TrainConfig().dtype)


def test_a_pretrained_model_is_trained_at_a_smaller_rate_unless_told(hf_folder):
    assert resolved(TrainConfig()).lr is None
    assert resolved(TrainConfig(model=str(hf_folder))).lr == 2.5e-3 / 25
    assert resolved(TrainConfig(model=str(hf_folder), lr=0.5)).lr == 0.5


def test_rows_that_a_pretrained_model_does_not_read_whole_are_refused(hf_folder):
    about = json.loads((hf_folder / "config.json").read_text())
    (hf_folder / "config.json").write_text(json.dumps(about | {"max_position_embeddings": 64}))
    resolved(TrainConfig(model=str(hf_folder), sequence=64))
    with pytest.raises(InputError, match=r"sequence is 65; .* reads 64 tokens at most"):
        resolved(TrainConfig(model=str(hf_folder), sequence=65))


@pytest.fixture
def hf_folder(tmp_path):
    """A model as transformers writes it, with a tokenizer of single characters."""
    import tokenizers
    from safetensors.numpy import save_file

    from springroll.models.hf.decoder import checkpoint_names, hf_config

    values = {
        "model_type": "qwen3",
        "vocab_size": 130,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
        "intermediate_size": 24,
        "initializer_range": 0.1,
    }
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({chr(i): i for i in range(1, 129)} | {"?": 129}, unk_token="?")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    made.save(str(folder / "tokenizer.json"))
    tensors = {}
    params = decoder(hf_config(values)).init(jax.random.key(1))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        spelt = jax.tree_util.keystr(path, simple=True, separator="/")
        for index, name in checkpoint_names(spelt, leaf.shape):
            tensors[name] = np.asarray(leaf[index])
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        "",
        pytest.param("--optimizer lowgrad", marks=pytest.mark.slow),
        pytest.param("--engine stream --depth 1", marks=pytest.mark.slow),
    ],
)
def test_a_hugging_face_folder_goes_on_learning(tmp_path, text, hf_folder, options, capsys):
    out = tmp_path / "run"
    more = [*options.split(), "--lr", "0.03"]
    assert main(command(text, out, *more, model=str(hf_folder))) == 0
    valid = validations(out)
    assert valid[0] == pytest.approx(np.log2(130), abs=0.5) and valid[-1] < valid[0]
    capsys.readouterr()
    assert main(["sample", str(out), "--prompt", "a", "--length", "4"]) == 0
    assert capsys.readouterr().out.startswith("a")
    assert main(["eval", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["bits_per_byte"]
    assert found == pytest.approx(valid[-1], rel=1e-4)
    assert main(["export", str(out), str(tmp_path / "further")]) == 0
    same = (hf_folder / "tokenizer.json").read_bytes()
    assert (tmp_path / "further" / "tokenizer.json").read_bytes() == same


@pytest.mark.parametrize("engine", ["resident", "stream"])
def test_a_folder_cut_short_is_refused_before_anything_is_made(
    tmp_path, text, hf_folder, engine, capsys
):
    shard = hf_folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert main(command(text, tmp_path / "run", "--engine", engine, model=str(hf_folder))) == 2
    assert "model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read .*config.json: No such file"),
        ('{"model_type": "llama", ', "config.json is not JSON"),
        ("{}", "config.json: model_type is None; known are"),
    ],
)
def test_a_folder_without_a_model_is_refused(tmp_path, text, capsys, content, says):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert main(command(text, tmp_path / "run", model=str(tmp_path))) == 2
    assert re.search(says, capsys.readouterr().err)
