"""A policy learns by evolution: the loop's view of EGGROLL and OpenES on an scorer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from springroll.evolve.eggroll import eggroll, open_es
from springroll.evolve.members import Members
from springroll.evolve.strategy import EvolutionState, SigmaSchedule, Strategy
from springroll.rl.config import RLConfig, factor_of
from springroll.rl.scorer import Learning, ObservationStats, Scorer
from springroll.run.task import Curve, Metrics, Task
from springroll.thin.discovery import discover
from springroll.trees import PyTree

LOST_LIMIT = 3  # generations in a row without a single score, and the run stops
NOISE_BYTES = 1 << 27  # kept from the forward to the update; of full matrices more is drawn twice


def evolution(config: RLConfig, scorer: Scorer) -> Learning:
    """EGGROLL or OpenES on an scorer."""
    strategy = strategy_for(config, scorer)

    def random_return() -> float | None:
        """By the program that training has compiled."""
        if not scorer.acts:
            return None
        state = strategy.init(jax.random.key(config.seed), scorer.init(jax.random.key(config.seed)))
        members, episodes = strategy.ask(state), config.eval_episodes
        returns = scorer.evaluate(state.params, members, scorer.initial_stats(), episodes, True)
        return float(np.nanmean(returns))

    return Learning(
        task=evolution_task(config, scorer, strategy),
        rollout=scorer.rollout,
        weights=lambda state, stats: (state.params, stats),
        random_return=random_return,
    )


def evolution_task(config: RLConfig, scorer: Scorer, strategy: Strategy) -> Task:
    """What the loop trains."""

    def init() -> tuple[EvolutionState, ObservationStats]:
        first, noise = jax.random.split(jax.random.key(config.seed))
        return strategy.init(noise, scorer.init(first)), scorer.initial_stats()

    def evaluate(
        state: EvolutionState, members: Members, stats: ObservationStats, generation: int
    ) -> tuple[Array | np.ndarray, ObservationStats, Metrics]:
        return scorer.score(state.params, members, stats, generation)

    def tell(
        state: EvolutionState, members: Members, fitness: np.ndarray
    ) -> tuple[EvolutionState, Metrics]:
        state, told = strategy.tell(state, members, jnp.asarray(fitness))
        return state, {name: told[name] for name in ("sigma", "step_ratio")}

    def validate(state: EvolutionState, stats: ObservationStats) -> Metrics:
        members, episodes = strategy.ask(state), config.eval_episodes
        returns = scorer.evaluate(state.params, members, stats, episodes, False)
        return {"eval_return": float(np.nanmean(returns)), "eval_std": float(np.nanstd(returns))}

    return Task(
        init=init,
        batch=lambda generation: generation,
        ask=strategy.ask,
        evaluate=evaluate,
        tell=tell,
        validate=validate,
        pop_size=config.pop_size,
        tokens=config.pop_size * config.episodes * scorer.steps,
        unit="env_steps",
        seed=config.seed,
        lost_limit=LOST_LIMIT,
        unscored=scorer.failures,
        identity=scorer.identity,
        curve=curve_of(config, scorer),
        keep_best=True,
        validation_tokens=config.eval_episodes * scorer.steps,
    )


def strategy_for(config: RLConfig, scorer: Scorer) -> Strategy:
    """EGGROLL, or OpenES, which is the same with a full matrix for every weight."""
    options: dict[str, Any] = {
        "pop_size": config.pop_size,
        "sigma": decaying(config.sigma, config.sigma_half_life),
        "optimizer": optimizer_for(config),
        "shaping": "centred_ranks" if config.ranks else "z_score",
        "noise_budget_bytes": NOISE_BYTES,
    }
    if config.method == "openes":
        return open_es(**options)
    roles = thin(scorer.shapes(), config.rank)
    traced = scorer.traced()
    if traced is not None:  # else shapes decide which axes are which
        roles = dict(discover(traced.fn, traced.params, *traced.args)) | roles
    return eggroll(rank=config.rank, roles=roles, **options)


def thin(shapes: PyTree, rank: int) -> dict[str, str]:
    """Matrices with a side no longer than the rank: full noise is no dearer and no different."""
    small = lambda x: x.ndim == 2 and min(x.shape) <= rank
    found = jax.tree_util.tree_leaves_with_path(shapes)
    spelt = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {spelt(path): "dense" for path, x in found if small(x)}


def optimizer_for(config: RLConfig) -> optax.GradientTransformation:
    """The optimizer of the options, on the estimate."""
    rate = decaying(config.lr, config.lr_half_life)
    return {"sgd": optax.sgd, "adam": optax.adam, "adamw": optax.adamw}[config.optimizer](rate)


def decaying(value: float, half_life: float | None) -> SigmaSchedule:
    """`value * 2 ** (-generation / half_life)`, as a power of one factor per generation."""
    if half_life is None:
        return value
    factor = factor_of(half_life)
    return lambda step: jnp.float32(value) * jnp.float32(factor) ** jnp.asarray(step, jnp.float32)


def curve_of(config: RLConfig, scorer: Scorer) -> Curve:
    """Returns over environment steps."""
    return Curve(
        train="train_return",
        valid="eval_return",
        label="return of an episode",
        short="return",
        title=f"{scorer.name}, {config.method}, {config.pop_size:,} members",
    )
