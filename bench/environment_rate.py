"""Environment steps per second of the paper's sixteen tasks: bare, and under a population.

Bare is the environment alone: all copies side by side, one compiled scan, random actions. Beside
it, interleaved on one core, EGGROLL scores a population of the paper's policy (3 x 256, rank 1)
with as many episodes of as many steps; ends are ignored, so that both take the same steps. The
ratio says what policy and noise leave of the environment's rate. A generation of EGGROLL and one of
OpenES (asking, scoring, telling; compiled) are timed as well.

    python -m bench.environment_rate [IDS]

prints a JSON line per task and a table; without IDS all of the sixteen whose suites are installed,
ten to twenty minutes, most of which is compiling.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bench.evosax_rate import endless
from springroll.bench import measure
from springroll.envs.action_choice import uniform
from springroll.envs.environment import Environment
from springroll.envs.suites import environment, installed
from springroll.rl.build import computed
from springroll.rl.config import RLConfig
from springroll.rl.episodes import episodes_scorer
from springroll.rl.evolution import evolution
from springroll.rl.policy import policy_of
from springroll.rl.recipes import SIXTEEN
from springroll.rl.scorer import Learning


class Size(NamedTuple):
    """How much is run at once."""

    members: int = 256
    steps: int = 50


SMALLER = {
    "brax-ant": Size(64, 16),
    "brax-humanoid": Size(64, 8),
    "brax-inverted_double_pendulum": Size(128, 25),
    "craftax-Classic-Symbolic": Size(64, 25),
    "craftax-Symbolic": Size(64, 8),
    "kinetix-l-hard_pinball": Size(64, 8),
    "kinetix-m-h17_thrustcontrol_left": Size(64, 16),
    "kinetix-s-h1_thrust_over_ball": Size(64, 16),
}  # so that no call takes seconds


METHODS: tuple[Literal["eggroll", "openes"], ...] = ("eggroll", "openes")


def run(id: str, size: Size | None = None, repeats: int = 5, **network: Any) -> dict[str, Any]:
    """Figures of one task.

    Args:
        network: `width` and `layers` of the policy.
    """
    members, steps = size or SMALLER.get(id, Size())
    task = endless(environment(id, max_steps=steps))
    learnings = {method: learning(id, task, method, members, **network) for method in METHODS}
    eggroll = learnings["eggroll"].task
    state, seen = eggroll.init()
    asked = jax.block_until_ready(eggroll.ask(state))
    calls = {
        "bare": functools.partial(bare, task, members, steps, jax.random.key(0)),
        "ours": lambda: eggroll.evaluate(state, asked, seen, 0)[0],
    }
    seconds = measure.medians(measure.interleaved(calls, repeats))
    rate = {name: members * steps / each for name, each in seconds.items()}
    return measure.record(
        "environment_rate",
        ours=rate["ours"],
        baseline=rate["bare"],
        ratio=rate["ours"] / rate["bare"],
        unit="environment steps per second",
        env=id,
        version=task.version,
        members=members,
        steps=steps,
        compute=computed(RLConfig()),
        eggroll_seconds=generation_seconds(learnings["eggroll"]),
        openes_seconds=generation_seconds(learnings["openes"]),
        target="ratio >= 0.5 where the environment dominates",
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def bare(task: Environment, copies: int, steps: int, key: Array) -> tuple[Array, Array]:
    """Sums over episodes with random actions: of rewards, and of what is observed, so that it is
    computed."""

    def turn(carry: tuple[Any, Array, Array], key: Array) -> tuple[Any, None]:
        state, reward, seen = carry
        drawn, moved = jax.random.split(key)
        mask = task.action_mask(state) if task.action_mask else None
        step = task.step(moved, state, uniform(task.actions, drawn, mask))
        return (step.state, reward + step.reward, seen + jnp.sum(step.observation)), None

    def episode(key: Array) -> tuple[Array, Array]:
        first, later = jax.random.split(key)
        state, observation = task.reset(first)
        carry = state, jnp.float32(0), jnp.sum(observation)
        return lax.scan(turn, carry, jax.random.split(later, steps))[0][1:]

    return jax.vmap(episode)(jax.random.split(key, copies))


def learning(
    id: str, task: Environment, method: Literal["eggroll", "openes"], members: int, **network: Any
) -> Learning:
    """One of the ES methods on a task, as `springroll rl` runs it on one device."""
    config = RLConfig(env=id, method=method, pop_size=members, devices=1, **network)
    config = dataclasses.replace(config, compute=computed(config))
    policy = policy_of(config, task.observation_size, task.actions)
    return evolution(config, episodes_scorer(config, task, policy))


def generation_seconds(learning: Learning) -> float:
    """Of a second generation, the first one having compiled everything.

    Raises:
        AssertionError: a score is not finite.
    """
    learnt = learning.task
    state, seen = learnt.init()
    seconds = 0.0
    for generation in range(2):
        start = time.perf_counter()
        members = learnt.ask(state)
        fitness, seen = learnt.evaluate(state, members, seen, generation)[:2]
        assert np.isfinite(fitness).all()
        state = jax.block_until_ready(learnt.tell(state, members, np.asarray(fitness))[0])
        seconds = time.perf_counter() - start
    return seconds


def table(results: list[dict[str, Any]]) -> str:
    """The figures in Markdown."""
    head = (
        "| task | bare steps/s | with policy and noise | ratio | EGGROLL s | OpenES s | at once |"
    )
    rule = "|---|--:|--:|--:|--:|--:|---|"
    rows = (
        f"| {each['env']} | {each['baseline']:,.0f} | {each['ours']:,.0f} | {each['ratio']:.2f} | "
        f"{each['eggroll_seconds']:.2f} | {each['openes_seconds']:.2f} | "
        f"{each['members']} x {each['steps']} |"
        for each in results
    )
    return "\n".join([head, rule, *rows])


def results(ids: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for id in ids:
        yield run(id)
        jax.clear_caches()  # sixteen programs would keep gigabytes


def main() -> None:
    here = tuple(id for id in SIXTEEN if "v1" in id or installed(id.split("-")[0]))
    measure.pin_one_core()
    done = []
    for result in results(tuple(sys.argv[1:]) or here):
        measure.report(result)
        done.append(result)
    print(table(done))


if __name__ == "__main__":
    main()
