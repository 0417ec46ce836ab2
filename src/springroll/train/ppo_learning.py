"""PPO on an arena: the gradient baseline, validated by the episodes that validate evolution."""

import functools
from typing import Any

import jax
import numpy as np

from springroll.control.rollout import Rollout, centre_episodes, episode_keys
from springroll.errors import InputError
from springroll.train.arena import Arena, Learning
from springroll.train.control_config import RLConfig
from springroll.train.episodes_arena import RANDOM, VALIDATION
from springroll.train.evolved_policy import curve_of
from springroll.train.ppo import PPO, ppo, ppo_task
from springroll.train.task import Metrics


def ppo_learning(config: RLConfig, arena: Arena) -> Learning:
    """The method on an arena whose episodes run on the device.

    Raises:
        InputError: they do not.
    """
    rollout = trained(config, arena)
    method = method_of(config, arena)

    def validate(params: Any) -> Metrics:
        returns = _returns(config, rollout, params, VALIDATION)
        return {"eval_return": float(np.mean(returns)), "eval_std": float(np.std(returns))}

    curve = curve_of(config, arena)
    task = ppo_task(config, rollout.environment, validate, method=method, curve=curve)
    return Learning(task, rollout, lambda _, carry: (method.params(carry), None))


def random_return(config: RLConfig, arena: Arena) -> float:
    """The mean return of random actions."""
    rollout, method = trained(config, arena), method_of(config, arena)
    params = method.params(method.init(jax.random.key(config.seed)))
    return float(np.mean(_returns(config, rollout, params, RANDOM)))


def trained(config: RLConfig, arena: Arena) -> Rollout:
    """How episodes of its policy are run."""
    if arena.rollout is None:
        raise InputError(f"ppo needs an environment in JAX, and {arena.name} is none")
    policy = method_of(config, arena).policy
    return Rollout(policy, arena.rollout.environment, config.deterministic, devices=config.devices)


@functools.cache
def method_of(config: RLConfig, arena: Arena) -> PPO:
    """Made once, so that its programs are compiled once."""
    assert arena.rollout is not None
    return ppo(arena.rollout.environment, config.ppo, normalise=config.normalise)


def _returns(config: RLConfig, rollout: Rollout, params: Any, which: int) -> np.ndarray:
    key = jax.random.fold_in(jax.random.key(config.seed), which)
    keys = episode_keys(key, config.eval_episodes)
    return np.asarray(centre_episodes(rollout, params, keys, None, which == RANDOM).returns)
