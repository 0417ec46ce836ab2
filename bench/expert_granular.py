"""Expert-granular low-rank gradients: what a blog post says of them, statement by statement.

    python -m bench.expert_granular [FOLDER]

Prints one JSON line per statement and the tables of docs/expert-granular.md; with FOLDER it also
writes them there, and the figure. Some minutes on two cores. Perplexity is a bench of its own:
`springroll bench lowgrad_quality`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import expert_bytes, expert_subspaces, train_step
from springroll.bench import measure
from springroll.markdown import markdown_table
from springroll.models.decoder_config import CONFIGS
from springroll.tasks.corpus import load_corpus

MB, GB, GIB, MIB = 1e6, 1e9, 2**30, 2**20
FACTORS = (8.6, 10.9, 11.0)  # by which training time falls in the post's table
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured; the defaults are those of the document."""

    models: tuple[str, ...] = (
        "moe-1m",
        "moe-4m",
        "olmoe-1b-7b",
        "qwen3-30b-a3b",
        "qwen3-235b-a22b",
        "gpt-oss-20b",
        "gpt-oss-120b",
    )
    states: tuple[tuple[str, int], ...] = (
        ("olmoe-1b-7b", 256),
        ("olmoe-1b-7b", 512),
        ("moe-1m", 32),
    )
    step: tuple[str, int] = ("olmoe-1b-7b", 512)
    batches: tuple[tuple[int, int], ...] = ((1, 256), (8, 512))  # sequences, tokens
    toy: str = "moe-1m"
    rank: int = 32
    data: str = "stdlib"
    max_bytes: int = 8_000_000
    steps: int = 200
    batch: tuple[int, int] = (16, 128)
    energy: tuple[tuple[int, int, int], ...] = (
        (32, 128, 2),
        (1, 64, 6),
    )  # sequences, tokens, pairs
    shares: tuple[int, ...] = (4, 8)
    fine: tuple[int, int] = (64, 8)  # experts, experts per token
    touched: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    repeats: int = 11


def parameters(size: Size) -> tuple[Row, list[Row]]:
    """Statement 1: experts save arithmetic, not memory."""
    found = {name: expert_bytes.parameters(CONFIGS[name]) for name in size.models}
    table = [
        {
            "model": name,
            "parameters": f"{row['total'] / 1e6:,.1f} M",
            "met by a token": f"{row['active'] / 1e6:,.1f} M",
            "ratio": f"{row['ratio']:.1f}",
            "forward, MFLOP per token": f"{row['forward_flops_per_token'] / 1e6:,.0f}",
            "weights in bfloat16": f"{row['weights_bytes'] / MB:,.0f} MB",
            "AdamW's moments in float32": f"{row['adam_bytes'] / MB:,.0f} MB",
        }
        for name, row in found.items()
    ]
    ratios = {name: row["ratio"] for name, row in found.items()}
    low, high = min(ratios.values()), max(ratios.values())
    return measure.record("experts: parameters", low, high, high / low, lines=ratios), table


def state(size: Size) -> tuple[Row, list[Row]]:
    """Statement 2: gradients and optimizer state of the experts."""
    table: list[Row] = []
    lines: dict[str, Any] = {}
    for name, rank in size.states:
        rows = expert_bytes.expert_state(name, rank)
        lines[f"{name}, r={rank}"] = rows
        full = rows["AdamW, float32"]
        unit, label = (GB, "GB") if full["state"] > GB else (MB, "MB")
        for scheme, row in rows.items():
            both = row["state"] + row["gradient"]
            table.append(
                {"model": name, "rank": rank, "scheme": scheme}
                | {part: f"{size_ / unit:.2f} {label}" for part, size_ in row.items()}
                | {"state saved": f"{full['state'] / row['state']:.1f}x"}
                | {"with gradient": f"{(full['state'] + full['gradient']) / both:.1f}x"}
            )
    first = next(iter(lines.values()))
    ours = first["lowgrad, shared bases, 8 bits"]["state"]
    base = first["AdamW, float32"]["state"]
    return measure.record(
        "experts: state", ours, base, base / ours, unit="bytes", lines=lines
    ), table


def sent(size: Size) -> tuple[Row, list[Row]]:
    """Statement 3: bytes that data parallelism sends."""
    found = expert_bytes.sent_elsewhere(size.toy, size.rank)
    full, low = found["AdamW, blocks"], found["lowgrad, blocks"]
    table = [
        {
            "": label,
            "matrices of the blocks": f"{found[f'{label}, blocks'] / MIB:.2f} MiB",
            "everything": f"{found[label] / MIB:.2f} MiB",
        }
        for label in ("AdamW", "lowgrad")
    ]
    kind = "bytes all-reduced per step and device, 8 devices"
    return measure.record("experts: sent", low, full, full / low, unit=kind, lines=found), table


