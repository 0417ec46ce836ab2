"""The bench of the blog post's statements: every one is answered, tabled and drawn."""

import json

import numpy as np
import pytest

from bench import expert_bytes, expert_granular, expert_subspaces, train_step
from bench.expert_granular import Size, markdown
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS

pytestmark = pytest.mark.slow

SMALL = Size(
    models=("moe-tiny", "olmoe-1b-7b"),
    states=(("moe-tiny", 8),),
    step=("moe-tiny", 8),
    batches=((1, 8), (2, 8)),
    toy="moe-tiny",
    rank=8,
    energy=((2, 16, 1), (1, 8, 1)),
    touched=(16, 64),
    fine=(8, 2),
    steps=2,
    batch=(2, 8),
)


@pytest.fixture
def stubbed(monkeypatch, tmp_path):
    """What compiles or trains answers at once; each has tests of its own."""
    monkeypatch.setattr(
        expert_bytes,
        "sent_elsewhere",
        lambda name, rank: {
            "AdamW": 12,
            "lowgrad": 6,
            "AdamW, blocks": 8,
            "lowgrad, blocks": 2,
            "rest": 4,
        },
    )
    peak = {"temporary": 2**30, "peak": 2**31, "refresh_peak": 2**31}
    kinds = [f"{a}, {b}" for b in ("kept", "recomputed") for a in ("AdamW", "lowgrad")]
    monkeypatch.setattr(
        expert_bytes,
        "step_memory",
        lambda name, rank, batch, tokens: {k: dict(peak, temporary=batch * 2**30) for k in kinds},
    )
    monkeypatch.setattr(
        train_step, "run", lambda *args, **options: {"name": "train_step", "ratio": 0.9}
    )

    def toy(config, corpus, steps, batch, tokens):
        return expert_subspaces.Toy(decoder(config), steps, None, (5.5, 2.5), corpus.valid)

    def energies(toy, sequences, tokens, pairs, share):
        row = {"width": 32, "rank": 32 // share, "common_rank": 10, "random": 1 / share}
        row |= {"own": 0.9, "shared": 0.7, "shared_equal_bytes": 0.8}
        sides = expert_subspaces.SIDES
        return [{"side": side.name, "tokens": sequences * tokens} | row for side in sides]

    def touched(toy, sizes, draws, longest):
        return [{"tokens": t, "uniform": 1.0, "start": 0.9, "trained": 0.5} for t in sizes]

    for fn in (energies, touched):
        monkeypatch.setattr(expert_subspaces, fn.__name__, fn)
    monkeypatch.setattr(expert_subspaces, "train", toy)
    monkeypatch.setattr(expert_subspaces, "skipping", lambda every: every**0.5)
    (tmp_path / "text.py").write_text("def f(x):\n    return x\n\n" * 400)
    return Size(**{**vars(SMALL), "data": str(tmp_path / "text.py")})


def test_every_statement_has_a_record_and_a_table(stubbed):
    found = list(expert_granular.run(stubbed))
    assert [title for title, _, _ in found] == list(expert_granular.TITLES.values())
    names = [record["name"] for _, record, _ in found]
    assert len(set(names)) == len(names)
    for _, record, rows in found:
        assert json.loads(json.dumps(record)) == record
        assert rows and all(set(row) == set(rows[0]) for row in rows)


def test_parameters_are_counted(stubbed):
    record, rows = expert_granular.parameters(stubbed)
    config = CONFIGS["moe-tiny"]
    tiny = config.parameters / config.active_parameters
    assert record["lines"]["moe-tiny"] == tiny and record["ours"] == pytest.approx(tiny, rel=1e-3)
    assert rows[1]["parameters"] == "6,919.2 M" and rows[1]["ratio"] == "5.4"


def test_state_saves_what_the_rows_say(stubbed):
    record, rows = expert_granular.state(stubbed)
    lines = record["lines"]["moe-tiny, r=8"]
    full, ours = lines["AdamW, float32"], lines["lowgrad, shared bases, 8 bits"]
    assert record["ratio"] == pytest.approx(full["state"] / ours["state"], rel=1e-3)
    assert rows[0]["state saved"] == rows[0]["with gradient"] == "1.0x"
    assert [row["scheme"] for row in rows] == list(lines)


def test_bound_turns_a_speedup_into_a_use_of_the_peak(stubbed):
    record, rows = expert_granular.bound(stubbed)
    assert rows[0]["8.6x needs a baseline at"] == f"{1.5 / 8.6:.1%}"
    rho = expert_bytes.weight_gradient_share(CONFIGS["moe-tiny"], 8)
    assert rows[1]["rho"] == f"{rho:.2f}"
    assert [row["step time measured, AdamW's = 1"] for row in rows] == ["", "0.90"]
    assert record == {"name": "experts: step time", "ratio": 0.9}


def test_memory_names_the_cost_in_arithmetic(stubbed):
    record, rows = expert_granular.memory(stubbed)
    assert len(rows) == 8 and record["ratio"] == 1
    cost = {r["gradients, activations"]: r["FLOPs per active weight and token"] for r in rows}
    assert (cost["AdamW, kept"], cost["AdamW, recomputed"]) == ("6.0", "8.0")
    assert float(cost["lowgrad, kept"]) < 6 < float(cost["lowgrad, recomputed"]) < 8


def test_subspaces_say_where_an_own_basis_pays(stubbed):
    model = decoder(CONFIGS["moe-tiny"])
    toy = expert_subspaces.Toy(model, None, None, (5.5, 2.5), np.zeros(100, np.uint8))
    record, rows = expert_granular.subspaces(toy, stubbed)
    assert record["ratio"] == pytest.approx(0.9 / 0.8) and record["nats"] == [5.5, 2.5]
    assert len(rows) == 2 * 2 * 4  # batches, ranks, sides
    assert rows[0]["one for all, same bytes"] == "0.800 (rank 10)"


def test_skipping_is_beside_an_adam_that_stands_still(stubbed):
    record, rows = expert_granular.skipped(stubbed)
    assert record["ours"] == 1 and record["baseline"] == 4
    assert rows[0]["Adam moves, beside skipping"] == "1.00x"


def test_a_table():
    assert markdown([{"a": 1, "b": "x"}]) == "| a | b |\n| --- | --- |\n| 1 | x |\n"


def test_main_leaves_tables_records_and_a_picture(stubbed, tmp_path, monkeypatch, capsys):
    run = expert_granular.run
    monkeypatch.setattr(expert_granular, "run", lambda: run(stubbed))
    monkeypatch.setattr("sys.argv", ["bench", str(tmp_path / "out")])
    expert_granular.main()
    out = capsys.readouterr().out
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert len(lines) == len(expert_granular.TITLES)
    page = (tmp_path / "out" / "expert_granular.md").read_text()
    assert all(f"### {title}" in page for title in expert_granular.TITLES.values())
    kept = json.loads((tmp_path / "out" / "expert_granular.json").read_text())
    assert set(kept) == {line["name"] for line in lines}
    assert (tmp_path / "out" / "expert_granular.png").read_bytes().startswith(b"\x89PNG")
