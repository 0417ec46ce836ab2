"""Small models that learn sums from text, and then from a reward. Imports no JAX."""

from dataclasses import replace

from springroll.finetune.config import FinetuneConfig
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


def arithmetic_es() -> FinetuneConfig:
    """The decoder of `arithmetic` learns the rest from a reward, by evolution: no gradient.

    Hardware: 2 CPU cores, 2 GiB. Time: 5 minutes. Expect 10 points more held-out sums right, or
    better. Start from `springroll export runs/arithmetic models/arithmetic`.
    """
    return FinetuneConfig(
        out="runs/arithmetic-es",
        model="models/arithmetic",
        task="arithmetic digits=2",
        pop_size=256,
        prompts=32,
        max_tokens=8,
        lr=0.01,
        lr_half_life=20.0,
        seconds=300.0,
    )


def arithmetic_grpo() -> FinetuneConfig:
    """The same by GRPO, the gradient baseline, for as long.

    Hardware: 2 CPU cores, 1 GiB. Time: 5 minutes.
    """
    return FinetuneConfig(
        out="runs/arithmetic-grpo",
        model="models/arithmetic",
        task="arithmetic digits=2",
        method="grpo",
        pop_size=16,
        prompts=32,
        max_tokens=8,
        seconds=300.0,
    )