def subspaces(toy: expert_subspaces.Toy, size: Size) -> tuple[Row, list[Row]]:
    """Statement 4: a basis per expert, or one for all experts of a layer."""
    rows = [
        row
        for sequences, tokens, pairs in size.energy
        for share in size.shares
        for row in expert_subspaces.energies(toy, sequences, tokens, pairs, share)
    ]
    table = [
        {
            "tokens": row["tokens"],
            "bases of": row["side"],
            "rank": f"{row['rank']} of {row['width']}",
            "own": f"{row['own']:.3f}",
            "one for all, same rank": f"{row['shared']:.3f}",
            "one for all, same bytes": (
                f"{row['shared_equal_bytes']:.3f} (rank {row['common_rank']})"
            ),
            "random": f"{row['random']:.3f}",
        }
        for row in rows
    ]
    best = max(rows, key=lambda row: row["own"] - row["shared_equal_bytes"])
    own, shared = best["own"], best["shared_equal_bytes"]
    unit = f"energy of the next batch kept, {best['side']}, where an own basis pays most"
    result = measure.record("experts: subspaces", own, shared, own / shared, unit=unit, lines=rows)
    return result | {"nats": [round(x, 3) for x in toy.nats]}, table


def bound(size: Size) -> tuple[Row, list[Row]]:
    """Statement 5: how much faster a step can get, and how much faster it is."""
    name, rank = size.step
    shares = {
        "gradients of weights cost nothing": 0.0,
        f"{name}, rank {rank}": expert_bytes.weight_gradient_share(CONFIGS[name], rank),
        f"{size.toy}, rank {size.rank}": expert_bytes.weight_gradient_share(
            CONFIGS[size.toy], size.rank
        ),
    }
    found = train_step.run(
        size.toy, *size.batch, optimizers=("adamw", "lowgrad"), repeats=size.repeats
    )
    measured = {f"{size.toy}, rank {size.rank}": f"{found['ratio']:.2f}"}
    table = [
        {
            "": label,
            "rho": f"{rho:.2f}",
            "at most, at equal use of the peak": f"{expert_bytes.most_speedup(1, rho):.2f}x",
            "step time measured, AdamW's = 1": measured.get(label, ""),
        }
        | {
            f"{factor}x needs a baseline at": f"{expert_bytes.most_speedup(factor, rho):.1%}"
            for factor in FACTORS
        }
        for label, rho in shares.items()
    ]
    return found | {"name": "experts: step time"}, table


def memory(size: Size) -> tuple[Row, list[Row]]:
    """Statement 8: low-rank gradients beside recomputation."""
    name, rank = size.step
    rho = expert_bytes.weight_gradient_share(CONFIGS[name], rank)
    flops = {"AdamW, kept": 6.0, "AdamW, recomputed": 8.0}
    flops |= {"lowgrad, kept": 4 + 2 * rho, "lowgrad, recomputed": 6 + 2 * rho}
    lines, table = {}, []
    for batch, tokens in size.batches:
        rows = expert_bytes.step_memory(name, rank, batch, tokens)
        lines[f"{batch} x {tokens} tokens"] = rows
        table += [
            {"tokens": f"{batch} x {tokens}", "gradients, activations": label}
            | {part.replace("_", " "): f"{size_ / GIB:.1f} GiB" for part, size_ in row.items()}
            | {"FLOPs per active weight and token": f"{flops[label]:.1f}"}
            for label, row in rows.items()
        ]
    last = next(reversed(lines.values()))
    ours, base = last["lowgrad, kept"]["temporary"], last["AdamW, recomputed"]["temporary"]
    unit = "temporary bytes: low-rank with activations kept, beside AdamW with recomputation"
    return measure.record("experts: memory", ours, base, base / ours, unit=unit, lines=lines), table


