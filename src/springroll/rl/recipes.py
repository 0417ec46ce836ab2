"""The sixteen control tasks of the EGGROLL paper with the settings it chose. Imports no JAX.

The settings are those of the paper's random search (arXiv 2511.16652v2, appendix N), a row per task
and method. PPO's are those of the task in `rl/config.py`. Populations and episodes are the
paper's, made for a GPU; the quick recipes are for two CPU cores.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

from springroll.rl.config import Method, RLConfig, half_life_of, settings_for

SUFFIXES: dict[Method, str] = {"eggroll": "", "openes": "-openes", "ppo": "-ppo"}


class Row(NamedTuple):
    """One row of the paper's tables, where decays are factors per generation."""

    pop_size: int
    episodes: int
    rank: int
    optimizer: Literal["sgd", "adam", "adamw"]
    lr: float
    lr_decay: float
    sigma: float
    sigma_decay: float
    ranks: bool
    deterministic: bool


T, F = True, False
PAPER: dict[str, tuple[str, Row, Row]] = {  # name: (environment, EGGROLL, OpenES)
    "cartpole": (
        "CartPole-v1",
        Row(2048, 1, 4, "sgd", 0.1, 0.9995, 0.2, 0.999, F, F),
        Row(512, 4, 1, "adamw", 0.1, 0.9995, 0.5, 0.9995, T, T),
    ),
    "pendulum": (
        "Pendulum-v1",
        Row(4096, 1, 4, "adam", 0.01, 0.995, 0.05, 0.995, F, F),
        Row(4096, 4, 1, "adamw", 0.01, 0.995, 0.05, 1.0, F, T),
    ),
    "ant": (
        "brax-ant",
        Row(2048, 1, 1, "adam", 0.01, 0.9995, 0.05, 0.9995, F, F),
        Row(512, 8, 1, "adam", 0.1, 0.995, 0.05, 0.9995, F, F),
    ),
    "humanoid": (
        "brax-humanoid",
        Row(4096, 8, 1, "adam", 0.1, 1.0, 0.2, 0.9995, T, T),
        Row(1024, 8, 1, "sgd", 0.1, 0.995, 0.2, 0.995, T, F),
    ),
    "inverted-double-pendulum": (
        "brax-inverted_double_pendulum",
        Row(2048, 1, 2, "adam", 0.1, 1.0, 0.5, 0.995, T, T),
        Row(4096, 1, 1, "adam", 0.1, 0.995, 0.05, 1.0, T, T),
    ),
    "craftax-classic": (
        "craftax-Classic-Symbolic",
        Row(2048, 4, 1, "sgd", 0.01, 0.995, 0.05, 1.0, F, F),
        Row(4096, 8, 1, "adamw", 0.001, 0.995, 0.05, 0.995, F, F),
    ),
    "craftax": (
        "craftax-Symbolic",
        Row(512, 1, 4, "sgd", 0.01, 0.999, 0.05, 0.999, T, F),
        Row(1024, 4, 1, "adam", 0.1, 0.995, 0.5, 1.0, F, F),
    ),
    "game2048": (
        "jumanji-Game2048",
        Row(1024, 4, 1, "adamw", 0.1, 1.0, 0.5, 0.9995, F, F),
        Row(1024, 4, 1, "adamw", 0.01, 0.999, 0.05, 0.9995, T, T),
    ),
    "knapsack": (
        "jumanji-Knapsack",
        Row(1024, 4, 4, "sgd", 0.1, 0.999, 0.05, 1.0, T, F),
        Row(2048, 1, 1, "adamw", 0.01, 1.0, 0.5, 0.995, T, F),
    ),
    "snake": (
        "jumanji-Snake",
        Row(4096, 8, 1, "adam", 0.001, 0.9995, 0.05, 0.9995, T, F),
        Row(2048, 1, 1, "sgd", 0.001, 1.0, 0.2, 1.0, F, F),
    ),
    "hard-pinball": (
        "kinetix-l-hard_pinball",
        Row(2048, 8, 4, "sgd", 0.01, 0.995, 0.05, 0.999, T, T),
        Row(512, 1, 1, "sgd", 0.01, 1.0, 0.5, 0.9995, T, T),
    ),
    "thrust-control": (
        "kinetix-m-h17_thrustcontrol_left",
        Row(512, 4, 4, "sgd", 0.1, 0.9995, 0.5, 1.0, T, F),
        Row(1024, 1, 1, "adam", 0.001, 1.0, 0.5, 0.999, T, F),
    ),
    "thrust-over-ball": (
        "kinetix-s-h1_thrust_over_ball",
        Row(512, 1, 1, "adamw", 0.1, 0.995, 0.5, 0.9995, T, F),
        Row(2048, 1, 1, "sgd", 0.01, 0.995, 0.05, 1.0, T, F),
    ),
    "door-key": (
        "navix-DoorKey-8x8",
        Row(1024, 1, 1, "adamw", 0.01, 0.9995, 0.05, 1.0, F, F),
        Row(2048, 8, 1, "adam", 0.01, 1.0, 0.05, 1.0, T, F),
    ),
    "dynamic-obstacles": (
        "navix-Dynamic-Obstacles-6x6-Random",
        Row(512, 4, 2, "adam", 0.01, 0.999, 0.05, 1.0, F, F),
        Row(4096, 1, 1, "adam", 0.01, 1.0, 0.2, 0.995, F, F),
    ),
    "four-rooms": (
        "navix-FourRooms",
        Row(2048, 4, 4, "sgd", 0.01, 0.999, 0.05, 0.9995, T, F),
        Row(2048, 4, 1, "adam", 0.001, 0.9995, 0.05, 0.9995, F, F),
    ),
}
SIXTEEN = tuple(env for env, _, _ in PAPER.values())

