"""`springroll plan` as people call it."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from springroll.cli import main as cli
from springroll.cli.plan import run
from springroll.finetune import asked_plan
from springroll.models.decoder_config import named
from springroll.planner import alternatives as compared
from springroll.planner.footprint import Placement, device_bytes
from springroll.planner.plan import options_of
from springroll.planner.search import step_spec
from springroll.planner.working_set import WorkingSet

SMALL = ["--tokens-per-step", "512", "--sequence", "128"]
# The shape of programs that other tests compile as well.
ONE_ROW = [*SMALL, "--batch", "1"]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "plan", cli.Command("springroll.cli.plan", "a plan"))


def test_tables_of_a_model(capsys):
    assert run(["llama-60m", "--device", "RTX 3080", "--host-memory", "8GB", *ONE_ROW]) == 0
    said = capsys.readouterr().out
    for word in ("llama-60m by adamw on RTX 3080", "working set", "tokens per second", "evolve"):
        assert word in said


def test_json_of_a_model(capsys):
    code = run(["llama-60m", "--device", "600MiB", "--host-memory", "8GB", "--json", *SMALL])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["device_peak"] <= 600 * 2**20 and found["seconds"]["step"] > 0
    assert {way["method"] for way in found["alternatives"]} >= {"adamw", "lowgrad", "evolve"}


def test_without_a_model_what_the_machine_can_train(capsys, monkeypatch):
    few = {name: compared.CONFIGS[name] for name in ("llama-60m", "llama-130m")}
    monkeypatch.setattr(compared, "CONFIGS", few)
    monkeypatch.setattr(compared, "SHAPE", "llama-60m")
    assert run(["--device", "RTX 3080", "--host-memory", "8GB", *ONE_ROW]) == 0
    said = capsys.readouterr().out
    assert "largest named model" in said and "llama-130m (resident)" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["llama-60m", "--device", "RTX 3808"], "did you mean RTX 3080"),
        (["lama-60m", "--device", "H200"], "did you mean llama-60m"),
        (
            ["llama-60m", "--device", "H200", "--host-memory", "much"],
            "expected a number and a unit",
        ),
        (["llama-60m", "--device", "H200", "--tokens-per-step", "1000"], "take 1024"),
        (["llama-60m", "--device", "H200", "--method", "adamm"], "did you mean adamw"),
        (["llama-60m", "--device", "1MiB", "--host-memory", "1MiB", *SMALL], "give more memory"),
        (["llama-60m", "--devise", "H200"], "--device"),
        (["llama-60m", "--device", "1e400GiB"], "device is '1e400GiB'; expected a number and a"),
        (["llama-60m", "extra"], "unexpected argument: extra"),
        (["no/such.gguf"], "no file no/such.gguf; give the path of a GGUF file"),
        (
            ["moe-tiny", "--device", "H200", "--experts-per-bundle", "3"],
            "must divide the 4 experts",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv, said, capsys, monkeypatch):
    monkeypatch.setattr(compared, "CONFIGS", {})
    assert cli.main(["plan", *argv]) == cli.BAD_INPUT
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


def test_experts_pass_a_few_at_a_time():
    config, found = named("moe-1m"), []
    for together in (None, 2):
        options = options_of("1GiB", "1GiB", None, None, experts_per_bundle=together)
        spec = step_spec(config, options, 1, working=WorkingSet(0, 0))
        found.append(device_bytes(spec, Placement("host", 0, 0))["layers passing"])
    assert found[1] < found[0] / 2


def test_help_imports_no_jax():
    program = (
        "import sys\nfrom springroll.cli.plan import run\n"
        "try:\n    run(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'jax' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "--tokens-per-step" in found.stdout


TUNING = ["--method", "finetune", "--pop-size", "8", "--prompts", "2", "--max-tokens", "8"]


def test_a_generation_of_finetune(capsys, monkeypatch):
    asked = lambda config, model, tokens, plan, platform: replace(plan, source=platform)
    monkeypatch.setattr(asked_plan, "traced_plan", asked)
    argv = ["llama-tiny", *TUNING, "--prompt-tokens", "24", "--device", "1GiB"]
    assert run([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["rows"] == found["jobs"] == 16 and found["passes"] == 1
    assert found["weights"] == 2 * named("llama-tiny").parameters
    assert found["programs"] == "gpu" and all(found["seconds"].values())
    assert run(argv) == 0
    said = capsys.readouterr().out
    for word in ("llama-tiny on 1GiB", "keys and values", "16 of 16", "updating weights"):
        assert word in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["lama-tiny", *TUNING], "did you mean llama-tiny"),
        (["./nowhere", *TUNING], "no model './nowhere'"),
        (["llama-tiny", "--method", "finetun"], "did you mean finetune?"),
        (["llama-tiny", *TUNING, "--pop-size", "7"], "members come in pairs"),
        (["llama-tiny", *TUNING, "--sequence", "64"], "--sequence is not of --method finetune"),
        (["llama-tiny", *TUNING, "--prompt-tokens", "20000000"], "16,777,216 at most"),
        (["llama-tiny", *TUNING, "--pop-size", "2000000000"], "on this machine"),
        (["llama-tiny", *TUNING, "--rank", "5000"], "take at most 32, or in Python also roles="),
        (["no/such.gguf", *TUNING], "no file no/such.gguf"),
        (["llama-tiny", "--pop-size", "64"], "--pop-size is of --method finetune only"),
        (["llama-7b", *TUNING, "--device", "1GiB"], "nine tenths are used; take a smaller model"),
        (["llama-7b", *TUNING, "--weights", "float32", "--device", "RTX 4090"], "bfloat16 fits"),
        (["llama-tiny", *TUNING, "--device", "0GiB"], "expected memory above zero"),
        (TUNING, "give the model"),
    ],
)
def test_what_finetune_cannot_be_planned_for_is_one_line(argv, said, capsys):
    assert cli.main(["plan", *argv]) == cli.BAD_INPUT
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1
