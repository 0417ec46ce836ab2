"""Which rule moves int8 weights best: validation bits per byte at equal tokens, three seeds each.

The published rule in the published arithmetic, the same rule mended (symmetric rounding, no move
without a vote) in ours, and the rule with memory (momentum and residuals, four bytes per weight).

    python -m springroll.bench.lattice_rules [GENERATIONS] [FOLDER]

With a folder, it writes lattice_rules.json, .md and .png there.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from springroll.bench import measure
from springroll.train.pretrain import PretrainConfig, build, use_cpu_devices

VARIANTS: dict[str, dict[str, Any]] = {
    "published": {"precision": "compat", "rule": "published"},
    "mended": {"precision": "int8", "rule": "threshold"},
    "residual": {"precision": "int8", "rule": "residual"},
}
# Of learning rate and alpha alike: about the length of a run.
DEFAULTS: dict[str, Any] = {"decay": 1000.0}
POINTS = 12  # validations per run


def run(
    generations: int = 1200, seeds: tuple[int, ...] = (0, 1, 2), **options: Any
) -> dict[str, Any]:
    """Curves of every variant and seed; `options` are fields of PretrainConfig."""
    curves: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    at = sorted({round(x) for x in np.linspace(0, generations, POINTS + 1)})
    for seed in seeds:
        for name, variant in VARIANTS.items():
            config = PretrainConfig(seed=seed, **(DEFAULTS | options | variant))
            curves[name].append(curve(config, at))
    final = {name: [c[-1] for c in found] for name, found in curves.items()}
    mean = {name: statistics.mean(values) for name, values in final.items()}
    config = PretrainConfig(**options)
    lines = build(config).lines
    return measure.record(
        "lattice_rules",
        ours=mean["residual"],
        baseline=mean["published"],
        ratio=mean["residual"] / mean["published"],
        unit="validation bits per byte at equal tokens",
        final=final,
        tokens=[g * config.pop_size * config.tokens for g in at],
        curves=curves,
        lines=lines,
        size=f"{config.n_layers}x{config.hidden}, {config.pop_size} members",
    )


def curve(config: PretrainConfig, at: list[int]) -> list[float]:
    """Validation bits per byte after each of the generations `at`."""
    task = build(config).task
    assert task.validate is not None
    state, carry = task.init()
    values = [float(task.validate(state)["valid_bits_per_byte"])]
    for generation in range(at[-1]):
        members = task.ask(state)
        fitness, carry, _ = task.evaluate(state, members, carry, task.batch(generation))
        state, _ = task.tell(state, members, np.asarray(fitness))
        if generation + 1 in at:
            values.append(float(task.validate(state)["valid_bits_per_byte"]))
    return values


def table(result: dict[str, Any]) -> str:
    """Markdown: a row per rule, a column per seed."""
    seeds = len(next(iter(result["final"].values())))
    head = ["rule", *(f"seed {i}" for i in range(seeds)), "mean"]
    rows = [head, ["---"] * len(head)]
    for name, values in result["final"].items():
        cells = [*values, statistics.mean(values)]
        rows.append([name, *(f"{v:.3f}" for v in cells)])
    for name, bits in result["lines"].items():
        rows.append([name.removesuffix("_bits_per_byte"), *[""] * seeds, f"{bits:.3f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """The mean curve of each rule over its seeds, and the range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    tokens = np.array(result["tokens"]) / 1e6
    for name, curves in result["curves"].items():
        low, mean, high = np.min(curves, 0), np.mean(curves, 0), np.max(curves, 0)
        (line,) = axes.plot(tokens, mean, label=name)
        axes.fill_between(tokens, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    for name in ("unigram", "bigram"):
        bits = result["lines"][f"{name}_bits_per_byte"]
        axes.axhline(bits, color="grey", linewidth=0.8, linestyle=":")
        axes.annotate(name, (tokens[-1], bits), ha="right", va="bottom", color="grey", fontsize=8)
    top = result["lines"]["unigram_bits_per_byte"] + 1
    axes.set(
        ylim=(None, top),  # the first steps leave 8.6 in no time
        xlabel="million tokens, all members together",
        ylabel="validation bits per byte",
        title=f"Integer rules, {result['size']}, mean and range of seeds",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    use_cpu_devices(None)
    result = run(int(sys.argv[1]) if len(sys.argv) > 1 else 1200)
    measure.report({k: v for k, v in result.items() if k not in ("curves", "tokens")})
    print(table(result))
    if len(sys.argv) > 2:
        folder = Path(sys.argv[2])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lattice_rules.json").write_text(json.dumps(result, indent=1) + "\n")
        (folder / "lattice_rules.md").write_text(table(result))
        draw(result, folder / "lattice_rules.png")


if __name__ == "__main__":
    main()
