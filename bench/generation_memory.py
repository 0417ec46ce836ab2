"""Peak of a generation of fine-tuning by evolution, of all that is in memory, from the compiler.

    python -m bench.generation_memory [MODEL] [WEIGHTS] [MEMBERS] [PROMPTS]

Nothing is run and no weight is made. Members answer prompts of 128 tokens with up to 64, all side
by side; prompts at once are what the plan chooses, with a quarter more memory than weights, keys
and values, and factors take. The momentum of SGD is made again over 44 generations. Counted are
weights, what is kept beside them, factors of all members and of the groups that write, keys and
values, and the largest of what reading, writing and updating take at their peak. `ratio` is that
peak over weights, keys and values, and factors of the members. WEIGHTS is bfloat16, float32 or
int8, which keeps half a byte of rounding beside each weight of a large model; that is not in the
divisor.

    python -m bench.generation_memory qwen2.5-7b int8 64 2
"""

import sys
from dataclasses import replace
from typing import Any

from springroll.bench import measure
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.generation_plan import generation_plan, shapes_of
from springroll.finetune.setup import resolved
from springroll.finetune.traced_plan import traced_plan
from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig, named

GIB = 1 << 30
TOKENS = 128  # of a prompt
ROOM = 1.25


def run(
    model: str | DecoderConfig = "qwen2.5-1.5b", platform: str | None = None, **options: Any
) -> dict[str, Any]:
    """GiB of a generation; `options` are fields of FinetuneConfig."""
    shape = named(model) if isinstance(model, str) else model
    given = {"pop_size": 64, "prompts": 4, "max_tokens": 64, "weights": "bfloat16"} | options
    momentum = {"momentum": 0.9, "momentum_generations": 44}
    config = resolved(FinetuneConfig(**given | momentum), shape.parameters)
    shapes = shapes_of(config, decoder(shape))
    all_rows = replace(config, rows=config.population * config.num_prompts)
    free = generation_plan(all_rows, shapes, TOKENS, 1 << 50, None)
    factors = config.population // 2 * shapes.perturbation.bytes_per_pair()
    floor = free.taken.weights + free.taken.cache + factors
    plan = generation_plan(all_rows, shapes, TOKENS, int(ROOM * floor), None)
    asked = traced_plan(all_rows, decoder(shape), TOKENS, plan, platform)
    taken = asked.taken
    return measure.record(
        "generation_memory",
        ours=taken.peak / GIB,
        baseline=floor / GIB,
        ratio=taken.peak / floor,
        unit="GiB of a generation; baseline: weights, keys and values, factors",
        weights_type=config.weights,
        members=config.population,
        prefill_tokens=plan.prefill_tokens,
        estimated=plan.taken.peak / GIB,
        **{kind.replace(" ", "_"): size / GIB for kind, size in taken.sizes().items() if size},
    )


def main() -> None:
    usual = ("qwen2.5-1.5b", "bfloat16", "64", "4")
    model, weights, members, prompts = (*sys.argv[1:], *usual[len(sys.argv) - 1 :])
    options = {"weights": weights, "pop_size": int(members), "prompts": int(prompts)}
    measure.report(run(model, **options))


if __name__ == "__main__":
    main()
