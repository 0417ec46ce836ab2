"""Runs on integers have the bytes that they always had, on every machine; see digests.py."""

import json

import pytest

from tests.digests import ANYWHERE, FILE, RUNS, measured

THEN = json.loads(FILE.read_text())["runs"]


def test_every_run_has_a_digest():
    assert list(THEN) == list(RUNS)


@pytest.mark.slow  # that integers go on as they always did is in `cli/test_old_runs.py`
@pytest.mark.parametrize("name", ANYWHERE)
def test_integers_are_what_they_were(name):
    assert measured((name,)) == {name: THEN[name]}
