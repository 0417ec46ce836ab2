"""What is no JAX as an scorer: a Python function of weights, or Gymnasium environments."""

import jax.numpy as jnp
import numpy as np

from springroll.cpu import cores
from springroll.envs.gymnasium_actor import acting_for
from springroll.envs.gymnasium_pool import GymnasiumPool, open_gymnasium
from springroll.envs.objective import Objective, open_objective
from springroll.envs.observation_scaling import Scaling, fresh
from springroll.envs.python_calls import pair_seeds
from springroll.envs.python_env import kind_of, python_environment
from springroll.evolve.members import Members
from springroll.rl.config import RLConfig
from springroll.rl.episodes import RANDOM, VALIDATION, episodes_scorer
from springroll.rl.policy import policy_of
from springroll.rl.scorer import ObservationStats, Scorer
from springroll.run.task import Metrics
from springroll.trees import PyTree

HELD_OUT = 1 << 40  # generations that no run reaches: their seeds are for validation


def python_scorer(config: RLConfig) -> Scorer:
    """The scorer of `module:function` or `gymnasium-ID`.

    Raises:
        InputError: there is no such thing, or it cannot score the first weights.
    """
    kind = kind_of(config.env, config.timeout)
    workers = config.workers or cores()
    if kind == "environment":
        environment = python_environment(config.env)
        policy = policy_of(config, environment.observation_size, environment.actions)
        return episodes_scorer(config, environment, policy)
    if kind == "gymnasium":
        pool = open_gymnasium(
            config.env, workers=workers, timeout=config.timeout, max_steps=config.max_steps
        )
        return gymnasium_scorer(config, pool)
    objective = open_objective(
        config.env,
        initial=config.initial,
        workers=workers,
        timeout=config.timeout,
        seed=config.seed,
    )
    return objective_scorer(config, objective)


def objective_scorer(config: RLConfig, objective: Objective) -> Scorer:
    """Members are scored by the mean of `episodes` calls with seeds that a pair shares."""

    def score(
        params: PyTree, members: Members, stats: ObservationStats, generation: int
    ) -> tuple[np.ndarray, ObservationStats, Metrics]:
        signs = len(members.perturbation.signs)
        seeds = pair_seeds(config.seed, generation, members.size, signs, config.episodes)
        fitness, figures = objective.evaluate(params, members, seeds)
        told: Metrics = {
            "train_return": float(np.nanmean(fitness)) if np.isfinite(fitness).any() else np.nan,
            "env_steps": figures["calls"],
            "unscored": figures["unscored"],
        }
        return fitness, stats, told

    def evaluate(
        params: PyTree, members: Members, stats: ObservationStats, episodes: int, uniform: bool
    ) -> np.ndarray:
        return objective.unperturbed(params, held_out(config, VALIDATION, episodes))

    return Scorer(
        name=config.env,
        description="a function in Python",
        init=lambda key: objective.initial(config.seed),
        score=score,
        evaluate=evaluate,
        acts=False,
        steps=1,
        identity=objective.identity,
        failures=lambda: objective.failures.line,
        close=objective.close,
    )


def gymnasium_scorer(config: RLConfig, pool: GymnasiumPool) -> Scorer:
    """Members are scored by the mean return of their episodes in worker processes."""
    policy = policy_of(config, pool.observation_size, pool.actions)
    acting = acting_for(policy, pool.actions, deterministic=config.deterministic)

    def score(
        params: PyTree, members: Members, stats: Scaling | None, generation: int
    ) -> tuple[np.ndarray, Scaling | None, Metrics]:
        signs = len(members.perturbation.signs)
        seeds = pair_seeds(config.seed, generation, members.size, signs, config.episodes)
        told = pool.episodes(
            acting, params, members, seeds, scaling=stats, counting=config.normalise
        )
        fitness, figures = pool.scored(told)
        if stats is not None:
            sums = jnp.asarray(told.sums.reshape(-1, *told.sums.shape[2:]))
            stats = stats.updated(sums, jnp.int32(figures["env_steps"]))
        return fitness, stats, figures

    def evaluate(
        params: PyTree, members: Members, stats: Scaling | None, episodes: int, uniform: bool
    ) -> np.ndarray:
        seeds = held_out(config, RANDOM if uniform else VALIDATION, episodes)
        how = {"deterministic": config.deterministic, "uniform": uniform, "scaling": stats}
        return pool.unperturbed(policy, params, seeds, **how)

    def initial_stats() -> Scaling | None:
        return fresh(pool.observation_size) if config.normalise else None

    return Scorer(
        name=pool.name,
        description=f"{pool.observation_size:,} observations, {pool.actions}, in Python",
        init=policy.init,
        apply=(policy.apply, pool.observation_size),
        initial_stats=initial_stats,
        score=score,
        evaluate=evaluate,
        steps=pool.max_steps,
        identity=pool.identity,
        failures=lambda: pool.failures.line,
        close=pool.close,
    )


def held_out(config: RLConfig, which: int, episodes: int) -> np.ndarray:
    """Seeds (episodes,) of episodes that are never trained on."""
    return pair_seeds(config.seed, HELD_OUT + which, 1, 1, episodes)[0]
