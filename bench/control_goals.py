"""The quick recipes of `springroll rl` beside what they are to reach, with three seeds each.

Every run is the command that users type, in a process of its own; its time is that of the process,
from start to end: importing, compiling, training, validating and drawing.

    python -m bench.control_goals [--recipes NAME ...] [--seeds N] [--out FOLDER]

Runs are kept in FOLDER and not repeated: an interrupted bench goes on. It prints the table, and
writes it to FOLDER/control_goals.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from springroll.atomic import write_json
from springroll.bench import measure
from springroll.markdown import markdown_table
from springroll.rl.recipes import QUICK

# The mean return over 100 episodes of the final policy, and how many times that of random actions.
GOALS: dict[str, tuple[float | None, float | None]] = {
    "quick-cartpole": (475.0, None),
    "quick-pendulum": (-250.0, None),
    "quick-empty": (0.9, None),
    "quick-inverted-pendulum": (990.0, None),
    "quick-snake": (None, 1.5),
    "quick-game2048": (None, 1.5),
}


def run(
    folder: str = "runs/control_goals",
    recipes: Sequence[str] = tuple(QUICK),
    seeds: int = 3,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Make the runs that are not there yet; how many reached their goal, of how many.

    Args:
        options: further ones of `springroll rl`.
    """
    root = Path(folder)
    rows = {
        name: [summary(root / name / f"seed-{seed}", name, seed, options) for seed in range(seeds)]
        for name in recipes
    }
    head = ["recipe", "goal", "random", *(f"seed {seed}" for seed in range(seeds)), "seconds"]
    text = markdown_table([head, *(line(name, found) for name, found in rows.items())])
    root.mkdir(parents=True, exist_ok=True)
    (root / "control_goals.md").write_text(text)
    print(text, file=sys.stderr)
    all_runs = [(name, each) for name, found in rows.items() for each in found]
    return {"reached": sum(reached(*each) for each in all_runs), "runs": len(all_runs)}


def summary(out: Path, recipe: str, seed: int, options: Sequence[str]) -> dict[str, Any]:
    """What a run came to, made if it is not there; with the seconds of its process."""
    took = out / "process_seconds.json"
    if not took.exists():
        words = ["rl", "--recipe", recipe, "--seed", str(seed), "--out", str(out), *options]
        words += ["--resume"] * (out / "config.json").exists()
        print("springroll", *words, file=sys.stderr)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "springroll", *words], check=True, stdout=sys.stderr)
        write_json(took, {"seconds": time.perf_counter() - start})
    found = json.loads((out / "summary.json").read_text())
    return found | {"process_seconds": json.loads(took.read_text())["seconds"]}


def reached(recipe: str, found: dict[str, Any]) -> bool:
    """Whether the goal was."""
    least, times = GOALS[recipe]
    goal = least if times is None else times * found["random_return"]
    return goal is None or found["eval_return"] >= goal


def line(recipe: str, found: list[dict[str, Any]]) -> list[str]:
    """A row of the table."""
    least, times = GOALS[recipe]
    return [
        recipe,
        f"{least:g}" if times is None else f"{times:g} x random",
        f"{statistics.mean(each['random_return'] for each in found):.4g}",
        *(f"{each['eval_return']:.4g}" for each in found),
        f"{max(each['process_seconds'] for each in found):.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=list(QUICK), choices=list(QUICK))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="runs/control_goals")
    given = parser.parse_args()
    found = run(given.out, given.recipes, given.seeds)
    measure.report(
        measure.record(
            "control_goals", found["reached"], found["runs"], found["reached"] / found["runs"]
        )
    )


if __name__ == "__main__":
    main()
