"""The verifier's bench: every hostile text is refused, and the record has what it promises."""

import pytest

from bench.verifier import HOSTILE, run

pytestmark = pytest.mark.slow


def test_the_record():
    result = run(problems=50, repeats=1)
    assert result["disagreements"] == 0 and result["checks"] > 150
    assert result["milliseconds"].keys() == HOSTILE.keys()
    assert result["ours"] >= max(result["milliseconds"].values()) * 0.9
