"""`springroll finetune` from the command line: learning, resuming, replaying, refusing."""

import contextlib
import io
import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import springroll as sr
from springroll.cli.job import config_of
from springroll.cli.jobs import job_of
from springroll.cli.main import main
from springroll.errors import InputError
from springroll.finetune import setup
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.evolution import roles_of, still, usual_sigma, with_sigma
from springroll.finetune.setup import prepare
from springroll.generate.prompts import common_tokens
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS
from springroll.run.config import stored_id
from springroll.run.job import run_job
from springroll.safetensors_map import mapped
from springroll.tasks.task_line import task_of_line
from springroll.tasks.verdicts import UNSCORED
from springroll.tokens.byte_tokenizer import write_byte_tokenizer
from springroll.trees import named_leaves
from tests.cli.tiny import files

GENERATIONS = 4
OLD_RUN = Path(__file__).parents[1] / "golden" / "old_runs" / "train"
REWARDS = """
def near_d(texts):
    return [1 - sum(abs(min(ord(c), 255) - 100) for c in text) / 620 for text in texts]

def broken(texts):
    return [float("nan")] * len(texts)

def flaky(completions, prompt, **kwargs):
    wrong = [None, "3", float("nan"), [], {}, 10**400]
    right = near_d(completions)
    if len(completions) == 1 and fails(completions[0]) and len(completions[0]) % 2:
        raise OSError("the judge is away")
    return [wrong[len(c) % 6] if fails(c) else r for c, r in zip(completions, right, strict=True)]

def fails(text):
    return sum(map(ord, text)) % 20 == 7
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A random model of bytes, prompts, and a reward for letters close to d."""
    folder = tmp_path_factory.mktemp("finetune")
    model = decoder(CONFIGS["llama-tiny"])
    sr.save_hf(folder / "model", model, model.init(jax.random.key(0)))
    write_byte_tokenizer(folder / "model")
    (folder / "rewards.py").write_text(REWARDS)
    records = [json.dumps({"prompt": f"say {i}: "}) for i in range(40)]
    (folder / "prompts.jsonl").write_text("\n".join(records))
    return folder


def command(place, out, *more, reward="near_d", generations=GENERATIONS):
    return [
        *("finetune", "--model", str(place / "model"), "--out", str(out)),
        *("--task", f"{place / 'rewards.py'}:{reward} style=plain"),
        *("--data", str(place / "prompts.jsonl"), "--prompts", "3", "--max-tokens", "4"),
        *("--eval-problems", "4", "--generations", str(generations)),
        *("--log-every", "0", "--eval-every", "0", *more),
    ]


def newest(folder, generation=GENERATIONS):
    return (folder / "checkpoints" / f"{generation:09d}.safetensors").read_bytes()


def figures(folder, name):
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


ES = "--pop-size 32 --sigma 0.02 --lr 0.2 --max-step-ratio 0.1"


SAMPLED = f"{ES} --temperature 0.5 --answers 2 --rows 20 --state-bits 8 --weights bfloat16"


@pytest.mark.parametrize(
    "options",
    [
        f"{ES} --noise-reuse 2 --anchor 0.01 --unperturbed 3 --sigma-half-life 9",
        pytest.param(SAMPLED, marks=pytest.mark.slow),
        pytest.param(
            "--method grpo --pop-size 8 --lr 3e-3 --epochs 2 --kl 0.01", marks=pytest.mark.slow
        ),
    ],
)
def test_it_learns_and_resumes_to_the_same_bytes(tmp_path, place, options):
    more = options.split()
    assert main(command(place, tmp_path / "whole", *more)) == 0
    assert main(command(place, tmp_path / "parts", *more, generations=2)) == 0
    assert main(command(place, tmp_path / "parts", "--resume")) == 0
    assert newest(tmp_path / "parts") == newest(tmp_path / "whole")
    written = [(tmp_path / run / "answers.jsonl").read_bytes() for run in ("parts", "whole")]
    assert written[0] == written[1]
    reward = figures(tmp_path / "whole", "train_reward")
    assert max(reward[1:]) > reward[0]
    assert len(figures(tmp_path / "whole", "valid_accuracy")) >= 2
    if "--unperturbed" in more:  # members of sigma 0 all do the same when they are greedy
        assert figures(tmp_path / "whole", "noise_floor") == [0.0] * GENERATIONS
        assert min(figures(tmp_path / "whole", "fitness_spread")) > 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [f"{ES} --unperturbed 3", f"{ES} --temperature 1 --answers 2"])
