"""`springroll train` on records: their answers are learnt, from any file, with any model."""

import dataclasses
import json

import jax
import pytest

from springroll.cli.main import main
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS
from springroll.models.hf.save import save_hf
from springroll.train.config import TrainConfig
from springroll.train.data import format_of
from tests.cli.test_train import newest
from tests.tokens.chat_folder import CHATML, VOCAB, chat_folder

SIZE = "--batch 4 --sequence 32 --log-every 0 --eval-every 0 --schedule-steps 6 --lr 0.03".split()


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    rows = [{"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(120)]
    return write(tmp_path_factory.mktemp("records") / "sums.jsonl", rows)


def command(data, out, *more, steps=6, model="llama-tiny"):
    base = ["train", "--data", str(data), "--out", str(out), "--model", str(model)]
    return [*base, "--steps", str(steps), *SIZE, *more]


def rows_of(folder):
    return [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]


def valid(folder):
    name = "valid_nats_per_answer_token"
    return [row[name] for row in rows_of(folder) if name in row]


def test_answers_are_learnt(tmp_path, sums, capsys):
    assert main(command(sums, tmp_path / "run")) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "records with" in said and "held-out answers" in said and "nats/token" in said
    assert valid(tmp_path / "run")[-1] < valid(tmp_path / "run")[0]
    assert '"format": "records"' in (tmp_path / "run" / "config.json").read_text()


@pytest.mark.slow
def test_a_run_resumes_to_the_same_bytes_and_is_scored(tmp_path, sums, capsys):
    assert main(command(sums, tmp_path / "whole")) == 0
    assert main(command(sums, tmp_path / "parts", steps=3)) == 0
    assert main(command(sums, tmp_path / "parts", "--resume")) == 0
    assert newest(tmp_path / "parts") == newest(tmp_path / "whole")
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "whole"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nats_per_answer_token"] == pytest.approx(valid(tmp_path / "whole")[-1], rel=1e-4)
    assert main(["eval", str(tmp_path / "whole"), "--json", "--data", str(sums)]) == 0
    assert json.loads(capsys.readouterr().out)["answer_tokens"] > found["answer_tokens"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"id": 1, "score": 2}], "", "has the columns id, score; expected chats"),
        ([{"prompt": "a", "completion": ""}] * 2, "", "without an answer"),
        ([{"prompt": "a" * i, "completion": ""} for i in range(9)], "", "9 without an answer"),
        ([{"prompt": "a" * i, "completion": "b"} for i in range(40, 60)], "", "longer than 32 tok"),
        ([{"prompt": "a" * i, "completion": "b"} for i in range(1, 9)], "", "and a step takes 4"),
        ([{"messages": [{"role": "user", "content": "a"}]}] * 2, "", "has no chat template"),
        ([{"prompt": 3, "completion": "b"}], "", "has an int under 'prompt'"),
        ([{"prompt": "a", "completion": "b"}], "--answer-column c", "no column 'c'"),
        ([{"prompt": "a", "completion": "b"}], "--format text --prompt-column c", "no columns"),
        ([{"prompt": "a", "completion": "b"}], "--packing on --model rwkv7-tiny", "the state of"),
        ([{"prompt": "a", "completion": "b"}], "--packing maybe", "packing"),
    ],
)
def test_what_cannot_be_learnt_is_one_line(tmp_path, capsys, rows, options, message):
    data = write(tmp_path / "x.jsonl", rows)
    assert main(command(data, tmp_path / "run", *options.split())) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split()), said
    assert not (tmp_path / "run").exists()


def test_the_names_of_files_tell_what_they_hold(tmp_path):
    write(tmp_path / "train.jsonl", [{}])
    (tmp_path / "README.md").write_text("A card")
    assert format_of(str(tmp_path)) == format_of(str(tmp_path / "train.jsonl")) == "records"
    (tmp_path / "more.py").write_text("1")
    assert format_of(str(tmp_path)) == format_of(str(tmp_path / "more.py")) == "text"
    assert format_of("stdlib") == format_of("hub:a/b") == format_of("nowhere.jsonl") == "text"


def test_runs_of_earlier_versions_learn_the_text_of_such_files():
    assert TrainConfig(data="x.jsonl").format is None


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """A folder with a template, and chats of several turns for it."""
    folder = tmp_path_factory.mktemp("chat")
    shape = dataclasses.replace(CONFIGS["llama-tiny"], vocab=VOCAB)
    save_hf(folder / "model", shape, decoder(shape).init(jax.random.key(0)))
    chat_folder(folder / "model", CHATML)
    turn = lambda role, text: {"role": role, "content": text}
    chat = lambda i: [
        turn("user", f"{i}?"),
        turn("assistant", f"{i}!"),
        turn("user", "and?"),
        turn("assistant", "no"),
    ]
    write(folder / "chats.jsonl", [{"messages": chat(i)} for i in range(80)])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "--engine stream", "--optimizer lowgrad --rank 4"])
def test_chats_teach_a_model_that_has_a_template(tmp_path, chat_model, options):
    more = ["--sequence", "160", *options.split()]
    model, data = chat_model / "model", chat_model / "chats.jsonl"
    assert main(command(data, tmp_path / "run", *more, model=model)) == 0
    assert valid(tmp_path / "run")[-1] < valid(tmp_path / "run")[0]


@pytest.mark.slow
def test_a_recurrent_model_has_a_row_for_each_record(tmp_path, sums):
    assert main(command(sums, tmp_path / "run", model="rwkv7-tiny")) == 0
