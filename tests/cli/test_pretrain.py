"""`springroll pretrain`: recipes and options, and every bad input of the list as one line."""

import importlib
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

from springroll.cli.job import recipe_list
from springroll.cli.main import main
from springroll.errors import InputError
from springroll.pretrain import JOB
from springroll.pretrain.config import PretrainConfig
from springroll.program import pip_install
from tests.cli.tiny import config_of, files, pretrain, text_file

RECIPES = JOB.recipes
ARTICLE: list[str] = list(
    "--pop-size 262144 --rank 1 --n-layers 6 --hidden 256 --data minipile --precision int8".split()
)


def test_options_without_a_recipe():
    assert config_of([]) == PretrainConfig()
    given = config_of(["--pop_size", "64", "--n_layers=2", "--precision", "float32", "--resume"])
    assert given == PretrainConfig(pop_size=64, n_layers=2, precision="float32", resume=True)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_and_what_overrides_it(name):
    assert config_of(["--recipe", name]) == RECIPES[name]()
    given = config_of(["--seconds", "5", f"--recipe={name}", "--out", "elsewhere"])
    assert given == replace(RECIPES[name](), seconds=5.0, out="elsewhere")
    assert f"  {name}: " in recipe_list(JOB)


def test_the_article_runs_as_it_stands():
    expected = PretrainConfig(
        pop_size=262144, rank=1, n_layers=6, hidden=256, data="minipile", precision="int8"
    )
    assert config_of(ARTICLE) == expected
    underscores = [word[:2] + word[2:].replace("-", "_") for word in ARTICLE]
    assert "--pop_size" in underscores and config_of(underscores) == expected


def test_a_misspelt_recipe():
    with pytest.raises(InputError, match=r"unknown recipe 'dmo'; did you mean demo\?$"):
        config_of(["--recipe", "dmo"])
    with pytest.raises(InputError, match="--recipe needs a value"):
        config_of(["--recipe"])
    with pytest.raises(InputError, match="unknown option --recpie; did you mean --recipe"):
        config_of(["--recpie", "demo"])


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs `pretrain`; it must say one line, exit with 2, and change nothing."""
    text_file(tmp_path)

    def check(*more):
        before = files(tmp_path)
        assert main(pretrain(tmp_path / "text.py", tmp_path / "run", *more)) == 2
        said = capsys.readouterr()
        assert said.err.startswith("springroll: ") and said.err.count("\n") == 1
        assert "Traceback" not in said.err and said.out == ""
        assert files(tmp_path) == before
        assert not (tmp_path / "run").exists()
        return said.err

    return check


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--pop-sise 3", "unknown option --pop-sise; did you mean --pop-size?"),
        ("--precision int9", "--precision is 'int9'; expected one of int8, compat"),
        ("--rank 9", "rank is 9, above min(m, n) = 8 of a 8 wide model"),
        ("--rank 0", "rank is 0; it must be at least 1"),
        ("--pop-size 7", "pop_size is 7; members come in pairs: an even number, 2 or more"),
        ("--pop-size 0", "pop_size is 0; members come in pairs"),
        ("--sigma 0", "sigma is 0.0; it must be above 0"),
        ("--sigma -0.5", "sigma is -0.5; it must be above 0"),
        ("--sigma nan", "sigma is nan; it must be above 0"),
        ("--tokens-per-member 0", "tokens_per_member is 0; it must be at least 1"),
        ("--streams 3", "streams is 3; the 8 pairs of pop_size 16 must divide evenly over them"),
        ("--seconds -1", "seconds is -1.0; it must be a number of seconds, from 0 to 10^9"),
        ("--generations -1", "generations is -1; it must be 0 or more"),
        ("--seed -1", "seed is -1; it must be between 0 and 2^63 - 1"),
        ("--precision float32 --rule residual", "rule 'residual' moves integer weights"),
        ("--precision compat --rank 2", "the published integer rule has rank 1"),
        ("--devices 99", "devices is 99; this process has 4"),
        ("--devices 3", "8 pairs do not divide over 3 devices"),
        ("--data nowhere.txt", "no corpus 'nowhere.txt': it is no file or folder here"),
        ("--tokens-per-member 4000", "too few for 4 streams of 4,000 tokens"),
    ],
)
def test_what_cannot_be_trained(refused, options, message):
    assert message in refused(*options.split())


def test_a_corpus_that_is_empty_binary_or_unreadable(refused, tmp_path):
    empty, binary, folder = tmp_path / "empty", tmp_path / "binary", tmp_path / "folder"
    empty.touch()
    binary.write_bytes(np.random.default_rng(0).bytes(4096).replace(b"\0", b"\1"))
    folder.mkdir()
    assert "holds 0 bytes of text; 1024 or more are needed" in refused("--data", str(empty))
    assert "binary is not text" in refused("--data", str(binary))
    assert "holds 0 bytes of text" in refused("--data", str(folder))


def test_an_occupied_folder(tmp_path, capsys):
    text_file(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    before = files(tmp_path)
    assert main(pretrain(tmp_path / "text.py", tmp_path / "run")) == 2
    assert "is not empty and holds no run; give another --out" in capsys.readouterr().err
    assert main(pretrain(tmp_path / "text.py", tmp_path / "text.py")) == 2
    assert "is a file; give another --out" in capsys.readouterr().err
    assert files(tmp_path) == before


@pytest.fixture
def no_network(monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("socket.create_connection", unreachable)


def test_the_article_without_the_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert main(["pretrain", *ARTICLE, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert pip_install("data") in said and "--data PATH" in said


def test_the_article_without_a_network(monkeypatch, capsys, no_network, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", importlib.import_module("json"))
    assert main(["pretrain", *ARTICLE, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "huggingface.co, which cannot be reached" in said and "--data PATH" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # `test_destroyed.py` stops another job there
def test_a_step_that_is_not_finite_stops_the_run(tmp_path, capsys):
    """Perturbations beyond float32: the run stops, says so, and keeps what it has."""
    text_file(tmp_path)
    overflow = ["--precision", "float32", "--sigma", "1e38", "--generations", "3"]
    assert main(pretrain(tmp_path / "text.py", tmp_path / "run", *overflow)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert re.match(r"springroll: generation 1: step_ratio is NaN or infinite; stopped", lines[-1])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["sigma"] == 1e38
    assert not (tmp_path / "run" / "summary.json").exists()
