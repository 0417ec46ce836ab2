"""Episodes of a population in Gymnasium environments, beside the same environments alone.

`bare` steps as many environments in as many processes with actions that cost nothing, and without
anybody to tell: the most that the environments themselves allow. `no policy` goes through the pool
with actions that cost nothing; `vector` is what a single process with gymnasium's own vector
environment and the policy of one member manages.

    python -m bench.gymnasium_pool
"""

import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from springroll.bench import measure
from springroll.envs.environment import Box
from springroll.envs.gymnasium_actor import (
    Acting,
    Actor,
    acting_for,
    population_actor,
    unperturbed_actor,
)
from springroll.envs.gymnasium_pool import SEATS, GymnasiumPool, open_gymnasium
from springroll.evolve.eggroll import eggroll
from springroll.models.policy import PolicyNetwork

BARE = """
import sys, time
import gymnasium
id, count, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
environments = [gymnasium.make(id, disable_env_checker=True) for _ in range(count)]
for seed, each in enumerate(environments):
    each.reset(seed=seed)
action = environments[0].action_space.sample()
print("ready", flush=True)
sys.stdin.readline()
begin = time.perf_counter()
for _ in range(steps):
    for each in environments:
        _, _, terminated, truncated, _ = each.step(action)
        if terminated or truncated:
            each.reset()
print(time.perf_counter() - begin)
"""


def bare(id: str, rows: int, workers: int, steps: int = 100) -> float:
    """Steps per second of the environments alone."""
    command = [sys.executable, "-c", BARE, id, str(rows // workers), str(steps)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(workers)
    ]
    seconds = []
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in started:
        seconds.append(float(process.communicate()[0]))
    return rows // workers * workers * steps / max(seconds)


def vector(id: str, params: Any, acting: Acting, rows: int) -> float:
    """Steps per second of gymnasium's vector environment and one member's policy."""
    import gymnasium

    environments = gymnasium.make_vec(id, rows, vectorization_mode="sync")
    observations, _ = environments.reset(seed=0)
    actor, seeds = unperturbed_actor(acting, params), np.arange(rows, dtype=np.uint32)
    steps, begin = 50, time.perf_counter()
    for now in range(steps):
        times = np.full(rows, now, np.int32)
        actions = actor.act(None, np.asarray(observations, np.float32), seeds, times)
        observations, *_ = environments.step(np.asarray(actions))
    environments.close()
    return rows * steps / (time.perf_counter() - begin)


def pooled(pool: GymnasiumPool, actor: Actor, rows: int) -> float:
    """Steps per second of whole episodes in the pool."""
    begin = time.perf_counter()
    told = pool._run(actor, np.arange(rows))
    return float(told.lengths.sum()) / (time.perf_counter() - begin)


def run(
    id: str = "Pendulum-v1", pop_size: int = 256, workers: int = 2, repeats: int = 5
) -> dict[str, Any]:
    """Median steps per second of all four, taken in turn."""
    pool = open_gymnasium(f"gymnasium-{id}", workers=workers)
    actions = pool.actions
    deviations = actions.size if isinstance(actions, Box) else 0
    policy = PolicyNetwork(pool.observation_size, actions.outputs, deviations=deviations)
    acting = acting_for(policy, actions)
    es = eggroll(pop_size=pop_size, sigma=0.1)
    state = es.init(jax.random.key(0), policy.init(jax.random.key(1)))
    acts = population_actor(acting, state.params, es.ask(state), 1)
    still = np.asarray(acts.act(acts.seat(np.arange(SEATS) % pop_size), *_nothing(pool)))
    nobody = Actor(len, lambda seats, *_: still[:seats])
    variants = {
        "ours": lambda: pooled(pool, acts, pop_size),
        "bare": lambda: bare(id, pop_size, workers),
        "no policy": lambda: pooled(pool, nobody, pop_size),
        "vector": lambda: vector(id, state.params, acting, pop_size),
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(1 + repeats):
        for name, call in variants.items():
            rate = call()
            if round_:
                rates[name].append(rate)
    pool.close()
    median = measure.medians(rates)
    return measure.record(
        "gymnasium_pool",
        ours=median["ours"],
        baseline=median["bare"],
        ratio=median["ours"] / median["bare"],
        unit="environment steps per second",
        no_policy=median["no policy"],
        no_policy_over_bare=median["no policy"] / median["bare"],
        vector=median["vector"],
        ours_over_vector=median["ours"] / median["vector"],
        environment=id,
        pop_size=pop_size,
        workers=workers,
        target="ratio >= 0.5",
    )


def _nothing(pool: GymnasiumPool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations, seeds and times for all seats."""
    zeros = np.zeros(SEATS, np.int32)
    return np.zeros((SEATS, pool.observation_size), np.float32), zeros.astype(np.uint32), zeros


def main() -> None:
    measure.report(run())


if __name__ == "__main__":
    main()
