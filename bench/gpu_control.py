"""Control on one accelerator, unattended, in one call: episodes of populations, and learning.

    python -m bench.gpu_control                # under 10 minutes on one H100-class GPU
    python -m bench.gpu_control --small        # the same on a CPU in a minute, for tests

Prints one JSON line per measurement and writes them all, with chip and date, to bench/results/.

The episodes of 4,096 and 32,768 members of the paper's policy beside as many episodes of the plain
weights, which is pure inference, on environments that need no suite; then seconds until CartPole
and Pendulum are learnt. Targets: 0.95 of pure inference; CartPole in under 10 seconds.
"""

import dataclasses
import time
from functools import partial
from typing import Any

import jax
import numpy as np

from bench import unattended
from bench.evosax_rate import endless
from springroll.bench import measure
from springroll.envs.rollout import episode_keys, population_episodes, unperturbed_episodes
from springroll.rl.build import prepare
from springroll.rl.config import RLConfig
from springroll.rl.recipes import QUICK


def rates(env: str, members: int, rank: int, repeats: int, **size: Any) -> dict[str, Any]:
    """Environment steps per second of a population, of the plain weights, and their ratio."""
    config = RLConfig(env=env, pop_size=members, rank=rank, compute="bfloat16", **size)
    scorer, learning = prepare(config)
    state, _ = learning.task.init()
    drawn = jax.block_until_ready(learning.task.ask(state))
    assert scorer.rollout is not None
    rollout = dataclasses.replace(scorer.rollout, environment=endless(scorer.rollout.environment))
    keys = episode_keys(jax.random.key(0), members, 1)
    flat = keys.reshape(-1, 2)
    seconds = measure.medians(
        measure.interleaved(
            {
                "population": lambda: population_episodes(rollout, state.params, drawn, keys),
                "plain": lambda: unperturbed_episodes(rollout, state.params, flat),
            },
            repeats,
        )
    )
    steps = members * rollout.environment.max_steps
    ours, plain = (steps / seconds[name] for name in ("population", "plain"))
    return measure.record(
        f"{env} {members} members of rank {rank}",
        ours,
        plain,
        ours / plain,
        unit="environment steps per second",
        target="ratio >= 0.95",
    )


def learning(name: str, goal: float, generations: int, **options: Any) -> dict[str, Any]:
    """Seconds of training until the weights themselves return as much, compiling not counted."""
    config = dataclasses.replace(QUICK[name][2], compute="bfloat16", **options)
    _, learnt = prepare(config)
    task = learnt.task
    assert task.validate is not None
    state, seen = task.init()
    trained, done, value = 0.0, 0, -np.inf
    for generation in range(generations + 1):  # the first one compiles and starts over
        start = time.perf_counter()
        members = task.ask(state)
        scores, seen, _ = task.evaluate(state, members, seen, generation)
        state, _ = task.tell(state, members, np.asarray(scores))
        jax.block_until_ready(state.params)
        if generation == 0:
            state, seen = task.init()
            continue
        trained, done = trained + time.perf_counter() - start, generation
        if generation % 5 == 0:
            value = float(task.validate(state, seen)["eval_return"])
            if value >= goal:
                break
    return measure.record(
        f"{config.env} learnt",
        trained,
        goal,
        value / goal,
        unit="seconds",
        eval_return=value,
        generations=done,
        pop_size=config.pop_size,
    )


def measurements(small: bool) -> list[tuple[str, Any]]:
    """Names and calls, the quick ones first."""
    if small:
        tiny = {"width": 16, "layers": 1, "max_steps": 8}
        return [
            ("rates", lambda: rates("CartPole-v1", 8, 1, 1, **tiny)),
            ("learnt", lambda: learning("quick-cartpole", 5.0, 5, width=16, pop_size=8)),
        ]
    shapes = [(env, n, r) for env in ("CartPole-v1", "Pendulum-v1") for n, r in SIZES]
    return [
        *((f"{env} {n} {r}", partial(rates, env, n, r, 5)) for env, n, r in shapes),
        ("CartPole", lambda: learning("quick-cartpole", 475.0, 200, pop_size=4096)),
        ("Pendulum", lambda: learning("quick-pendulum", -250.0, 300, pop_size=4096)),
    ]


SIZES = ((4096, 1), (4096, 4), (32768, 1))

if __name__ == "__main__":
    unattended.script("gpu_control", str(__doc__).splitlines()[0], measurements)
