"""Episodes in an environment of JAX as an scorer: everything runs on the device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.envs.environment import Environment
from springroll.envs.observation_scaling import Scaling, fresh
from springroll.envs.rollout import Episodes, Rollout, episode_keys, population_episodes
from springroll.evolve.members import Members
from springroll.models.policy import Policy, PolicyNetwork
from springroll.rl.config import RLConfig
from springroll.rl.scorer import Scorer
from springroll.run.task import Metrics
from springroll.trees import PyTree

TRAINING, VALIDATION, RANDOM = 0, 1, 2  # streams of episodes


def episodes_scorer(
    config: RLConfig, environment: Environment, policy: Policy | PolicyNetwork
) -> Scorer:
    """Members are scored by the mean return of their episodes; a pair meets the same ones."""
    rollout = Rollout(
        policy,
        environment,
        deterministic=config.deterministic,
        counting=config.normalise,
        devices=config.devices,
    )
    streams = [
        jax.random.fold_in(jax.random.key(config.seed), which)
        for which in (TRAINING, VALIDATION, RANDOM)
    ]

    def score(
        params: PyTree, members: Members, stats: Scaling | None, generation: int
    ) -> tuple[Array, Scaling | None, Metrics]:
        keys = shared_keys(streams[TRAINING], generation, members, config.episodes)
        rows = members.size * config.episodes
        found = population_episodes(rollout, params, members, keys, stats, rows, False)
        fitness, stats, figures = scored(found, stats)
        # To the host, else what came from several devices would have the next call compiled anew.
        return fitness, jax.device_get(stats), figures

    def evaluate(
        params: PyTree, members: Members, stats: Scaling | None, episodes: int, uniform: bool
    ) -> np.ndarray:
        still = dataclasses.replace(members, sigma=jnp.zeros_like(members.sigma))
        each = members.size * config.episodes
        returns = []
        for start in range(0, episodes, each):
            key = jax.random.fold_in(streams[RANDOM if uniform else VALIDATION], start)
            keys = episode_keys(key, members.size, config.episodes)
            rows = min(each, episodes - start)
            found = population_episodes(rollout, params, still, keys, stats, rows, uniform)
            returns.append(np.asarray(found.returns).reshape(-1)[:rows])
        return np.concatenate(returns)

    def initial_stats() -> Scaling | None:
        return fresh(environment.observation_size) if config.normalise else None

    return Scorer(
        name=environment.name,
        description=f"{environment.observation_size:,} observations, {environment.actions}",
        init=policy.init,
        apply=(policy.apply, environment.observation_size),
        initial_stats=initial_stats,
        score=score,
        evaluate=evaluate,
        steps=environment.max_steps,
        identity={"environment": environment.version} if environment.version else {},
        rollout=rollout,
    )


@functools.partial(jax.jit, static_argnums=3)
def shared_keys(key: Array, generation: int, members: Members, episodes: int) -> Array:
    """(N, episodes, 2): both members of a pair meet the same random numbers."""
    key = jax.random.fold_in(key, generation)
    keys = episode_keys(key, len(members.pairs), episodes)
    return jnp.repeat(keys, len(members.perturbation.signs), axis=0)


@jax.jit
def scored(found: Episodes, stats: Scaling | None) -> tuple[Array, Scaling | None, Metrics]:
    """Fitness (N,), what is known of observations now, and figures."""
    steps = jnp.sum(found.lengths)
    if stats is not None:
        stats = stats.updated(found.sums.reshape(-1, *found.sums.shape[2:]), steps)
    fitness = jnp.mean(found.returns, axis=1)
    figures = {
        "train_return": jnp.mean(found.returns),
        "train_length": jnp.mean(found.lengths.astype(jnp.float32)),
        "env_steps": steps,
    }
    return fitness, stats, figures
