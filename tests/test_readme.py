"""README.md and CONTRIBUTING.md: the examples run, the commands parse, the files exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from springroll.cli import main as cli
from springroll.cli.recipe import config_of
from springroll.cli.trained import CONFIGS
from springroll.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    """Every `springroll ...` line of the page, as words."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    lines += re.findall(r"`(springroll [a-z][^`]*)`", README)
    return [
        shlex.split(line, comments=True)[1:] for line in lines if line.startswith("springroll ")
    ]


def test_the_examples_run(capsys):
    """One after the other, as a reader would; evolution gets below the first loss."""
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    shown = capsys.readouterr().out
    before, after = map(float, re.search(r"(-[\d.]+) -> (-[\d.]+)", shown).groups())
    assert after > before / 3
    assert "low-rank mn" in shown and "How each parameter is perturbed" in shown
    thin, formed = names["thin"], {**names["params"], "up": names["thin"]["up"].dense()}
    apply, x, y = names["sr"].factored(names["fn"]), names["x"], names["y"]
    assert float(apply(thin, x, y)) == pytest.approx(float(names["fn"](formed, x, y)), rel=1e-5)


def test_there_are_commands():
    assert len(commands()) > 10


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_is_one_we_have(words, monkeypatch):
    """Up to the point where it would start: the name, every option, every value."""
    name, *rest = words
    assert name in cli.COMMANDS
    module = importlib.import_module(cli.COMMANDS[name].module)
    if name in RECIPES:
        assert isinstance(config_of(CONFIGS[name], rest, ""), CONFIGS[name])
        return
    parse, seen = module.parse, []

    class Parsed(Exception):
        pass

    def stop(*args, **more):
        seen.append(parse(*args, **more))
        raise Parsed

    monkeypatch.setattr(module, "parse", stop)
    with pytest.raises(Parsed):
        module.run(rest)
    if name == "bench" and rest:
        assert module.known(seen[0].name)


def test_the_articles_line_is_there_as_it_stands():
    line = (
        "springroll pretrain --pop-size 262144 --rank 1 --n-layers 6 --hidden 256 "
        "--data minipile --precision int8"
    )
    assert line in README


@pytest.mark.parametrize("target", ["demo", "test", "lint", "test-slow", "bench"])
def test_make_has_what_the_pages_name(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_file_that_contributing_names_exists():
    table = [line for line in CONTRIBUTING.splitlines() if line.startswith("| ")]
    paths = set(re.findall(r"`((?:src|tests)/[\w/.]+)`", "\n".join(table)))
    assert len(paths) > 15
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_registry_that_contributing_names_exists():
    rows = re.findall(r"`(src/springroll/[\w/]+\.py)`[^|]*line in `([A-Z]+)`", CONTRIBUTING)
    assert len(rows) >= 3
    for path, name in rows:
        assert re.search(rf"^{name}\b", (ROOT / path).read_text(), re.MULTILINE), (path, name)
