"""Recipes: full configs, whose docstrings say where, how long and how good."""

import json

import pytest

from springroll.cli.jobs import JOBS, job_of
from springroll.cli.main import main
from springroll.pretrain import recipes as text
from springroll.run.config import from_json, to_json

EVERY = [(job, name) for job in JOBS for name in job_of(job).recipes]


@pytest.mark.parametrize(("command", "name"), EVERY)
def test_a_recipe_is_a_config_with_a_docstring(command, name):
    make = job_of(command).recipes[name]
    config = make()
    assert config.command == command
    assert from_json(type(config), json.loads(json.dumps(to_json(config)))) == config
    assert config.out == f"runs/{name}"
    assert all(word in (make.__doc__ or "") for word in ("Hardware: ", "Time: ")), make.__doc__


def test_the_demo_fits_what_it_promises():
    config = text.demo()
    assert config.data == "stdlib"
    assert config.precision == "int8"
    assert config.seconds is not None and config.seconds <= 90


def demo(folder, *more):
    assert main(["pretrain", "--recipe", "demo", "--out", str(folder), *more]) == 0
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
def test_the_demo_starts(tmp_path):
    """Two generations; the population, the text and the lines to beat are those of the real one."""
    small = ("--valid-streams", "4", "--generations", "2")
    summary = demo(tmp_path / "run", *small)
    assert summary["generations"] == 2
    assert 3 < summary["bigram_bits_per_byte"] < summary["unigram_bits_per_byte"] < 5.5
    assert summary["tokens_per_second"] > 0


@pytest.mark.slow
def test_the_demo_learns(tmp_path):
    summary = demo(tmp_path / "run")
    assert summary["seconds"] < 95
    assert summary["valid_bits_per_byte"] <= summary["unigram_bits_per_byte"] - 0.35