def test_devices_change_no_byte(tmp_path, place, options):
    """Three devices cut pairs and prompts; a run with two of them goes on with one."""
    more = options.split()
    assert main(command(place, tmp_path / "one", *more)) == 0
    assert main(command(place, tmp_path / "three", *more, "--devices", "3")) == 0
    assert main(command(place, tmp_path / "parts", *more, "--devices", "2", generations=2)) == 0
    assert main(command(place, tmp_path / "parts", "--resume", "--devices", "1")) == 0
    for name in ("journal", "answers.jsonl", f"checkpoints/{GENERATIONS:09d}.safetensors"):
        found = [(tmp_path / run / name).read_bytes() for run in ("one", "three", "parts")]
        assert found == found[:1] * 3, name


@pytest.mark.slow
def test_samples_of_several_answers_learn(tmp_path, place):
    """Moments in 8 bits, weights in bfloat16; that this resumes is a slow test."""
    assert main(command(place, tmp_path / "run", *SAMPLED.split())) == 0
    reward = figures(tmp_path / "run", "train_reward")
    assert max(reward[1:]) > reward[0]


@pytest.fixture(scope="module")
def shown():
    """What the run of this module printed."""
    return io.StringIO()


@pytest.fixture(scope="module")
def said():
    """What it said on standard error."""
    return io.StringIO()


@pytest.fixture(scope="module")
def finished(place, shown, said):
    """A run that several tests read; those that change it copy it first."""
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
        assert main(command(place, place / "finished", *ES.split())) == 0
    return place / "finished"


def test_a_run_is_replayed_from_its_journal_bit_for_bit(finished, capsys):
    assert main(["replay", str(finished)]) == 0
    assert "equal to the checkpoint of generation 4, bit for bit" in capsys.readouterr().out


