"""Which options make evolution learn most per second: one model and task, an arm per choice.

Every arm is `springroll finetune` with the options of `--base` and its own, for the same seconds
and with the same seeds, in a process of its own. The table has the held-out reward before and after
by the last weights, the gain with its standard error, and what the steps were like.

    python -m bench.finetune_search --base "--model FOLDER --task 'arithmetic digits=2'" \\
        --seconds 90 --seeds 2 --arm "usual:" --arm "fast: --lr 0.1" --arm "grpo: --method grpo"

Runs are kept in --out and not repeated: an interrupted search goes on, and an arm may be added
later. With a quiet machine and JAX_COMPILATION_CACHE_DIR set, arms differ in what they learn only.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.held_out import from_to, gain, judged_once, validations
from springroll.bench import measure
from springroll.markdown import markdown_table
from springroll.ranges import COUNT, SECONDS

HEAD = ["arm", "options", "seed", "held-out reward", "gain", "generations", "step / weights"]


class Arm(NamedTuple):
    """A choice of options."""

    name: str
    options: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> "Arm":
        """Of `NAME: --option value ...`; raises argparse.ArgumentTypeError for another."""
        name, colon, options = text.partition(":")
        if not colon or not name.isprintable() or not name.strip() or "/" in name:
            raise argparse.ArgumentTypeError(f"no arm {text!r}; expected NAME: --option value ...")
        return cls(name.strip(), tuple(shlex.split(options)))


def run(arm: Arm, seed: int, root: Path, base: tuple[str, ...], seconds: float) -> Path:
    """The folder of a run, made and judged if it is not there."""
    out = root / arm.name / f"seed-{seed}"
    given = ("--out", str(out), "--seed", str(seed), "--seconds", str(seconds))
    measure.command("finetune", *base, *given, *arm.options)
    judged_once(out)
    return out


def line(arm: Arm, out: Path) -> list[str]:
    """A row of the table."""
    found, last = judged_once(out), validations(out)[-1]
    mean, error = gain(found)
    return [
        *(arm.name, shlex.join(arm.options), out.name),
        from_to(found, "reward", "{:.3f}"),
        f"{mean:+.3f} ± {error:.3f}",
        f"{last['generation']:.0f}",
        f"{median_step(out):.1e}",
    ]


def median_step(out: Path) -> float:
    """The step in relation to the weights, the middle one of all rows that tell; 0: none does."""
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    ratios = sorted(row["step_ratio"] for row in rows if "step_ratio" in row)
    return ratios[len(ratios) // 2] if ratios else 0.0


def search(
    arms: Sequence[Arm], seeds: int, root: Path, base: tuple[str, ...], seconds: float
) -> dict[str, float]:
    """The mean gain of every arm; writes the table to `search.md`. Seed after seed, so that what
    an interrupted search has is comparable."""
    made = [(arm, run(arm, seed, root, base, seconds)) for seed in range(seeds) for arm in arms]
    rows = [line(arm, out) for arm in arms for of, out in made if of == arm]
    text = markdown_table([HEAD, *rows])
    (root / "search.md").write_text(text)
    print(text, file=sys.stderr)
    gains = lambda arm: [gain(judged_once(out))[0] for of, out in made if of == arm]
    return {arm.name: sum(gains(arm)) / seeds for arm in arms}


def main() -> None:
    parser = measure.Arguments(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=shlex.split, default=[], help="options of all arms")
    parser.add_argument("--arm", action="append", type=Arm.read, required=True)
    parser.add_argument("--out", default="runs/finetune_search")
    parser.add_number("--seconds", float, SECONDS, default=90.0)
    parser.add_number("--seeds", int, COUNT, default=1)
    given = parser.parse_args()
    gains = search(given.arm, given.seeds, Path(given.out), tuple(given.base), given.seconds)
    best = max(gains, key=lambda name: gains[name])
    first = gains[given.arm[0].name]
    ratio = gains[best] / first if first else 0.0
    measure.report(measure.record("finetune_search", gains[best], first, ratio, best=best))


if __name__ == "__main__":
    main()
