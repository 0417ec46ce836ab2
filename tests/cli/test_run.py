"""One tiny run, trained through the command, and every command that reads runs."""

import hashlib
import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from springroll.cli.main import main
from springroll.cli.sample import printable
from springroll.generate.byte_model import written
from springroll.models.egg import EggConfig, egg
from springroll.pretrain import JOB
from springroll.pretrain.config import PretrainConfig
from springroll.pretrain.trained import byte_model
from springroll.run.config import from_json, stored_id
from springroll.run.job import SampleOptions
from springroll.run.sidecar import read_sidecar, write_sidecar
from tests.cli.newest import newest_weights
from tests.cli.tiny import files, pretrain, text_file

GENERATIONS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `text.py` and the run `run`, which nothing changes."""
    place = tmp_path_factory.mktemp("cli")
    text_file(place)
    arguments = pretrain(place / "text.py", place / "run", "--generations", str(GENERATIONS))
    assert main(arguments) == 0
    return place


@pytest.fixture
def run(place):
    """The path of the run; fails the test if it is not as before afterwards."""
    before = files(place / "run")
    yield str(place / "run")
    assert files(place / "run") == before


@pytest.fixture
def copy(place, tmp_path):
    """A copy of the run, to change."""
    shutil.copytree(place / "run", tmp_path / "copy")
    return tmp_path / "copy"


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_pretrain_writes_the_run_folder(place):
    there = {path.name for path in (place / "run").iterdir()}
    assert there == {
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "journal",
        "checkpoints",
        "curve.png",
        "summary.json",
    }
    names = (
        "train_bits_per_byte valid_bits_per_byte unigram_bits_per_byte bigram_bits_per_byte "
        "tokens_per_second peak_memory_bytes seconds generations"
    ).split()
    found = summary(place / "run")
    assert all(isinstance(found[name], int | float) for name in names)
    assert found["generations"] == GENERATIONS
    assert (place / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_config_is_written_resolved(place):
    stored = json.loads((place / "run" / "config.json").read_text())["config"]
    config = from_json(PretrainConfig, stored)
    assert (config.hidden, config.pop_size, config.generations) == (8, 16, GENERATIONS)
    assert config.out == str(place / "run")


def test_a_folder_that_holds_a_run_is_left_alone(capsys, place, run):
    assert main(pretrain(place / "text.py", place / "run", "--generations", "9")) == 2
    said = capsys.readouterr().err
    assert f"{run} already holds a run; continue it with --resume" in said
    assert said.count("\n") == 1


def test_resuming_goes_on_and_equals_one_long_run(capsys, place, copy):
    more = ["--resume", "--generations", "6"]
    assert main(["pretrain", "--out", str(copy), *more]) == 0
    output = capsys.readouterr()
    assert "going on with" in output.err
    assert main(pretrain(place / "text.py", place / "long", "--generations", "6")) == 0
    for name in ("journal", "checkpoints/000000006.safetensors"):
        assert (copy / name).read_bytes() == (place / "long" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--hidden 16", "hidden is 16, but the run to resume has 8"),
        ("--seed 3", "seed is 3, but the run to resume has 0"),
        ("--precision float32", "precision is 'float32', but the run to resume has 'int8'"),
    ],
)
def test_resuming_as_another_run(capsys, run, options, message):
    assert main(["pretrain", "--resume", "--out", run, *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_resuming_what_is_not_there(capsys, tmp_path):
    assert main(["pretrain", "--resume", "--out", str(tmp_path / "none")]) == 2
    assert "does not exist; start a run by leaving out --resume" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_resuming_when_the_text_has_changed(capsys, place, copy):
    text = (place / "text.py").read_text()
    before = files(copy)
    try:
        (place / "text.py").write_text(text + "# more\n")
        assert main(["pretrain", "--resume", "--out", str(copy), "--generations", "9"]) == 2
        assert "the corpus is" in capsys.readouterr().err
        assert files(copy) == before
        assert main(["eval", str(copy)]) == 0
        assert "has changed since the run began" in capsys.readouterr().err
    finally:
        (place / "text.py").write_text(text)


def change(run, **options):
    """Edit options in config.json."""
    stored = json.loads((run / "config.json").read_text())
    stored["config"] |= options
    (run / "config.json").write_text(json.dumps(stored))
    return stored


@pytest.mark.parametrize(
    "options", [{"sigma": 0.5}, {"seed": 1}, {"hidden": 16}, {"data": "another"}]
)
def test_an_edited_config_touches_nothing(capsys, copy, options):
    change(copy, **options)
    before = files(copy)
    resume = ["pretrain", "--resume", "--out", str(copy), "--generations", "9"]
    for command in (resume, ["eval", str(copy)], ["replay", str(copy)]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "config.json was changed after the run began" in said and said.count("\n") == 1
    assert files(copy) == before


def test_a_budget_may_be_edited(copy):
    change(copy, generations=5)
    assert main(["pretrain", "--resume", "--out", str(copy)]) == 0
    assert summary(copy)["generations"] == 5


def test_a_checkpoint_of_another_architecture(capsys, copy):
    stored = change(copy, hidden=16)
    stored["options_id"] = stored_id(PretrainConfig, stored["config"])
    (copy / "config.json").write_text(json.dumps(stored))
    before = files(copy)
    for command in (["eval"], ["sample"], ["replay"]):
        assert main([*command, str(copy)]) == 2
        said = capsys.readouterr().err
        assert "is of another model" in said and "int8[1,8] there and int8[1,16] here" in said
    assert files(copy) == before


def test_a_damaged_checkpoint_gives_way_to_the_one_before(capsys, copy):
    sidecars = sorted((copy / "checkpoints").glob("*.json"))
    newest = sidecars[-1].with_suffix(".safetensors")
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    code = main(["eval", "--json", str(copy)])
    output = capsys.readouterr()
    assert "its checksum does not hold; falling back" in output.err
    if len(sidecars) > 1:
        assert code == 0 and json.loads(output.out)["generation"] == int(sidecars[-2].stem)
    else:
        assert code == 2 and "no checkpoint that can be read" in output.err


def test_eval_prints_the_summary_again(capsys, place, run):
    assert main(["eval", run, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = summary(place / "run")
    assert found["bits_per_byte"] == pytest.approx(expected["valid_bits_per_byte"], abs=1e-5)
    for line in ("unigram", "bigram", "gzip"):
        assert found[f"{line}_bits_per_byte"] == expected[f"{line}_bits_per_byte"]
    assert (found["generation"], found["bytes"]) == (GENERATIONS, 64)


def test_eval_as_a_table_and_as_a_file(capsys, run, tmp_path):
    out = tmp_path / "eval.json"
    assert main(["eval", run, "--streams", "1", "--tokens", "8", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    shown = capsys.readouterr().out
    assert found["bytes"] == 8
    for name in ("bits_per_byte", "unigram_bits_per_byte", "gzip_bits_per_byte"):
        assert f"{found[name]:.4f}" in shown


def test_eval_of_another_text(capsys, run, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    assert main(["eval", run, "--data", str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"] == str(other)
    assert 0 < found["bigram_bits_per_byte"] < found["unigram_bits_per_byte"] < 5
    assert main(["eval", run, "--data", str(tmp_path / "none")]) == 2
    assert "no corpus" in capsys.readouterr().err


def model_of(config):
    """The model, made without the commands' own way of making it."""
    return egg(EggConfig(n_layers=config.n_layers, hidden=config.hidden, precision="int8"))


