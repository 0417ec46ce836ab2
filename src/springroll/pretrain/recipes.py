"""Byte language models learnt from text by evolution. Imports no JAX."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from springroll.pretrain.config import PretrainConfig


def demo() -> PretrainConfig:
    """A first look: an int8 model of one layer, 64 wide, learns Python's own source.

    Hardware: 2 CPU cores, under 1 GiB. Time: 85 seconds of training. Expect validation bits per
    byte 0.35 or more below the unigram line of that text.
    """
    return PretrainConfig(
        out="runs/demo",
        data="stdlib",
        n_layers=1,
        hidden=64,
        precision="int8",
        pop_size=1024,
        rank=1,
        tokens_per_member=16,
        streams=128,
        lr_half_life=4000.0,
        seconds=85.0,
    )


def bigram() -> PretrainConfig:
    """Ten minutes for the bigram line: the model and text of `demo`, with a later decay.

    Hardware: 2 CPU cores, under 1 GiB. Time: 10 minutes of training. Expect validation bits per
    byte near what a table of byte pairs reaches.
    """
    return replace(demo(), out="runs/bigram", lr_half_life=6000.0, seconds=600.0)


def article() -> PretrainConfig:
    """The size of arXiv 2511.16652, section 6: 262,144 members, 6 layers, 256 wide, on MiniPile.

    Hardware: made for one large accelerator; any machine with 8 GiB completes generations, in
    minutes each on a CPU. Time: until stopped. Needs the extra `data` and the network.
    """
    return PretrainConfig(
        out="runs/article",
        data="minipile",
        n_layers=6,
        hidden=256,
        precision="int8",
        pop_size=262144,
        rank=1,
        tokens_per_member=100,
    )


RECIPES: Mapping[str, Callable[[], PretrainConfig]] = {
    "demo": demo,
    "bigram": bigram,
    "article": article,
}
