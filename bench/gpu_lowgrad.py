"""Everything of low-rank gradients that is worth timing on one accelerator, unattended.

    python -m bench.gpu_lowgrad                # under 10 minutes on one H100-class GPU
    python -m bench.gpu_lowgrad --small        # the same on a CPU in a minute, for tests

Prints one JSON line per measurement and writes them all, with chip and date, to bench/results/.

- train_step: a bfloat16 step of 350M and 1B models with each optimizer beside AdamW's (the GaLore
  repository's 1B on an A100: AdamW 1,257 tokens/s, GaLore 1,109); the target for lowgrad is 1.15x
  AdamW's tokens per second at an equal batch.
- subspace_refresh: a power step beside a full SVD at 4096 x 4096.
- mixture: a step of a model with 64 experts.
"""

from typing import Any

from bench import subspace_refresh, train_step, unattended


def step(model: str, batch: int, tokens: int, repeats: int, **options: Any) -> dict[str, Any]:
    fast = {"optimizers": ("adamw", "lowgrad", "apollo", "apollo-mini"), "dtype": "bfloat16"}
    return train_step.run(model, batch, tokens, repeats=repeats, **(fast | options))


def refresh(size: int, rank: int) -> dict[str, Any]:
    return subspace_refresh.run((rank,), size, size, repeats=3)[0]


def measurements(small: bool) -> list[tuple[str, Any]]:
    """Names and calls, the quick ones first."""
    if small:
        tiny = {"rank": 8, "refresh_interval": 4, "optimizers": ("adamw", "lowgrad")}
        return [
            ("train_step", lambda: step("llama-tiny", 2, 16, 2, **tiny)),
            ("mixture", lambda: step("moe-tiny", 2, 16, 2, **tiny)),
            ("refresh", lambda: refresh(128, 16)),
        ]
    both = ("adamw", "lowgrad")
    return [
        ("refresh 256", lambda: refresh(4096, 256)),
        ("refresh 1024", lambda: refresh(4096, 1024)),
        ("350m", lambda: step("llama-350m", 16, 256, 9)),
        ("1b", lambda: step("llama-1b", 16, 256, 7, remat=True)),
        ("7b", lambda: step("llama-7b", 4, 256, 5, remat=True, optimizers=both)),
        ("mixture", lambda: step("olmoe-1b-7b", 4, 256, 5, remat=True, optimizers=both)),
    ]


if __name__ == "__main__":
    unattended.script("gpu_lowgrad", str(__doc__).splitlines()[0], measurements)