def test_eval_bits_are_those_of_the_model_byte_by_byte(run):
    """Against one byte at a time, with the state carried by hand."""
    found = newest_weights(run)
    model = model_of(found.config)
    apply = jax.jit(model.apply)
    sample = np.frombuffer(b"\0def f(x):\n" * 2, np.uint8).reshape(2, -1)
    lengths = []
    for row in sample:
        state = model.state()
        for byte, target in itertools.pairwise(row):
            logits, state = apply(found.params, np.array([byte]), state)
            logits = np.asarray(logits[0], np.float64)
            lengths.append((np.log(np.exp(logits).sum()) - logits[target]) / np.log(2))
    bits = byte_model(found.config).bits(found.params, sample)
    assert bits == pytest.approx(np.mean(lengths), 1e-5)


def test_sample_repeats_by_seed_and_begins_with_the_prompt(capsys, run, tmp_path):
    def sampled(name, *more):
        out = tmp_path / name
        arguments = ["sample", run, "--length", "40", "--out", str(out), "--prompt", "def f"]
        assert main([*arguments, *more]) == 0
        assert capsys.readouterr().out == printable(out.read_bytes()) + "\n"
        return out.read_bytes()

    first, again, other = sampled("a"), sampled("b"), sampled("c", "--seed", "5")
    assert first == again != other
    assert len(first) == 45 and first.startswith(b"def f")


