"""docs/lowgrad.md: its example runs."""

import doctest
import pathlib

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "lowgrad.md"


def test_the_example_runs():
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.attempted > 5 and found.failed == 0
