"""The pages for people: their examples run, their commands parse, and what they name exists."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
import shlex
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

import springroll
from springroll.cli import main as cli
from springroll.cli.job import config_of
from springroll.cli.jobs import JOBS, job_of
from springroll.cli.options import taken

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted((ROOT / "docs").glob("*.md"))]
OURS = "https://github.com/springroll-jax/springroll/blob/main/"
RAW = "https://raw.githubusercontent.com/springroll-jax/springroll/main/"


class Block(NamedTuple):
    """A fenced block of a page, and the line on which its text begins."""

    text: str
    line: int


def blocks(page, language):
    text = page.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [Block(each[1], text.count("\n", 0, each.start(1))) for each in found]


def shell_lines(page):
    """Every command of a page: lines of its shell blocks, and `springroll ...` in its text."""
    texts = [re.sub(r"\\\n\s*", "", block.text) for block in blocks(page, "sh")]  # lines that go on
    lines = [line for text in texts for line in text.splitlines()]
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`]+)`", text)
    return lines + [" ".join(each.split()) for each in spans]


def commands(start):
    """Page and words of every command that begins so, each once."""
    found = {
        (page.name, line): shlex.split(line, comments=True)
        for page in PAGES
        for line in shell_lines(page)
        if re.match(rf"{start} [a-z'.]", line)
    }
    return [pytest.param(words, id=f"{page}: {line}") for (page, line), words in found.items()]


def run(page):
    """Its Python blocks in order, in one namespace, as a reader would; the namespace."""
    names = {"__name__": page.stem}
    for text, line in blocks(page, "python"):
        if text.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(text, names, page.name, str(page), line)
            assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
            names = test.globs  # the runner works on a copy
        else:
            exec(compile("\n" * line + text, str(page), "exec"), names)
    return names


SLOW = {"generation.md", "lowgrad.md", "streaming.md"}  # other tests call what they show


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.name in SLOW else ())
        for page in PAGES
        if blocks(page, "python") and page != README
    ],
    ids=lambda page: page.name,
)
def test_the_python_of_a_page_runs_as_it_stands(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page)


def test_the_readme_runs_as_it_stands_and_learns(tmp_path, monkeypatch, capsys):
    """Evolution loses two thirds of the loss at least, and low-rank gradients as much."""
    monkeypatch.chdir(tmp_path)
    run(README)
    shown = capsys.readouterr().out
    evolved, trained = re.findall(r"(-?[\d.]+) -> (-?[\d.]+)", shown)
    assert float(evolved[1]) > float(evolved[0]) / 3
    assert float(trained[1]) < float(trained[0]) / 3


@pytest.mark.parametrize("words", commands("springroll"))
def test_a_command_is_one_we_have(words, monkeypatch):
    """Up to the point where it would start: the name, every option, every value."""
    name, *rest = words[1:]
    assert name in cli.COMMANDS
    module = importlib.import_module(cli.COMMANDS[name].module)
    if name in JOBS:
        rest = without_modes_of_rl(rest) if name == "rl" else rest
        job = job_of(name)
        assert isinstance(config_of(job, rest), job.config)
        return
    if not rest:
        return  # the text names the command; how it is used is shown elsewhere
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


def without_modes_of_rl(words):
    """`rl` looks for these before it reads its options."""
    left = [word for word in words if word not in ("--list", "--tune")]
    return taken(taken(left, "--trials")[1], "--factor")[1] if "--tune" in words else left


@pytest.mark.parametrize("words", commands("python -m"))
def test_a_module_is_one_we_have(words):
    assert importlib.util.find_spec(words[2]) is not None


def test_a_dotted_name_is_one_we_have():
    """`springroll.planner.devices`, `springroll.models.policy:linear` and others, in any page."""
    pattern = r"`(springroll(?:\.\w+)+(?::\w+)?)`"
    names = {name for page in PAGES for name in re.findall(pattern, page.read_text())}
    assert len(names) > 5
    for name in names:
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("words", commands("make"))
def test_make_has_the_target(words):
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("words", commands("pip install"))
def test_an_extra_is_one_we_have(words):
    """springroll is installed from a clone: on an index there is none."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words[2:]:
        assert not word.startswith("springroll"), "nobody can install this"
        if word.startswith(".["):
            assert set(word[2:-1].split(",")) <= declared["optional-dependencies"].keys()


def test_there_are_commands():
    assert len(commands("springroll")) > 40 and len(commands("python -m")) > 5


def test_the_articles_line_is_there_as_it_stands():
    line = (
        "springroll pretrain --pop-size 262144 --rank 1 --n-layers 6 --hidden 256 "
        "--data minipile --precision int8"
    )
    assert line in (ROOT / "docs" / "runs.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Those of README.md are whole addresses, since a package index shows it too."""
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        path = link.removeprefix(OURS).removeprefix(RAW)
        if path != link:
            assert (ROOT / path).is_file(), link
        elif not link.startswith("https://"):
            assert page != README and (page.parent / link).is_file(), link


def test_the_readme_is_short():
    """Four screens: 50 lines of 100 columns each, and a few."""
    lines = README.read_text().splitlines()
    assert sum(max(1, -(-len(line) // 100)) for line in lines) <= 220


def test_the_reference_finds_every_public_name(tmp_path):
    """Each has a docstring, whose first line is what the table of public names says."""
    spec = importlib.util.spec_from_file_location("api_pages", ROOT / "tools" / "api_pages.py")
    assert spec is not None and spec.loader is not None
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    api.main(tmp_path)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(["index", *api.rooms()])
    rows = re.findall(
        r"\| \[`sr\.(\w+)`\]\[[\w.]+\] \| (.+) \|", (tmp_path / "index.md").read_text()
    )
    assert {name for name, _ in rows} == set(springroll.__all__) - {"__version__"}
    assert all(summary for _, summary in rows)


def test_every_file_that_contributing_names_exists():
    table = [line for line in CONTRIBUTING.read_text().splitlines() if line.startswith("| ")]
    paths = set(re.findall(r"`((?:src|tests)/[\w/.]+)`", "\n".join(table)))
    assert len(paths) > 15
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_registry_that_contributing_names_exists():
    rows = re.findall(
        r"`(src/springroll/[\w/]+\.py)`[^|]*line in `([A-Z]+)`", CONTRIBUTING.read_text()
    )
    assert len(rows) >= 3
    for path, name in rows:
        assert re.search(rf"^{name}\b", (ROOT / path).read_text(), re.MULTILINE), (path, name)