def touched(toy: expert_subspaces.Toy, size: Size) -> tuple[Row, list[Row]]:
    """Statement 9: which experts a step leaves alone."""
    longest = size.batch[1]
    rows = expert_subspaces.touched(toy, size.touched, draws=2, longest=longest)
    table = [
        {
            "tokens in a step": row["tokens"],
            "uniform choice": f"{row['uniform']:.1%}",
            "untrained routers": f"{row['start']:.1%}",
            "trained routers": f"{row['trained']:.1%}",
        }
        for row in rows
    ]
    last = rows[-1]
    result = measure.record(
        "experts: touched",
        last["trained"],
        last["uniform"],
        last["trained"] / last["uniform"],
        unit=f"share of experts with a token, of {last['tokens']}",
        lines=rows,
    )
    return result | {"nats": [round(x, 3) for x in toy.nats]}, table


def skipped(size: Size) -> tuple[Row, list[Row]]:
    """Statement 9, continued: what leaving idle experts out does to Adam."""
    found = {every: expert_subspaces.skipping(every) for every in (1, 2, 4, 16, 64)}
    table = [
        {"a token on every ... step": every, "Adam moves, beside skipping": f"{moved:.2f}x"}
        for every, moved in found.items()
    ]
    lines = {str(every): moved for every, moved in found.items()}
    return measure.record("experts: skipping", 1.0, found[16], found[16], lines=lines), table


TITLES: dict[Callable[..., Any], str] = {
    parameters: "1. Active parameters",
    state: "2. Gradients and optimizer state of the experts",
    sent: "3. Communication",
    subspaces: "4. A basis per expert: energy of the next batch kept",
    bound: "5. The most that time can fall",
    memory: "8. Beside recomputation",
    touched: "9. Experts with at least one token",
    skipped: "9. Adam with and without idle steps",
}


def run(size: Size | None = None) -> Iterable[tuple[str, Row, list[Row]]]:
    """(title, JSON record, table) of every statement, as they come."""
    size = size or Size()
    corpus = load_corpus(size.data, max_bytes=size.max_bytes)
    config = CONFIGS[size.toy]
    fine = expert_subspaces.fine_grained(config, *size.fine)
    toys: dict[Any, Callable[[], Any]] = {
        subspaces: lambda: expert_subspaces.train(config, corpus, size.steps, *size.batch),
        touched: lambda: expert_subspaces.train(fine, corpus, size.steps // 2, *size.batch),
    }
    for statement, title in TITLES.items():
        arguments = (toys[statement](), size) if statement in toys else (size,)
        yield title, *statement(*arguments)


def markdown(rows: list[Row]) -> str:
    """A table."""
    return markdown_table([list(rows[0]), *([str(x) for x in row.values()] for row in rows)])


def draw(path: Path, energy: list[Row], share: list[Row], wide: int) -> None:
    """Energy kept by bases of either kind, and experts touched, as a PNG.

    Args:
        energy: the lines of `subspaces`; those of `wide` tokens and the smallest rank are drawn.
        share: the lines of `touched`.
    """
    from matplotlib.figure import Figure

    least = min(row["random"] for row in energy)
    rows = [row for row in energy if row["tokens"] == wide and row["random"] == least]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = {"own": "own basis", "shared_equal_bytes": "one for all, same bytes"}
    for i, (key, label) in enumerate(labels.items()):
        places = [x + 0.4 * i for x in range(len(rows))]
        left.bar(places, [row[key] for row in rows], width=0.38, label=label)
    names = [row["side"].replace(", ", "\n") for row in rows]
    left.set_xticks([x + 0.2 for x in range(len(rows))], names, fontsize=8)
    left.set(ylim=(0, 1.25), yticks=(0, 0.25, 0.5, 0.75, 1))
    left.set_title(f"energy of the next {wide} tokens kept, rank {least:g} x width", fontsize=10)
    for key, label in (
        ("uniform", "uniform choice"),
        ("start", "untrained routers"),
        ("trained", "trained routers"),
    ):
        right.semilogx([r["tokens"] for r in share], [r[key] for r in share], label=label)
    right.set(ylim=(0, 1.02), xlabel="tokens in a step")
    right.set_title("share of experts with at least one token", fontsize=10)
    for axes, place in ((left, "upper right"), (right, "lower right")):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc=place)
    figure.savefig(path, dpi=150)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    records, page = {}, ""
    for title, record, table in run():
        measure.report(record)
        records[record["name"]] = record
        part = f"### {title}\n\n{markdown(table)}\n"
        print(part, flush=True)
        page += part
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "expert_granular.md").write_text(page)
    (folder / "expert_granular.json").write_text(json.dumps(records, indent=1) + "\n")
    energy, share = (records[f"experts: {name}"]["lines"] for name in ("subspaces", "touched"))
    draw(folder / "expert_granular.png", energy, share, max(row["tokens"] for row in energy))


if __name__ == "__main__":
    main()
