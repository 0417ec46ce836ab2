"""The comparison of the integer rules, at a size that takes seconds."""

import pytest

from bench import lattice_rules
from springroll.bench import lowgrad_quality as curves

pytestmark = pytest.mark.slow


@pytest.fixture
def corpus(tmp_path):
    lines = [f"line {i}: the quick brown fox {i * i} jumps\n" for i in range(4000)]
    path = tmp_path / "corpus.txt"
    path.write_text("".join(lines))
    return str(path)


def test_rules_are_compared_at_equal_tokens_and_drawn(corpus, tmp_path):
    result = lattice_rules.run(
        3,
        (0,),
        data=corpus,
        hidden=16,
        pop_size=16,
        tokens_per_member=4,
        valid_streams=4,
        valid_tokens=32,
    )
    assert set(result["final"]) == {"published", "mended", "residual"}
    for found in result["curves"].values():
        assert len(found) == 1 and len(found[0]) == len(result["tokens"]) == 4
    assert result["tokens"] == [0, 64, 128, 192]
    text = curves.table(result["final"], lines=result["lines"])
    assert text.splitlines()[0] == "|  | seed 0 | mean |"
    assert "| residual |" in text and "| bigram |" in text
    curves.draw(
        tmp_path / "rules.png",
        result["curves"],
        result["tokens"],
        result["lines"],
        title="rules",
        top=9.0,
    )
    assert (tmp_path / "rules.png").read_bytes().startswith(b"\x89PNG")
