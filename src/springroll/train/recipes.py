"""Small models that learn sums from text. Imports no JAX."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from springroll.train.config import TrainConfig


def arithmetic() -> TrainConfig:
    """A first model to fine-tune: a decoder of 123,200 parameters half learns two-digit sums.

    Hardware: 2 CPU cores, under 1 GiB. Time: 1 minute of training. Expect about half of the
    held-out sums right, and a quarter to three quarters on another processor, since that is where
    the curve is steep. `springroll export runs/arithmetic models/arithmetic` makes it a folder.
    """
    return TrainConfig(
        out="runs/arithmetic",
        data="task:arithmetic digits=2",
        model="llama-120k",
        batch=32,
        sequence=64,
        valid_tokens=64,
        lr=1e-3,
        schedule="constant",
        generations=850,
    )


def arithmetic_rwkv7() -> TrainConfig:
    """The same text for an RWKV-7 of 46,400 parameters, whose memory is a matrix per head.

    Hardware: 2 CPU cores, under 1 GiB. Time: 1 minute of training. Expect a quarter to three
    quarters of the held-out sums right.
    """
    return replace(
        arithmetic(),
        out="runs/arithmetic-rwkv7",
        model="rwkv7-tiny",
        lr=3e-3,
        generations=500,
        remat=True,
    )


RECIPES: Mapping[str, Callable[[], TrainConfig]] = {
    "arithmetic": arithmetic,
    "arithmetic-rwkv7": arithmetic_rwkv7,
}