QUICK: dict[str, tuple[str, str, RLConfig]] = {  # name: (time, what to expect, config)
    "quick-cartpole": (
        "30 s",
        "a mean return of 475 or more, of 500",
        RLConfig(env="CartPole-v1", pop_size=256, seconds=10.0),
    ),
    "quick-pendulum": (
        "1 minute",
        "a mean return of -250 or better; random actions have -1,200",
        RLConfig(
            env="Pendulum-v1",
            pop_size=256,
            episodes=2,
            ranks=True,
            deterministic=True,
            seconds=60.0,
        ),
    ),
    "quick-empty": (
        "30 s",
        "the goal reached in 9 of 10 episodes or more; at random in 3",
        RLConfig(env="navix-Empty-5x5", seconds=20.0),
    ),
    "quick-inverted-pendulum": (
        "2 minutes",
        "a mean return of 1,000, which is the most; at random 4",
        RLConfig(env="brax-inverted_pendulum", pop_size=256, deterministic=True, seconds=120.0),
    ),
    "quick-snake": (
        "3 minutes",
        "half as many fruits again as at random, or better, in episodes cut at 200 steps",
        RLConfig(
            env="jumanji-Snake",
            policy="springroll.models.policy:linear",  # the network learnt nothing in a minute
            pop_size=4096,
            max_steps=200,
            sigma=0.3,
            lr=0.15,
            seconds=150.0,
        ),
    ),
    "quick-game2048": (
        "2 minutes",
        "twice the return of random moves, or better",
        RLConfig(env="jumanji-Game2048", pop_size=256, seconds=60.0),
    ),
}


def paper(name: str, method: Method = "eggroll") -> RLConfig:
    """One of the sixteen as the paper ran it."""
    env, eggroll, openes = PAPER[name]
    config = RLConfig(out=f"runs/{name}{SUFFIXES[method]}", env=env, method=method, seconds=600.0)
    if method == "ppo":
        return replace(config, ppo=settings_for(env), normalise=True)
    settings = (eggroll if method == "eggroll" else openes)._asdict()
    for name in ("lr", "sigma"):
        settings[f"{name}_half_life"] = half_life_of(settings.pop(f"{name}_decay"))
    return replace(config, **settings)


def _paper_recipe(name: str, method: Method) -> Callable[[], RLConfig]:
    make = functools.partial(paper, name, method)
    source = "usual settings" if method == "ppo" else "the settings that the paper chose"
    return described(
        make,
        f"{PAPER[name][0]} by {method}, with {source}.\n\nHardware: made for a GPU; runs on "
        "anything. Time: 10 minutes. Expect what docs/control.md says of it.",
    )


def _quick_recipe(name: str) -> Callable[[], RLConfig]:
    time, expected, config = QUICK[name]
    make = lambda: replace(config, out=f"runs/{name}")
    return described(
        make,
        f"{config.env} by {config.method} in a short time.\n\nHardware: 2 CPU cores, under 2 GiB. "
        f"Time: {time}. Expect {expected}.",
    )


def described(make: Callable[[], RLConfig], text: str) -> Callable[[], RLConfig]:
    """A recipe with that docstring."""

    def recipe() -> RLConfig:
        return make()

    recipe.__doc__ = text
    return recipe


RECIPES: dict[str, Callable[[], RLConfig]] = {
    **{name: _quick_recipe(name) for name in QUICK},
    **{
        name + suffix: _paper_recipe(name, method)
        for name in PAPER
        for method, suffix in SUFFIXES.items()
    },
}
