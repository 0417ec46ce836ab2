"""The integer benchmarks, at sizes that take seconds."""

import pytest

from springroll.bench import int8_throughput, lattice_rules, seeds


@pytest.fixture
def corpus(tmp_path):
    lines = [f"line {i}: the quick brown fox {i * i} jumps\n" for i in range(4000)]
    path = tmp_path / "corpus.txt"
    path.write_text("".join(lines))
    return str(path)


def test_throughput_is_measured_beside_inference():
    result = int8_throughput.run(1, 16, 8, 4, None, repeats=2, registers="int8")
    assert result["ours"] > 0 and result["baseline"] > 0
    assert result["ratio"] == pytest.approx(result["ours"] / result["baseline"], rel=1e-2)
    assert result["registers"] == "int8"


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
    for curves in result["curves"].values():
        assert len(curves) == 1 and len(curves[0]) == len(result["tokens"]) == 4
    assert result["tokens"] == [0, 64, 128, 192]
    text = seeds.table(result["final"], lines=result["lines"])
    assert text.splitlines()[0] == "|  | seed 0 | mean |"
    assert "| residual |" in text and "| bigram |" in text
    seeds.draw(
        tmp_path / "rules.png",
        result["curves"],
        result["tokens"],
        result["lines"],
        title="rules",
        top=9.0,
    )
    assert (tmp_path / "rules.png").read_bytes().startswith(b"\x89PNG")
