"""PPO, the gradient baseline in control: rejax 0.1.3 on our environments, in our loop.

The method is rejax's, unchanged (github.com/keraJLi/rejax); here are its construction, what of its
state is arrays, and its policy in the form in which evaluation takes one.

PPO on an scorer: the gradient baseline, validated by the episodes that validate evolution.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.envs.action_choice import FORBIDDEN
from springroll.envs.environment import Environment
from springroll.envs.rollout import Rollout, episode_keys, unperturbed_episodes
from springroll.envs.suite_calls import default_rules
from springroll.errors import InputError
from springroll.models.policy import Policy
from springroll.program import pip_install
from springroll.rl.config import PPOSettings, RLConfig
from springroll.rl.episodes import RANDOM, VALIDATION
from springroll.rl.evolution import curve_of
from springroll.rl.ppo_bridge import Bridge, Episode
from springroll.rl.scorer import Learning, Scorer
from springroll.run.task import Curve, Metrics, Task
from springroll.trees import PyTree

Carry = dict[str, Array]  # every array of rejax's train state, by its path


@dataclass(frozen=True, eq=False)
class PPO:
    """The method on one environment, as pure functions."""

    init: Callable[[Array], Carry]
    """`init(key)`: weights, optimizer states, and the first state of every environment."""
    iterate: Callable[[Carry], tuple[Carry, Metrics]]
    """One iteration: collect, then learn. Donates. Figures: train_return, the mean return of the
    newest whole episode of every environment (of the one it is in where it has ended none), and
    episodes, how many ended so far."""
    params: Callable[[Carry], PyTree]
    """What the policy needs of a carry."""
    policy: Policy
    """Says what policies of the other methods say: logits, or means and after them logarithms of
    deviations, in units in which the bounds are -1 and 1."""


def ppo(environment: Environment, settings: PPOSettings, *, normalise: bool = False) -> PPO:
    """PPO with policy and value networks of 3 x 256.

    Args:
        normalise: give both networks observations less their running mean, in deviations.

    Raises:
        InputError: rejax is not installed; the environment's actions are no single choice and no
            real numbers.
    """
    bridge = Bridge(environment)
    with default_rules():
        algorithm = _algorithm(bridge, settings, normalise)
        start = lambda key: jax.tree.map(_strong, _in_floats(algorithm.init_state(key)))
        # The state's class and optimizer are made anew at each call, so one structure is kept.
        abstract = jax.eval_shape(start, jax.random.key(0))
    leaves, structure = jax.tree.flatten_with_path(abstract)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]

    def packed(state: PyTree) -> Carry:
        return dict(zip(names, jax.tree.leaves(state), strict=True))

    def unpacked(carry: Carry) -> PyTree:
        return jax.tree.unflatten(structure, [carry[name] for name in names])

    def init(key: Array) -> Carry:
        with default_rules():
            return packed(start(key))

    def iterate(carry: Carry) -> tuple[Carry, Metrics]:
        with default_rules():
            state = algorithm.train_iteration(unpacked(carry))
            episode: Episode = state.env_state
            newest = jnp.where(episode.ended > 0, episode.newest, episode.so_far)
            figures = {"train_return": jnp.mean(newest), "episodes": jnp.sum(episode.ended)}
            return packed(state), figures

    def params(carry: Carry) -> PyTree:
        state = unpacked(carry)
        weights = {"actor": state.actor_ts.params}
        if not normalise:
            return weights
        return weights | {"mean": state.obs_rms_state.mean, "var": state.obs_rms_state.var}

    def apply(params: PyTree, observation: Array) -> Array:
        with default_rules():
            inputs = jnp.concatenate([observation, jnp.ones(bridge.masked)])
            if normalise:
                inputs = (inputs - params["mean"]) / jnp.sqrt(params["var"] + 1e-8)
            says = algorithm.actor.apply(params["actor"], inputs[None], method="_action_dist")
            if algorithm.discrete:
                return says.logits[0]
            return jnp.concatenate([says.loc[0], jnp.log(says.scale_diag).reshape(-1)])

    policy = Policy(lambda key: params(init(key)), apply)
    return PPO(jax.jit(init), jax.jit(iterate, donate_argnums=0), params, policy)


def ppo_task(
    config: RLConfig,
    environment: Environment,
    validate: Callable[[PyTree], Metrics] | None = None,
    *,
    method: PPO | None = None,
    curve: Curve | None = None,
) -> Task:
    """The loop's view: one member, whose carry is all of the method's state.

    Args:
        validate: figures of the policy's parameters, which `method.policy` acts by.
        method: `ppo(environment, config.ppo, normalise=config.normalise)`, where it is made
            already.
    """
    method = method or ppo(environment, config.ppo, normalise=config.normalise)

    def evaluate(
        state: None, members: None, carry: Carry, batch: None
    ) -> tuple[Array, Carry, Metrics]:
        carry, figures = method.iterate(carry)
        return jnp.asarray(figures["train_return"])[None], carry, figures

    return Task(
        init=lambda: (None, method.init(jax.random.key(config.seed))),
        batch=lambda generation: None,
        ask=lambda state: None,
        evaluate=evaluate,
        tell=lambda state, members, fitness: (None, {}),
        validate=validate and (lambda _, carry: validate(method.params(carry))),
        pop_size=1,
        tokens=config.ppo.steps,
        unit="env_steps",
        seed=config.seed,
        identity={"environment": environment.version} if environment.version else {},
        curve=curve
        or Curve(train="train_return", valid="eval_return", label="return of an episode"),
        keep_best=True,
        validation_tokens=config.eval_episodes * environment.max_steps,
        guarded="carry/(actor|critic)_ts/",  # environments may have infinite bounds
    )


def _algorithm(bridge: Bridge, settings: PPOSettings, normalise: bool) -> Any:
    """rejax's object, which holds what is static."""
    try:
        from rejax import PPO as RejaxPPO
    except ImportError:
        raise InputError(f"the method ppo needs the package 'rejax': {pip_install('rl')}") from None
    algorithm = RejaxPPO.create(
        env=bridge,
        agent_kwargs={"hidden_layer_sizes": HIDDEN, "activation": settings.activation},
        num_envs=settings.num_envs,
        num_steps=settings.num_steps,
        num_epochs=settings.epochs,
        num_minibatches=settings.minibatches,
        learning_rate=settings.lr,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        clip_eps=settings.clip,
        ent_coef=settings.entropy,
        vf_coef=settings.value,
        max_grad_norm=settings.max_grad,
        normalize_observations=normalise,
        normalize_rewards=settings.normalise_rewards,
        reward_normalization_discount=settings.gamma,
    )
    if bridge.masked:
        algorithm = algorithm.replace(actor=_masked(algorithm.actor))
    return algorithm


