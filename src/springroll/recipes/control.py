"""The sixteen control tasks of the EGGROLL paper with the settings it chose. Imports no JAX.

The settings are those of the paper's random search (arXiv 2511.16652v2, appendix N), a row per task
and method. PPO's are those of the task in `train/ppo_settings.py`. Populations and episodes are the
paper's, made for a GPU; the quick recipes are for two CPU cores.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

from springroll.train.control_config import Method, RLConfig


SUFFIXES: dict[Method, str] = {"eggroll": "", "openes": "-openes", "ppo": "-ppo"}


class Row(NamedTuple):
    """One row of the paper's tables."""

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
        "craftax-Craftax-Classic-Symbolic-v1",
        Row(2048, 4, 1, "sgd", 0.01, 0.995, 0.05, 1.0, F, F),
        Row(4096, 8, 1, "adamw", 0.001, 0.995, 0.05, 0.995, F, F),
    ),
    "craftax": (
        "craftax-Craftax-Symbolic-v1",
        Row(512, 1, 4, "sgd", 0.01, 0.999, 0.05, 0.999, T, F),
        Row(1024, 4, 1, "adam", 0.1, 0.995, 0.5, 1.0, F, F),
    ),
    "game2048": (
        "jumanji-Game2048-v1",
        Row(1024, 4, 1, "adamw", 0.1, 1.0, 0.5, 0.9995, F, F),
        Row(1024, 4, 1, "adamw", 0.01, 0.999, 0.05, 0.9995, T, T),
    ),
    "knapsack": (
        "jumanji-Knapsack-v1",
        Row(1024, 4, 4, "sgd", 0.1, 0.999, 0.05, 1.0, T, F),
        Row(2048, 1, 1, "adamw", 0.01, 1.0, 0.5, 0.995, T, F),
    ),
    "snake": (
        "jumanji-Snake-v1",
        Row(4096, 8, 1, "adam", 0.001, 0.9995, 0.05, 0.9995, T, F),
        Row(2048, 1, 1, "sgd", 0.001, 1.0, 0.2, 1.0, F, F),
    ),
    "hard-pinball": (
        "kinetix-l/hard_pinball",
        Row(2048, 8, 4, "sgd", 0.01, 0.995, 0.05, 0.999, T, T),
        Row(512, 1, 1, "sgd", 0.01, 1.0, 0.5, 0.9995, T, T),
    ),
    "thrust-control": (
        "kinetix-m/h17_thrustcontrol_left",
        Row(512, 4, 4, "sgd", 0.1, 0.9995, 0.5, 1.0, T, F),
        Row(1024, 1, 1, "adam", 0.001, 1.0, 0.5, 0.999, T, F),
    ),
    "thrust-over-ball": (
        "kinetix-s/h1_thrust_over_ball",
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


def paper(name: str, method: Method = "eggroll") -> RLConfig:
    """One of the sixteen as the paper ran it."""
    env, eggroll, openes = PAPER[name]
    config = RLConfig(out=f"runs/{name}{SUFFIXES[method]}", env=env, method=method, seconds=600.0)
    if method == "ppo":
        return config
    return replace(config, **(eggroll if method == "eggroll" else openes)._asdict())


def _recipe(name: str, method: Method) -> Callable[[], RLConfig]:
    def make() -> RLConfig:
        return paper(name, method)

    source = "usual settings" if method == "ppo" else "the paper's settings"
    make.__doc__ = f"{PAPER[name][0]} by {method}, {source}, 10 minutes."
    return make


RECIPES: dict[str, Callable[[], RLConfig]] = {
    name + suffix: _recipe(name, method) for name in PAPER for method, suffix in SUFFIXES.items()
}
