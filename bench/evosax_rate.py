"""EGGROLL beside Open_ES of evosax 0.3.2: environment steps per second, and what they reach.

The paper's policy on CartPole-v1, the same population, one core, interleaved. The rate is that of
whole generations (perturbing, episodes, update; compiling is not counted) whose episodes all last
500 steps. Then both train, in turns of a few seconds, for the same seconds.

evosax forms the weights of every member. Its episodes are run in the two ways one can: all members
side by side (`vmap`, as its own problems do), and one member after another, so that a member's
weights stay in the cache, which on a CPU is its fastest form. Each jits a whole generation, in
float32, which is quicker for it than 16 bits; ours is as `springroll rl` runs it on this machine,
with float32 beside it.

    python -m bench.evosax_rate [SECONDS]

Populations of 256 and of 2,048; SECONDS (default 30) of training each. Ten minutes.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from springroll.bench import measure
from springroll.envs.action_choice import choose
from springroll.envs.environment import Environment, Step
from springroll.envs.rollout import Rollout, episode_keys, step_keys, unperturbed_episodes
from springroll.envs.suites import environment
from springroll.errors import InputError
from springroll.models.policy import Compute, PolicyNetwork
from springroll.rl.build import computed
from springroll.rl.config import RLConfig
from springroll.rl.episodes import episodes_scorer
from springroll.rl.evolution import evolution

SIGMA, LR = 0.05, 1e-2  # of Adam, on ranks; both methods solve the task with these
EPISODES = 100
TURN = 3.0  # seconds

Form = Literal["vmap", "each"]


class Way(NamedTuple):
    """One way to train."""

    init: Callable[[], Any]
    generation: Callable[[int, Any], Any]  # its number, the state -> the state
    centre: Callable[[Any], Any]  # the state -> the weights themselves


def run(
    pop_sizes: tuple[int, ...] = (256, 2048), seconds: float = 30.0, **size: Any
) -> Iterator[dict[str, Any]]:
    """Figures for every population.

    Args:
        seconds: of training, for each way.
        size: `width`, `layers`, `max_steps` of what is learnt.
    """
    for pop_size in pop_sizes:
        yield compared(pop_size, seconds, repeats=3 if pop_size <= 256 else 1, **size)


def compared(
    pop_size: int,
    seconds: float,
    repeats: int,
    width: int = 256,
    layers: int = 3,
    max_steps: int = 500,
) -> dict[str, Any]:
    """The three ways."""
    config = RLConfig(
        pop_size=pop_size,
        sigma=SIGMA,
        lr=LR,
        ranks=True,
        width=width,
        layers=layers,
        devices=1,
    )
    task = environment("CartPole-v1", max_steps=max_steps)
    policy = PolicyNetwork(task.observation_size, task.actions.outputs, width=width, layers=layers)
    quick = dataclasses.replace(policy, compute=cast(Compute, computed(config)))

    def ways(task: Environment) -> dict[str, Way]:
        return {
            "eggroll": eggroll_way(config, quick, task),
            "eggroll_float32": eggroll_way(config, policy, task),
            "evosax_vmap": evosax_way(policy, task, pop_size, "vmap"),
            "evosax_each": evosax_way(policy, task, pop_size, "each"),
        }

    rate = rates(ways(endless(task)), pop_size * max_steps, repeats)
    trained = ways(task)
    rollout = Rollout(policy, task, devices=1)
    keys = episode_keys(jax.random.key(99), EPISODES)
    returns, generations = {}, {}
    for name, (state, done) in in_turns(trained, seconds).items():
        found = unperturbed_episodes(rollout, trained[name].centre(state), keys)
        returns[name], generations[name] = float(np.mean(found.returns)), done
    return measure.record(
        "evosax_rate",
        rate["eggroll"],
        rate["evosax_vmap"],
        rate["eggroll"] / rate["evosax_vmap"],
        unit="environment steps per second",
        compute=quick.compute,
        ours_float32=rate["eggroll_float32"],
        evosax_one_by_one=rate["evosax_each"],
        ratio_to_one_by_one=rate["eggroll"] / rate["evosax_each"],
        pop_size=pop_size,
        seconds_each=seconds,
        returns=returns,
        generations=generations,
        target="ratio >= 15 at 256 and more at 2,048; return not below",
    )


def endless(task: Environment) -> Environment:
    """The same without early ends, so that all take the same steps."""

    def step(key: Array, state: Any, action: Array) -> Step:
        no = jnp.bool_(False)
        return task.step(key, state, action)._replace(terminated=no, truncated=no)

    return dataclasses.replace(task, step=step)


def rates(ways: dict[str, Way], steps: int, repeats: int) -> dict[str, float]:
    """Steps per second of generations of `steps`."""
    states = {name: way.init() for name, way in ways.items()}
    calls = {name: functools.partial(way.generation, 0, states[name]) for name, way in ways.items()}
    seconds = measure.medians(measure.interleaved(calls, repeats))
    return {name: steps / each for name, each in seconds.items()}


def in_turns(ways: dict[str, Way], seconds: float) -> dict[str, tuple[Any, int]]:
    """Train each for `seconds`; the state it reached, after how many generations."""
    states = {name: way.init() for name, way in ways.items()}
    for name, way in ways.items():  # compile
        jax.block_until_ready(way.generation(0, states[name]))
    done, spent = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
    while min(spent.values()) < seconds:
        for name, way in ways.items():
            until = min(spent[name] + TURN, seconds)
            while spent[name] < until:
                start = time.perf_counter()
                states[name] = jax.block_until_ready(way.generation(done[name], states[name]))
                spent[name] += time.perf_counter() - start
                done[name] += 1
    return {name: (states[name], done[name]) for name in ways}


def eggroll_way(config: RLConfig, policy: PolicyNetwork, task: Environment) -> Way:
    """The task of `springroll rl`, generation by generation."""
    learnt = evolution(config, episodes_scorer(config, task, policy)).task

    def generation(number: int, state: Any) -> Any:
        state, carry = state
        members = learnt.ask(state)
        fitness, carry, _ = learnt.evaluate(state, members, carry, learnt.batch(number))
        return learnt.tell(state, members, np.asarray(fitness))[0], carry

    return Way(learnt.init, generation, lambda state: state[0].params)


def evosax_way(policy: PolicyNetwork, task: Environment, pop_size: int, form: Form) -> Way:
    """Open_ES, which minimises, on minus the returns."""
    try:
        from evosax.algorithms import Open_ES
    except ImportError:
        raise InputError(
            "this benchmark needs the package 'evosax': pip install evosax==0.3.2"
        ) from None
    first = policy.init(jax.random.key(0))
    strategy = Open_ES(
        population_size=pop_size,
        solution=first,
        optimizer=optax.adam(LR),
        std_schedule=optax.constant_schedule(SIGMA),
    )
    params = strategy.default_params
    mapped = (
        jax.vmap
        if form == "vmap"
        else lambda each: lambda *args: lax.map(lambda one: each(*one), args)
    )
    episodes = mapped(lambda weights, key: episode(policy, task, weights, key))

    @jax.jit
    def generation(number: int, state: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            asked, told, played = jax.random.split(jax.random.fold_in(jax.random.key(1), number), 3)
            population, state = strategy.ask(asked, state, params)
            keys = jax.random.split(played, pop_size // 2)
            returns = episodes(population, jnp.concatenate([keys, keys]))
            state, _ = strategy.tell(told, population, -returns, state, params)
        return state

    def init() -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return strategy.init(jax.random.key(0), first, params)

    return Way(init, generation, strategy.get_mean)


def episode(policy: PolicyNetwork, task: Environment, weights: Any, key: Array) -> Array:
    """The return of one episode of one member."""
    state, observation = task.reset(key)
    words = jax.random.key_data(key)

    def step(carry: Any) -> Any:
        state, observation, length, total, _ = carry
        drawn, moved = step_keys(words, length)
        action = choose(task.actions, policy.apply(weights, observation), drawn)
        found = task.step(moved, state, action)
        over = found.terminated | found.truncated
        return found.state, found.observation, length + 1, total + found.reward, over

    going = lambda carry: ~carry[4] & (carry[2] < task.max_steps)
    start = state, observation, jnp.int32(0), jnp.float32(0), jnp.bool_(False)
    return lax.while_loop(going, step, start)[3]


def main() -> None:
    measure.pin_one_core()
    for result in run(seconds=float(sys.argv[1]) if sys.argv[1:] else 30.0):
        measure.report(result)


if __name__ == "__main__":
    main()
