"""Command lines to dataclasses: spellings, suggestions, and errors of one line."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import tyro

from springroll.cli.options import parse, taken
from springroll.errors import InputError
from springroll.run.options import FormerName, option


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a command that does nothing."""

    file: Annotated[str | None, tyro.conf.Positional] = None
    """A file."""
    pop_size: int = 4
    """How many."""
    sigma: float | None = None
    kind: Literal["int8", "float32"] = "int8"
    rule: Literal["ours", "theirs"] | None = None
    far: bool = False
    generations: Annotated[int, tyro.conf.arg(aliases=["--to-generation"])] = 0
    room: str | None = option(None, formerly="memory")
    rate: float | None = option(
        None, formerly=FormerName("decay", lambda factor: None if factor == 1 else -factor)
    )

    def __post_init__(self) -> None:
        if self.pop_size < 1:
            raise InputError(f"pop_size is {self.pop_size}; it must be 1 or more")


def parsed(line, **more):
    return parse(Options, line.split(), prog="springroll nothing", **more)


@pytest.mark.parametrize(
    "line",
    ["--pop-size 8", "--pop_size 8", "--pop-size=8", "--pop_size=8", "--pop-size 4 --pop-size 8"],
)
def test_spellings(line):
    assert parsed(line) == Options(pop_size=8)


def test_every_type():
    line = "file --sigma 0.5 --kind float32 --rule None --far --to-generation 3"
    expected = Options(file="file", sigma=0.5, kind="float32", far=True, generations=3)
    assert parsed(line) == expected
    assert parsed("--sigma None --no-far --rule ours") == Options(rule="ours")
    assert parsed("--to_generation 2") == Options(generations=2)


@pytest.mark.parametrize(
    ("line", "expected", "note"),
    [
        ("--memory 2GiB", Options(room="2GiB"), "--memory is now called --room"),
        ("--memory=2GiB", Options(room="2GiB"), "--memory is now called --room"),
        ("--decay 0.5", Options(rate=-0.5), "--decay 0.5 is now --rate -0.5"),
        ("--decay=1 --far", Options(far=True), "--decay 1 is now --rate None"),
    ],
)
def test_former_names_work_with_a_note(capsys, line, expected, note):
    assert parsed(line) == expected
    assert capsys.readouterr() == ("", f"note: {note}\n")


def test_today_s_names_get_no_note(capsys):
    assert parsed("--room 2GiB --rate 3") == Options(room="2GiB", rate=3.0)
    assert capsys.readouterr() == ("", "")


def test_defaults_are_overridden_one_by_one():
    default = Options(pop_size=6, kind="float32")
    assert parsed("", default=default) == default
    assert parsed("--pop-size 2", default=default) == Options(pop_size=2, kind="float32")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--pop-sise 3", "unknown option --pop-sise; did you mean --pop-size?"),
        ("--popsize=3", "unknown option --popsize; did you mean --pop-size?"),
        ("--no_fra", "unknown option --no-fra; did you mean --no-far?"),
        ("--to-generatoin 3", "unknown option --to-generatoin; did you mean --to-generation?"),
        ("--recipee demo", "unknown option --recipee; did you mean --recipe?"),
        ("--xyz", "unknown option --xyz; springroll nothing --help lists the options"),
        ("--kind int9", "--kind is 'int9'; expected one of int8, float32; did you mean int8?"),
        ("--rule=their", "--rule is 'their'; expected one of ours, theirs; did you mean theirs?"),
        ("--kind xyz", "--kind is 'xyz'; expected one of int8, float32"),
        ("--pop-size", "--pop-size needs a value"),
        ("--kind", "--kind needs a value"),
        ("--pop-size x", "--pop-size is 'x'; expected a whole number"),
        ("--pop-size 1.5", "--pop-size is '1.5'; expected a whole number"),
        ("--pop-size None", "--pop-size is 'None'; expected a whole number"),
        ("--sigma 1,5", "--sigma is '1,5'; expected a number"),
        ("--memroy 1GiB", "unknown option --memroy; springroll nothing --help lists the options"),
        ("--decay x", "--decay is 'x'; expected a number"),
        ("--decay", "--decay needs a value"),
        ("--to_generation=x", "--to-generation is 'x'; expected a whole number"),
        ("a b", "unexpected argument: b (see springroll nothing --help)"),
        ("--pop-size 0", "pop_size is 0; it must be 1 or more (see springroll nothing --help)"),
    ],
)
def test_what_does_not_fit_is_one_line(capfd, line, message):
    with pytest.raises(InputError) as error:
        parsed(line, others=["--recipe"])
    assert str(error.value) == message
    assert capfd.readouterr() == ("", "")


def test_help_is_plain_text_of_a_terminal_s_width(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit) as end:
        parsed("--help", description="Does nothing at all.\n\n  springroll nothing", epilog="Bye.")
    assert end.value.code == 0
    out, error = capsys.readouterr()
    assert error == "" and "\x1b" not in out
    assert out.startswith("usage: springroll nothing [FILE] [OPTIONS]\n\nDoes nothing at all.\n")
    assert "\n  springroll nothing\n" in out and out.endswith("\n\nBye.\n")
    assert "\n  [FILE]                  A file.\n" in out
    assert "\n  --pop-size INT          How many. (default: 4)\n" in out
    assert "\n  --kind {int8,float32}   (default: int8)\n" in out and "\n  --sigma FLOAT\n" in out
    assert "\n  --generations, --to-generation INT\n" in out
    assert "None" not in out and "--memory" not in out  # former names are not listed
    assert max(map(len, out.splitlines())) <= 60


def test_help_shows_the_defaults_of_a_recipe(capsys):
    with pytest.raises(SystemExit):
        parsed("-h", default=Options(pop_size=6, far=True))
    out = capsys.readouterr().out
    assert "(default: 6)" in out and "--far, --no-far" in out and "(default: --far)" in out


def test_one_option_taken_out():
    assert taken(["--a", "1", "--recipe", "x", "b"], "--recipe") == ("x", ["--a", "1", "b"])
    assert taken(["--recipe=x", "--recipe=y"], "--recipe") == ("y", [])
    assert taken(["--a"], "--recipe") == (None, ["--a"])
    assert taken(["--pop_size", "3"], "--pop-size") == ("3", [])
    with pytest.raises(InputError, match="--recipe needs a value"):
        taken(["--recipe"], "--recipe")
