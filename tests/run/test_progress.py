"""What is shown while a run goes."""

import io

import pytest
from rich.console import Console

from springroll.run.progress import Display, _table, clock, counted, gibibytes, si


def shown(terminal=False, every=5.0, width=100):
    out = io.StringIO()
    return out, Display(
        console=Console(file=out, force_terminal=terminal, width=width), every=every
    )


@pytest.fixture
def tick(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("springroll.run.progress.time.monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_a_plain_output_gets_a_line_every_few_seconds(tick):
    out, display = shown()
    with display:
        for generation in range(21):
            display.show(generation / 20, {"generation": str(generation), "bits/byte": "4.5"})
            tick(1.0)
        display.show(1.0, {"generation": "99"}, force=True)
    lines = out.getvalue().splitlines()
    assert lines[0] == "generation 0  bits/byte 4.5"
    assert [line.split()[1] for line in lines] == ["0", "5", "10", "15", "20", "99"]


def test_the_last_line_is_not_repeated_at_the_end(tick):
    out, display = shown()
    with display:
        display.show(1.0, {"step": "3", "left": "0:05"})
        display.show(1.0, {"step": "3", "left": "0:00"}, force=True)
        display.show(1.0, {"step": "3", "valid": "4.1", "left": "0:00"}, force=True)
    assert out.getvalue() == "step 3  left 0:05\nstep 3  valid 4.1  left 0:00\n"


def test_counts_have_their_plural():
    assert [counted(n, "step") for n in (0, 1, 2000)] == ["0 steps", "1 step", "2,000 steps"]


def test_a_long_line_is_not_broken_and_markup_is_text():
    out, display = shown(width=20)
    display.note("[bold]" + "x" * 100)
    assert out.getvalue() == "[bold]" + "x" * 100 + "\n"


def test_a_terminal_gets_a_table_that_goes_away():
    out, display = shown(terminal=True)
    with display:
        display.show(0.25, {"generation": "3", "tokens/s": "690k"})
        display.note("a line that stays")
        display.show(None, {"generation": "4"})
        display.show(1.0, {"generation": "5"}, force=True)
    assert "a line that stays" in out.getvalue()
    assert out.getvalue().count("generation 5") == 1
    assert out.getvalue().rstrip().endswith("\x1b[2K")  # the table is wiped


def test_eighty_columns_hold_all_figures():
    figures = {
        "generation": "1234567",
        "bits/byte": "4.123",
        "valid": "4.123",
        "tokens/s": "1.23M",
        "members/s": "123k",
        "memory": "1.23 GiB",
        "dropped": "123",
        "left": "1:23:45",
    }
    out = io.StringIO()
    console = Console(file=out, width=80)
    console.print(_table(0.5, figures))
    names, values, bar = out.getvalue().splitlines()[:3]
    assert all(name in names for name in figures) and "…" not in names
    assert all(value in values for value in figures.values()) and "…" not in values
    assert len(bar) <= 80


def test_numbers_are_short():
    assert [si(x) for x in (0, 5, 999, 1000, 690_000, 7.4e6, 2e9, 3e12)] == [
        "0", "5", "999", "1k", "690k", "7.4M", "2G", "3T",
    ]  # fmt: skip
    assert [gibibytes(x) for x in (512, 2**20, 1.5 * 2**30, 3 * 2**40)] == [
        "0.5 KiB", "1 MiB", "1.5 GiB", "3 TiB",
    ]  # fmt: skip
    assert (si(999_600), gibibytes(1020 << 20), gibibytes(999 << 20)) == (
        "1M", "0.996 GiB", "999 MiB",
    )  # fmt: skip
    assert [clock(x) for x in (-3, 0, 59.6, 125, 3725)] == [
        "0:00", "0:00", "1:00", "2:05", "1:02:05",
    ]  # fmt: skip