def test_a_journal_that_is_ahead_is_told_without_generating(tmp_path, place, finished, capsys):
    """As after a kill -9: the newest checkpoint lies behind."""
    shutil.copytree(finished, tmp_path / "run")
    whole = newest(tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*"):
        path.unlink()
    assert main(command(place, tmp_path / "run", "--resume")) == 0
    assert newest(tmp_path / "run") == whole
    assert "going on with" in capsys.readouterr().err


def test_a_run_goes_on_with_the_devices_it_had(finished, monkeypatch):
    """They are made before JAX starts, so the options that are stored must be known by then."""
    seen = []
    monkeypatch.setattr("springroll.run.config.check_sizes", lambda _: seen.append("memory"))

    def build(config):
        raise InputError("enough")

    job = replace(
        job_of("finetune"), set_up=lambda config: seen.append(config.devices), build=build
    )
    with pytest.raises(InputError, match="enough"):
        run_job(job, FinetuneConfig(out=str(finished), resume=True))
    assert seen == [1, "memory"]


def test_what_the_model_wrote_is_kept_and_shown(finished, said):
    rows = [json.loads(row) for row in (finished / "answers.jsonl").read_text().splitlines()]
    assert [(row["generation"], row["place"]) for row in rows] == [
        (generation, place)
        for generation in (0, GENERATIONS)
        for place in ("best", "median", "worst")
    ]
    for best, median, worst in (rows[:3], rows[3:]):
        assert best["reward"] >= median["reward"] >= worst["reward"]
    assert all(row["prompt"].startswith("say ") and len(row["answer"]) <= 4 for row in rows)
    assert rows[0]["truncated"] and "reference" not in rows[0]  # which is nothing but the prompt
    assert f"held-out answers of generation {GENERATIONS}:\n  best " in said.getvalue()


def test_a_warning_is_said_once_and_kept(finished, said):
    lines = [line for line in said.getvalue().splitlines() if line.startswith("warning: ")]
    summary = json.loads((finished / "summary.json").read_text())
    assert lines == [f"warning: {summary['warning_truncated']}"]
    assert "cut off at --max-tokens 4 (mean length 4 tokens)" in lines[0]


def test_prompts_that_are_too_long_are_left_out_and_counted(tmp_path, place):
    """Every other one is longer by the same word."""
    records = [json.dumps({"prompt": f"say {'so ' * (i % 2)}{i:02d}: "}) for i in range(40)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(records))
    more = ("--eval-problems", "40", "--data", str(tmp_path / "prompts.jsonl"))
    config = config_of(job_of("finetune"), command(place, "unused", *more)[1:])
    assert isinstance(config, FinetuneConfig)
    setup = prepare(config, new=True)
    assert setup.config.max_prompt_tokens == 4096 - 4 and not setup.held_out.dropped
    # What all prompts begin with is found once; runs from before that was read once say nothing.
    shared = common_tokens([*setup.held_out.prompts, *setup.train(0, config.num_prompts).prompts])
    decided = (setup.config, setup.generator, setup.greedy)
    assert shared and {each.shared_prompt_tokens for each in decided} == {shared}
    assert prepare(config).generator.shared_prompt_tokens == 0
    lengths = {len(prompt) for prompt in setup.held_out.prompts}
    limited = prepare(replace(config, max_prompt_tokens=min(lengths)), new=True)
    asked = limited.train(3, 8)
    assert {len(prompt) for prompt in (*asked.prompts, *limited.held_out.prompts)} == {min(lengths)}
    assert asked.dropped and limited.train(3, 8) == asked  # a function of the generation
    assert limited.held_out.dropped + len(limited.held_out.prompts) == len(setup.held_out.prompts)
    assert {"long_prompts", "long_held_out"} == limited.seen.warnings.keys()


def test_sigma_is_decided_once_and_as_earlier_versions_did(place):
    config = FinetuneConfig(model=str(place / "model"), task="arithmetic", eval_problems=1)
    made = setup.prepare(config)
    roles = roles_of(made.model, config.weights, config.rest)
    sigma = with_sigma(config, made).sigma
    assert sigma == usual_sigma(made, roles) == usual_sigma(made, roles, layered=False)
    weights = [x for path, x in named_leaves(made.params()).items() if path not in still(roles)]
    square = sum(float(jnp.sum(jnp.square(x))) for x in weights) / sum(x.size for x in weights)
    assert sigma == 0.1 * math.sqrt(square / made.model.config.layers)


def test_it_prints_accuracy_beside_what_else_changed(tmp_path, finished, shown, capsys):
    for word in ("accuracy", "format rate", "truncation rate", "mean length", "reward"):
        assert f"held-out {word}" in shown.getvalue()
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["tokens"] <= GENERATIONS * 32 * 3 * 4
    measured = figures(finished, "valid_reward")
    assert (summary["first_valid_reward"], summary["valid_reward"]) == (measured[0], measured[-1])
    assert summary["best_valid_reward"] == max(measured) and summary["valid_reward_error"] >= 0
    assert {f"{name}_seconds" for name in ("generate", "score", "update")} <= summary.keys()
    assert "held-out reward at the start" in shown.getvalue()
    assert (finished / "curve.png").stat().st_size > 10_000
    best = sorted((finished / "best").glob("*.json"))  # of fixed generations, and the last
    reward = figures(finished, "valid_reward")
    assert json.loads(best[-1].read_text())["meta"]["figure"] == max(reward)
    kept = {name.rpartition("/")[0] for name in mapped(best[-1].with_suffix(".safetensors"))}
    assert all(name.startswith("state/params") for name in kept)
    assert main(["eval", str(finished), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["valid_reward"] == summary["valid_reward"] and again["problems"] == 4
    assert main(["eval", str(finished), "--best", "--problems", "2", "--answers"]) == 0
    printed = capsys.readouterr().out
    assert "truncation rate" in printed
    assert [line.split()[0] for line in printed.splitlines()[-2:]] == ["best", "worst"]
    assert main(["export", str(finished), str(tmp_path / "model"), "--best"]) == 0
    assert (tmp_path / "model" / "tokenizer.json").exists()
    sr.load_hf(tmp_path / "model")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--model nowhere/at/all", "nowhere/at/all"),
        (f"--model {OLD_RUN}", "old_runs/train is a run, not a model; `"),
        ("--pop-size 7", "even number"),
        ("--answers 2", "--temperature 1"),
        ("--optimizer muon", "--method es takes sgd or adam"),
        ("--method grpo --optimizer sgd", "springroll train"),
        ("--method grpo --temperature 0", "temperature above 0"),
        ("--method grpo --weights int8", "--method es"),
        ("--task nothing", "no task 'nothing'"),
        ("--cache-memory much", "expected a number and a unit"),
        ("--cache-memory 1KiB", "cache_memory is 1KiB, in which no answer fits"),
        ("--sigma 0", "sigma is 0.0; it must be above 0"),
        ("--prompts 0", "prompts is 0"),
        ("--max-tokens 0", "max_tokens is 0"),
        ("--max-tokens 5000", "the model reads 4,096 tokens at most, and max_tokens is 5,000"),
        ("--max-prompt-tokens 4093", "are 4,097 tokens; the model reads 4,096 at most"),
        ("--max-prompt-tokens 3", "held-out problems have longer prompts than max_prompt_tokens 3"),
        ("--anchor 1", "below 1"),
        ("--momentum 1", "below 1"),
        ("--kl -1", "0 or more"),
        ("--temperature -1", "0 or more"),
        ("--devices 99", "devices is 99; this process has 4: give --devices 4 or fewer"),
        ("--devices 0", "devices is 0; it must be from 1 to 1,024"),
        ("--top-k 5", "at temperature 0 the likeliest token is taken"),
        ("--temperature 1 --top-p 0", "top_p is 0.0; it must be above 0 and at most 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, place, capsys, options, said):
    out = tmp_path / "run"
    assert main([*command(place, out), *options.split()]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not out.exists()


def test_without_a_model_it_says_where_one_comes_from(tmp_path, capsys):
    assert main(["finetune", "--out", str(tmp_path / "run")]) == 2
    assert "give --model FOLDER" in capsys.readouterr().err


def test_another_model_is_not_resumed(tmp_path, place, finished, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    model = decoder(CONFIGS["llama-tiny"])
    copy = tmp_path / "copy"
    sr.save_hf(copy / "model", model, model.init(jax.random.key(1)))
    write_byte_tokenizer(copy / "model")
    config = json.loads((out / "config.json").read_text())
    config["config"]["model"] = str(copy / "model")
    config["options_id"] = stored_id(FinetuneConfig, config["config"])
    (out / "config.json").write_text(json.dumps(config))
    before = files(out)
    resumed = [x for x in command(place, out, "--resume") if x != str(place / "model")]
    resumed.remove("--model")
    assert main([*resumed]) == 2
    assert "began with" in capsys.readouterr().err
    after = files(out)
    del before["config.json"], after["config.json"]  # written anew, with the same run id
    assert after == before


def test_a_reward_that_is_no_number_is_one_line(tmp_path, place, capsys):
    assert main(command(place, tmp_path / "run", *ES.split(), reward="broken")) == 2
    *_, shown, last = capsys.readouterr().err.splitlines()
    assert "is NaN or infinite for 3 generations in a row; stopped" in last
    assert "came to NaN or infinity, the first: it returned nan; expected a finite float" in last
    assert last.endswith("'") and "; prompt '" in last and ", answer '" in last
    assert shown.startswith("answers that could not be scored: ")


def left_out(place, monkeypatch):
    """Tasks whose score is NaN where `fails` says so, which the function itself never hears of."""
    names: dict = {}
    exec(REWARDS, names)
    counts = Counter()

    def made(line, **options):
        task = task_of_line(line.replace("flaky", "near_d"), **options)

        def score(problems, texts):
            counts.update(names["fails"](text) for text in texts)
            found = task.score(problems, texts)
            return [UNSCORED if names["fails"](t) else v for t, v in zip(texts, found, strict=True)]

        return replace(task, score=score)

    monkeypatch.setattr(setup, "task_of_line", made)
    return counts


@pytest.mark.slow  # `tests/tasks/` has every kind of failure
def test_rewards_that_fail_are_as_if_their_texts_were_left_out(tmp_path, place, monkeypatch):
    """One in twenty texts raises, or comes to None, NaN, text, a list or a number too large."""
    options = {"reward": "flaky", "generations": 1}
    assert main(command(place, tmp_path / "flaky", *ES.split(), **options)) == 0
    counts = left_out(place, monkeypatch)
    assert main(command(place, tmp_path / "left", *ES.split(), **options)) == 0
    assert newest(tmp_path / "flaky", 1) == newest(tmp_path / "left", 1)
    assert figures(tmp_path / "flaky", "train_reward") == figures(tmp_path / "left", "train_reward")
    unscored = sum(figures(tmp_path / "flaky", "train_unscored"))
    assert unscored and 0.01 < counts[True] / counts.total() < 0.2


def test_several_rewards_are_shown_each(tmp_path, place, capsys):
    """A sum of two; prompts of messages are refused by name where there is no chat template."""
    task = f"{place}/rewards.py:near_d*0.5+{place}/rewards.py:flaky style=plain"
    run = command(place, tmp_path / "run", *ES.split(), "--task", task, generations=1)
    assert main(run) == 0
    parts = [figures(tmp_path / "run", f"train_reward_{name}")[0] for name in ("near_d", "flaky")]
    assert all(0 < part < 1 for part in parts)
    assert len(figures(tmp_path / "run", "valid_reward_near_d")) == 2
    talk = tmp_path / "talk.json"
    talk.write_text(json.dumps([{"messages": [{"role": "user", "content": x}]} for x in "abcdef"]))
    task = f"{place}/rewards.py:near_d"
    assert main(command(place, tmp_path / "no", "--task", task, "--data", str(talk))) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"record 1 of {talk} is no prompt: a model of plain bytes has no chat template" in line
    assert not (tmp_path / "no").exists()


def test_explain_shows_what_is_perturbed(finished, capsys):
    assert main(["explain", str(finished)]) == 0
    said = capsys.readouterr().out
    assert "q_proj" in said and "low-rank" in said
