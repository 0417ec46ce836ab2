"""Fine-tuning on int8 weights beside float32 ones: held-out accuracy, and bytes per parameter.

A small decoder learns two-digit sums from text until it gets half of them right (the recipe
`arithmetic`). Then evolution goes on from it for so many generations, on the same problems:

    float32         weights as they are
    exact           int8 weights, and float32 ones beside them that take the steps
    error feedback  int8 weights, and what rounding leaves of each in a second byte
    half a byte     the same in 4 bits, the rest of the model in bfloat16
    8-bit momentum  the same, the momentum in 8 bits

    python -m bench.int8_finetune [GENERATIONS] [SEEDS] [FOLDER]

FOLDER keeps the pretrained model (runs/int8_finetune); more than half an hour on 2 cores for three
seeds.
"""

import statistics
import sys
from pathlib import Path
from typing import Any

import jax

from springroll.bench import measure
from springroll.bench.finetune_vs_grpo import pretrained
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.job import task_of
from springroll.finetune.setup import prepare
from springroll.trees import tree_bytes

RUNS: dict[str, dict[str, Any]] = {  # fields of FinetuneConfig
    "float32": {"weights": "float32"},
    "exact": {"weights": "int8", "rounding": "float32"},
    "error feedback": {"weights": "int8"},
    "half a byte": {"weights": "int8", "residual_bits": 4, "unquantized": "bfloat16"},
    "8-bit momentum": {"weights": "int8", "state_bits": 8},
}


def tuned(config: FinetuneConfig, generations: int) -> dict[str, Any]:
    """Accuracy before and after so many generations; bytes per parameter of what is kept."""
    setup = prepare(config)
    task = task_of(config, setup)
    assert task.validate is not None
    state, carry = task.init()
    before = task.validate(state, carry)["valid_accuracy"]
    for generation in range(generations):
        members = task.ask(state)
        scores, carry, _ = task.evaluate(state, members, carry, task.batch(generation))
        state, _ = task.tell(state, members, scores)
    kept = {"weights": state.params, "residual": state.master, "optimizer": state.opt_state}
    layers = dict(zip(kept, map(of_matrices, kept.values()), strict=True))
    count = sum(x.size for x in layers["weights"] if x.ndim > 2)
    return {
        "before": float(before),
        "after": float(task.validate(state, carry)["valid_accuracy"]),
        "bytes": {name: tree_bytes(tree) / setup.parameters for name, tree in kept.items()},
        "bytes_of_matrices": {name: tree_bytes(found) / count for name, found in layers.items()},
    }


def of_matrices(tree: Any) -> list[jax.Array]:
    """What belongs to the matrices of the layers: themselves, scales, residuals, moments."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [x for path, x in found if "_proj" in jax.tree_util.keystr(path)]


def run(model: Path, generations: int = 30, seeds: int = 1, **options: Any) -> dict[str, Any]:
    """All variants from the `model` in a folder; `options` are fields of FinetuneConfig."""
    usual = {"model": str(model), "task": "arithmetic", "max_tokens": 8}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
    for seed in range(seeds):
        for name, fields in RUNS.items():
            given: dict[str, Any] = {**usual, "seed": seed, **fields, **options}
            found[name].append(tuned(FinetuneConfig(**given), generations))
            print(f"{name}, seed {seed}: {found[name][-1]}", file=sys.stderr, flush=True)
    mean = lambda name, key: statistics.mean(each[key] for each in found[name])
    gain = {name: mean(name, "after") - mean(name, "before") for name in RUNS}
    return measure.record(
        "int8_finetune",
        ours=gain["error feedback"],
        baseline=gain["float32"],
        ratio=gain["error feedback"] / gain["float32"] if gain["float32"] else float("nan"),
        unit="gain of held-out accuracy, mean over seeds",
        generations=generations,
        seeds=seeds,
        before={name: mean(name, "before") for name in RUNS},
        after={name: [each["after"] for each in found[name]] for name in RUNS},
        bytes_per_parameter={name: found[name][0]["bytes"] for name in RUNS},
        bytes_per_matrix_weight={name: found[name][0]["bytes_of_matrices"] for name in RUNS},
    )


def main() -> None:
    usual = ("30", "1", "runs/int8_finetune")
    generations, seeds, folder = (*sys.argv[1:], *usual[len(sys.argv) - 1 :])
    model = pretrained(Path(folder), ())
    measure.report(run(model, int(generations), int(seeds)))


if __name__ == "__main__":
    main()
