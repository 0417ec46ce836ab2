"""A run as a function that returns its full config; the docstring says where, how long, how good.

`springroll pretrain --recipe NAME` starts from one; other options override it. A new recipe is a
function like those in `text.py` and a line here.
"""

from collections.abc import Callable

from springroll.recipes import text
from springroll.train.pretrain import PretrainConfig

RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    "demo": text.demo,
    "bigram": text.bigram,
    "article": text.article,
}