def test_sample_at_temperature_zero_is_the_likeliest_byte(run, tmp_path):
    found = newest_weights(run)
    options = SampleOptions(run=run, prompt="de", length=6, temperature=0.0, seed=1)
    text = written(byte_model(found.config), found.params, options)[2:]
    model = model_of(found.config)
    apply = jax.jit(model.apply)
    state, expected, byte = model.state(), [], 0
    for step in range(3 + 6):
        logits, state = apply(found.params, np.array([byte], np.uint8), state)
        byte = b"de"[step] if step < 2 else int(np.argmax(logits[0]))
        expected += [byte] if step >= 2 else []
    assert text == bytes(expected[:6])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--length 0", "length is 0; it must be at least 1"),
        ("--temperature -1", "temperature is -1.0; it must be 0 or more"),
        ("--seed -1", "seed is -1; it must be between 0 and 2^63 - 1"),
        ("--promt x", "unknown option --promt; did you mean --prompt?"),
    ],
)
def test_sample_bad_input(capsys, run, options, message):
    assert main(["sample", run, *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_printable_text_cannot_command_the_terminal():
    assert printable(b"a\tb\n\0\x1b[2Jc\x07\xff\x9b") == "a\tb\n\n\n\ufffd[2Jc\ufffd\ufffd\ufffd"
    assert printable("é→".encode()) == "é→"


def test_replay_equals_the_checkpoint(capsys, run, tmp_path):
    out = tmp_path / "weights.safetensors"
    assert main(["replay", run, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"equal to the checkpoint of generation {GENERATIONS}, bit for bit" in said
    rebuilt = load_file(out)
    saved = load_file(f"{run}/checkpoints/{GENERATIONS:09d}.safetensors")
    assert len(rebuilt) == 13
    for name, array in rebuilt.items():
        assert array.tobytes() == saved[f"state/params/{name}"].tobytes()


def test_replay_part_of_the_way_and_never_over_a_file(capsys, run, tmp_path):
    assert main(["replay", run, "--to-generation", "1"]) == 0
    assert "up to generation 1 from its journal" in capsys.readouterr().out
    assert main(["replay", run, "--generations", "99"]) == 2
    assert f"generations is 99; the journal holds {GENERATIONS}" in capsys.readouterr().err
    there = tmp_path / "precious"
    there.write_text("mine")
    assert main(["replay", run, "--out", str(there)]) == 2
    assert "exists already; give another --out" in capsys.readouterr().err
    assert there.read_text() == "mine"


def test_replay_says_what_differs(capsys, copy):
    newest = sorted((copy / "checkpoints").glob("*.json"))[-1]
    tensors = newest.with_suffix(".safetensors")
    content = bytearray(tensors.read_bytes())
    header = int.from_bytes(content[:8], "little")
    where = json.loads(content[8 : 8 + header])["state/params/embed"]["data_offsets"][0]
    content[8 + header + where] ^= 1
    tensors.write_bytes(content)
    about = read_sidecar(newest)
    digest = hashlib.sha256(content).hexdigest()
    write_sidecar(newest, digest=digest, size=about["bytes"], meta=about["meta"])
    assert main(["replay", str(copy)]) == 1
    said = capsys.readouterr().out
    assert f"NOT equal to the checkpoint of generation {GENERATIONS}:\n  params/embed" in said


def test_replay_with_a_torn_journal(capsys, copy):
    journal = copy / "journal"
    journal.write_bytes(journal.read_bytes()[:-3])
    for sidecar in (copy / "checkpoints").glob(f"{GENERATIONS:09d}.*"):
        sidecar.unlink()
    assert main(["replay", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "the last journal record was torn" in said
    assert f"up to generation {GENERATIONS - 1}" in said


@pytest.mark.parametrize("command", ["eval", "sample", "replay"])
def test_no_such_run(capsys, tmp_path, command):
    assert main([command, str(tmp_path / "none")]) == 2
    assert "none does not exist; give the folder of a run" in capsys.readouterr().err
    assert main([command, str(tmp_path)]) == 2
    assert "holds no run (no config.json)" in capsys.readouterr().err


def test_a_run_that_was_killed_before_its_first_checkpoint(capsys, copy):
    shutil.rmtree(copy / "checkpoints")
    assert main(["sample", str(copy)]) == 2
    assert "has no checkpoint that can be read; go on with" in capsys.readouterr().err


def test_explain_a_run(capsys, run):
    assert main(["explain", run]) == 0
    shown = capsys.readouterr().out
    assert "blocks/w_f" in shown and "low-rank" in shown and "13 parameters" in shown


def test_the_report_after_training():
    figures = {
        "valid_bits_per_byte": 4.0,
        "unigram_bits_per_byte": 4.5,
        "bigram_bits_per_byte": 3.5,
        "tokens_per_second": 690e3,
        "seconds": 85.0,
        "generations": 4000,
        "peak_memory_bytes": 3 << 28,
    }
    shown = "\n".join(" ".join(row) for row in JOB.report("runs/demo", figures))
    assert "4.500 bits/byte, beaten by 0.500" in shown
    assert "3.500 bits/byte, 0.500 to go" in shown
    assert "690k tokens/s" in shown and "1:25, 4,000 generations" in shown
    assert "springroll sample runs/demo" in shown