def _masked(actor: Any) -> Any:
    """rejax's policy over a choice, which takes no action that the bridge's mask forbids.

    Where observations are normalised so is the mask; what is forbidden stays below zero, as its
    mean is above -1 unless the action never was allowed.
    """
    import distrax

    class Masked(type(actor)):
        def _action_dist(self, obs: Array) -> Any:
            inputs, mask = jnp.split(obs, [obs.shape[1] - self.action_dim], axis=1)
            logits = super()._action_dist(inputs).logits
            return distrax.Categorical(logits=jnp.where(mask >= 0, logits, FORBIDDEN))

    return Masked(actor.action_dim, actor.hidden_layer_sizes, actor.activation)


def _in_floats(state: PyTree) -> PyTree:
    """rejax begins its statistics of rewards with the integers 0 and 1."""
    rewards = state.rew_rms_state
    as_floats = {"mean": jnp.float32(rewards.mean), "var": jnp.float32(rewards.var)}
    return state.replace(rew_rms_state=rewards.replace(**as_floats))


def _strong(leaf: PyTree) -> Array:
    """As an array whose type is its own, as it is when read back from a checkpoint."""
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def ppo_learning(config: RLConfig, scorer: Scorer) -> Learning:
    """The method on an scorer whose episodes run on the device.

    Raises:
        InputError: they do not.
    """
    if scorer.rollout is None:
        raise InputError(f"ppo needs an environment in JAX, and {scorer.name} is none")
    environment = scorer.rollout.environment
    method = ppo(environment, config.ppo, normalise=config.normalise)
    rollout = Rollout(method.policy, environment, config.deterministic, devices=config.devices)

    def validate(params: PyTree) -> Metrics:
        returns = _returns(config, rollout, params, VALIDATION)
        return {"eval_return": float(np.mean(returns)), "eval_std": float(np.std(returns))}

    def random_return() -> float:
        params = method.params(method.init(jax.random.key(config.seed)))
        return float(np.mean(_returns(config, rollout, params, RANDOM)))

    return Learning(
        task=ppo_task(config, environment, validate, method=method, curve=curve_of(config, scorer)),
        rollout=rollout,
        weights=lambda _, carry: (method.params(carry), None),
        random_return=random_return,
    )


def _returns(config: RLConfig, rollout: Rollout, params: PyTree, which: int) -> np.ndarray:
    key = jax.random.fold_in(jax.random.key(config.seed), which)
    keys = episode_keys(key, config.eval_episodes)
    return np.asarray(unperturbed_episodes(rollout, params, keys, None, which == RANDOM).returns)


HIDDEN = (256, 256, 256)  # as the paper's policies
