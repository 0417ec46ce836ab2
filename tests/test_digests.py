"""Runs on integers have the bytes that they always had, on every machine; see digests.py."""

import json

import pytest

from tests.digests import ANYWHERE, FILE, RUNS, measured

THEN = json.loads(FILE.read_text())["runs"]


def test_every_run_has_a_digest():
    assert list(THEN) == list(RUNS)


@pytest.mark.parametrize(
    "name", [ANYWHERE[0], *(pytest.param(name, marks=pytest.mark.slow) for name in ANYWHERE[1:])]
)
def test_integers_are_what_they_were(name):
    assert measured((name,)) == {name: THEN[name]}
