"""Which rule moves int8 weights best: validation bits per byte at equal tokens, three seeds each.

The published rule in the published arithmetic, the same rule mended (symmetric rounding, no move
without a vote) in ours, and the rule with memory (momentum and residuals, four bytes per weight).

    python -m bench.lattice_rules [GENERATIONS] [FOLDER]

With a folder, it writes lattice_rules.json, .md and .png there.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from springroll.bench import measure
from springroll.bench.lowgrad_quality import curve, draw, points, table
from springroll.cpu import use_cpu_devices
from springroll.pretrain.build import build
from springroll.pretrain.config import PretrainConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "published": {"precision": "compat", "rule": "published"},
    "mended": {"precision": "int8", "rule": "threshold"},
    "residual": {"precision": "int8", "rule": "residual"},
}
# Of learning rate and alpha alike: about the length of a run.
DEFAULTS: dict[str, Any] = {"lr_half_life": 1000.0}


def run(
    generations: int = 1200, seeds: tuple[int, ...] = (0, 1, 2), **options: Any
) -> dict[str, Any]:
    """Curves of every variant and seed; `options` are fields of PretrainConfig."""
    curves: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    at = points(generations)
    for seed in seeds:
        for name, variant in VARIANTS.items():
            config = PretrainConfig(seed=seed, **(DEFAULTS | options | variant))
            curves[name].append(curve(build(config).task, at))
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
        tokens=[g * config.pop_size * config.tokens_per_member for g in at],
        curves=curves,
        lines=lines,
        size=f"{config.n_layers}x{config.hidden}, {config.pop_size} members",
    )


def main() -> None:
    use_cpu_devices(None)
    result = run(int(sys.argv[1]) if len(sys.argv) > 1 else 1200)
    measure.report({k: v for k, v in result.items() if k not in ("curves", "tokens")})
    summary = table(result["final"], lines=result["lines"])
    print(summary)
    if len(sys.argv) > 2:
        folder = Path(sys.argv[2])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lattice_rules.json").write_text(json.dumps(result, indent=1) + "\n")
        (folder / "lattice_rules.md").write_text(summary)
        draw(
            folder / "lattice_rules.png",
            result["curves"],
            result["tokens"],
            result["lines"],
            title=f"Integer rules, {result['size']}, mean and range of seeds",
            top=result["lines"]["unigram_bits_per_byte"] + 1,
            xlabel="million tokens, all members together",
        )


if __name__ == "__main__":
    main()
