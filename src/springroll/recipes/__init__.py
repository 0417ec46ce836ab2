"""A run as a function that returns its full config; the docstring says where, how long, how good.

`springroll COMMAND --recipe NAME` starts from one; other options override it. A new recipe is a
function like those in `text.py` and a line here, below the command that runs it.
"""

from collections.abc import Callable, Mapping

from springroll.recipes import control, reasoning, text
from springroll.run.config import RunConfig

__all__ = ["RECIPES"]

RECIPES: dict[str, Mapping[str, Callable[[], RunConfig]]] = {
    "pretrain": {
        "demo": text.demo,
        "bigram": text.bigram,
        "article": text.article,
    },
    "train": {
        "arithmetic": reasoning.arithmetic,
        "arithmetic-rwkv7": reasoning.arithmetic_rwkv7,
    },
    "rl": control.RECIPES,
    "finetune": {
        "arithmetic-es": reasoning.arithmetic_es,
        "arithmetic-grpo": reasoning.arithmetic_grpo,
    },
}
