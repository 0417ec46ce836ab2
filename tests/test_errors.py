"""What is said: one safe line, and the nearest known name for an unknown one."""

from pathlib import Path

from springroll.errors import as_path, nearest, one_line, suggestion


def test_the_nearest_name_is_suggested():
    assert suggestion("dmo", ["demo", "bigram"]) == "; did you mean demo?"
    assert suggestion("dmo", ["demo", "bigram"], quoted=True) == "; did you mean 'demo'?"
    assert suggestion("xyz", ["demo", "bigram"]) == ""
    assert suggestion("xyz", ["demo"], otherwise="there is demo") == "; there is demo"


def test_how_near_it_must_be_is_a_choice():
    assert nearest("xyz", ["demo", "y"]) is None
    assert nearest("xyz", ["demo", "y"], cutoff=0.0) == "y"


def test_whatever_text_is_one_line_that_is_safe_on_a_terminal():
    said = one_line("a\x1b[31m\r\n\tb\0 \x9bc \u202ed \ud800 \u2028 46", most=60)
    assert said == "a\ufffd[31m b\ufffd \ufffdc \ufffdd \ufffd 46" and said.isprintable()
    assert one_line("x" * 10**7, most=10) == "xxxxxxx..." and one_line(" ") == ""


def test_a_path_is_text_or_a_path():
    assert as_path("a/b") == as_path(Path("a/b")) == Path("a/b")
