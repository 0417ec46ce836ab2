"""Fine-tuning by evolution: every member answers the same problems, the better ones are followed.

Nothing but forward passes in the dtype of the weights: the memory is that of inference. A fitness
is a matrix, members by prompts; it goes to the journal as it is, so a run is rebuilt from it.
"""

import functools
import math
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from springroll.evolve.eggroll import eggroll
from springroll.evolve.in_place import tell_in_place
from springroll.evolve.members import Members
from springroll.evolve.momentum import Momentum
from springroll.evolve.shaping import finite, group_centred
from springroll.evolve.step import Master
from springroll.evolve.strategy import EvolutionState, Strategy
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.judging import best_of
from springroll.finetune.setup import LARGE, Asked, Setup, WritingModel, decaying
from springroll.models.decoder_config import structs
from springroll.models.hf.files import family_of, leaves_of, open_hf
from springroll.models.hf.load import read_parts
from springroll.quant.int8_weights import dequantize_weights, quantize_weights
from springroll.quant.quantize_state import quantize_state
from springroll.quant.split_master import as_float32
from springroll.run.clocks import laps
from springroll.run.job import SavedWeights
from springroll.run.task import Curve, Metrics, Task
from springroll.thin.discovery import discover
from springroll.thin.roles import WeightRoles
from springroll.trees import PyTree


class Anchor(NamedTuple):
    """The state of `anchored`."""

    first: PyTree  # the weights to go back to, in the tree and dtypes of the params


def anchored(share: float) -> optax.GradientTransformation:
    """Add `-share (W - W_0)` to every update: a pull back to the first weights, against forgetting.

    To be put last in a chain, where updates are what is added to the weights. With it a constant
    push ends at a distance of push / share instead of growing for ever. Costs a copy of the
    weights.

    Source: anchored weight decay, arXiv 2605.30148.
    """

    def init(params: PyTree) -> Anchor:
        return Anchor(jax.tree.map(jnp.array, params))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        if params is None:
            raise ValueError("anchored needs the params that it pulls back")
        pull = lambda u, w, first: u - jnp.asarray(share, u.dtype) * (w - first).astype(u.dtype)
        return jax.tree.map(pull, updates, params, state.first), state

    return optax.GradientTransformation(init, update)


WEIGHTS = "state/params"  # where in a checkpoint they are
LOST_LIMIT = 3  # generations in a row without a single score, and the run stops


def es_task(config: FinetuneConfig, setup: Setup) -> Task:
    """The loop's view of evolution on rewards."""
    strategy = strategy_for(config, setup)
    update = strategy.tell if updated_whole(config) else tell_in_place(strategy)

    def init() -> tuple[EvolutionState, None]:
        params = setup.params(config.weights, config.rest)
        return strategy.init(jax.random.key(config.seed), params), None

    def template() -> tuple[EvolutionState, None]:
        start = strategy.init
        return jax.eval_shape(start, jax.random.key(config.seed), held(config, setup)), None

    def batch(generation: int) -> Asked:
        return setup.train(generation, config.num_prompts)

    def evaluate(
        state: EvolutionState, members: Members, carry: None, asked: Asked
    ) -> tuple[np.ndarray, None, Metrics]:
        lap = laps()
        repeated = [each for each in asked.prompts for _ in range(config.answers)]
        generated = setup.generator.run(
            state.params,
            members,
            repeated,
            seed=sampling_seed(config.seed, int(state.generation)),
            unperturbed=config.unperturbed,
        )
        generate_seconds = lap()
        problems = [each for each in asked.problems for _ in range(config.answers)]
        found = setup.judged(Asked(problems, repeated), generated)
        best = best_of(found, config.answers)
        setup.seen.look_at_rewards(best, generated, config.method)
        reward = best.reward
        count = config.population
        figures = found.figures("train_") | {
            "tokens": int(generated.written.sum()),
            "occupancy": generated.occupancy,
            "prompts_dropped": asked.dropped,
            "generate_seconds": generate_seconds,
            "score_seconds": lap(),
        }
        if config.unperturbed:
            floor, spread = spread_of(reward[count:]), spread_of(reward[:count])
            figures |= {"noise_floor": floor, "fitness_spread": spread}
        return reward[:count], carry, figures

    def tell(
        state: EvolutionState, members: Members, scores: np.ndarray
    ) -> tuple[EvolutionState, Metrics]:
        lap = laps()
        state, told = update(state, members, per_prompt(jnp.asarray(scores)))
        jax.block_until_ready(state)
        figures = {name: told[name] for name in ("sigma", "step_ratio")}
        return state, figures | {"update_seconds": lap()}

    return Task(
        init=init,
        template=template,
        batch=batch,
        ask=strategy.ask,
        evaluate=evaluate,
        tell=tell,
        validate=lambda state, _: setup.validated(state.params),
        pop_size=config.population,
        tokens=config.population * config.num_prompts * config.answers * setup.greedy.max_tokens,
        seed=config.seed,
        lost_limit=LOST_LIMIT,
        unscored=lambda: setup.task.failures.line,
        answers=lambda: setup.seen.answers,
        warnings=lambda: setup.seen.warnings,
        identity=setup.identity,
        curve=curve_of(config, setup),
        keep_best=True,
        weights=WEIGHTS,
        validation_tokens=config.eval_problems * setup.greedy.max_tokens,
    )


def saved_weights(config: FinetuneConfig, setup: Setup) -> SavedWeights:
    """Where in a checkpoint the weights are."""
    floats = lambda params: as_float32(dequantize_weights(params))
    own = floats if config.weights == "int8" else lambda params: params
    return SavedWeights(held(config, setup), WEIGHTS, own)


def strategy_for(config: FinetuneConfig, setup: Setup) -> Strategy:
    """EGGROLL on the matrices of the model; norms, biases and other vectors stand still."""
    discovered = roles_of(setup.model, config.weights, config.rest)
    sigma = config.sigma or usual_sigma(setup, discovered, layered=False)
    return strategy_of(config, discovered, sigma)


def strategy_of(config: FinetuneConfig, discovered: WeightRoles, sigma: float) -> Strategy:
    """The same of parameters with these roles."""
    return eggroll(
        pop_size=config.population,
        sigma=decaying(sigma, config.sigma_half_life),
        rank=config.rank or 1,
        optimizer=optimizer_for(config, sigma),
        roles={**discovered, **dict.fromkeys(still(discovered), "frozen")},
        noise_reuse=config.noise_reuse,
        shaping=lambda fitness: fitness,  # `per_prompt` was there before
        master=master_of(config),
        max_step_ratio=config.max_step_ratio,
        momentum=momentum_of(config),
    )


def updated_whole(config: FinetuneConfig) -> bool:
    """Whether one program updates all parameters, whatever their size: codes of moments are of
    whole matrices, and runs from before the update in place go on as they were."""
    return config.momentum_generations is None or config.state_bits != 32


def momentum_of(config: FinetuneConfig) -> Momentum | None:
    """Of sgd, where it is made again from noise."""
    generations = config.momentum_generations
    if config.optimizer == "adam" or not generations or not config.decay:
        return None
    return Momentum(config.decay, generations)


def held(config: FinetuneConfig, setup: Setup) -> PyTree:
    """What `setup.params` returns for the config, without values."""
    return held_as(setup.model, config.weights, config.rest)


def held_as(model: WritingModel, weights: str, rest: str) -> PyTree:
    """Parameters as `FinetuneConfig.weights` has them, without values; `rest` is the type of all
    but int8 matrices (see `FinetuneConfig.rest`)."""
    shapes = structs(family_of(model.config).shapes(model.config), rest)
    return jax.eval_shape(quantize_weights, shapes) if weights == "int8" else shapes


def master_of(config: FinetuneConfig) -> Master:
    """What weights of few bits keep of small steps."""
    if config.weights != "int8" or config.rounding != "stochastic":
        return config.rounding
    return "error_feedback_4bit" if config.residual_bits == 4 else "error_feedback"


def optimizer_for(config: FinetuneConfig, sigma: float) -> optax.GradientTransformation:
    """SGD with momentum, or Adam, on the estimate; with the pull of the anchor."""
    adam = config.optimizer == "adam"
    rate = decaying(config.lr or (0.05 * sigma if adam else 0.005), config.lr_half_life)
    if adam:
        tx = optax.adam(rate, b1=config.decay, b2=0.99)
    else:
        kept = config.decay if momentum_of(config) is None else None
        tx = optax.sgd(rate, momentum=kept or None)
    if config.state_bits != 32:
        tx = quantize_state(tx, bits=config.state_bits)
    return optax.chain(tx, anchored(config.anchor)) if config.anchor else tx


@functools.cache
def roles_of(model: WritingModel, weights: str, rest: str) -> WeightRoles:
    """How the model uses each of its parameters, held as `weights`. Traced once."""
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    return discover(model.apply, held_as(model, weights, rest), tokens)


def still(roles: WeightRoles) -> list[str]:
    """The parameters that are not perturbed."""
    return [path for path, role in roles.items() if role.kind != "low-rank"]


def with_sigma(config: FinetuneConfig, setup: Setup) -> FinetuneConfig:
    """The config of a new run with its sigma, so that continuations do not compute it anew.

    A large model is perturbed by twice the usual sigma (measured: see docs/finetune.md).
    """
    if config.method != "es" or config.sigma is not None:
        return config
    sigma = usual_sigma(setup, roles_of(setup.model, config.weights, config.rest))
    return replace(config, sigma=2 * sigma if setup.parameters > LARGE else sigma)


def usual_sigma(setup: Setup, roles: WeightRoles, layered: bool = True) -> float:
    """A tenth of the root mean square of the matrices, over the square root of the layers.

    In relative terms the perturbations of L layers add up to about that of one layer at a tenth.

    Args:
        setup: the model, whose weights are read from its files, one leaf at a time.
        roles: how it uses its parameters; those that are perturbed count.
        layered: read large leaves layer by layer, which rounds the sum in another place. Runs from
            before their sigma was in their config read leaves whole.
    """
    total, count = 0.0, 0
    checkpoint, standing = open_hf(setup.folder), still(roles)
    for path, shape in leaves_of(checkpoint.config):
        if path in standing:
            continue
        whole = not layered or math.prod(shape) <= LARGE
        for part in read_parts(checkpoint, path, shape, jnp.float32, whole=whole):
            total += float(jnp.sum(jnp.square(jnp.asarray(part))))
        count += math.prod(shape)
    return 0.1 * math.sqrt(total / count / setup.model.config.layers)


def per_prompt(scores: Array) -> Array:
    """Scores (N, P) to fitness (N,): each prompt's mean goes, then one deviation divides all.

    `sqrt(P) mean_j (s_ij - mean_i s_ij) / std(s)`: a prompt that all members answer alike says
    nothing, and rewards of differing prompts are comparable. The factor makes the variance of pure
    chance 1 whatever P is, so that a learning rate keeps its meaning. A missing score (NaN) counts
    for nothing; a member without any is NaN.

    Source: arXiv 2511.16652v2, section 6 (question-wise centring, global deviation).
    """
    members, prompts = scores.shape
    groups = jnp.tile(jnp.arange(prompts), members)
    centred = group_centred(groups)(scores.reshape(-1)).reshape(scores.shape)
    there = finite(scores).sum(axis=1).astype(jnp.float32)
    fitness = centred.sum(axis=1) / jnp.maximum(there, 1.0) * jnp.sqrt(jnp.float32(prompts))
    return jnp.where(there > 0, fitness, jnp.nan)


def spread_of(reward: np.ndarray) -> float:
    """The deviation of the members' mean rewards (N, P), of those that were scored at all."""
    scored = reward[np.isfinite(reward).any(axis=1)]
    return float(np.std(np.nanmean(scored, axis=1))) if scored.size else math.nan


def sampling_seed(seed: int, generation: int) -> int:
    """What tokens of a generation are drawn from: below 2^63, different for all."""
    return (seed * 1_000_003 + generation) % 2**63


def curve_of(config: FinetuneConfig, setup: Setup) -> Curve:
    """Exact match, or the reward of a function of the user's own, over tokens."""
    measure = setup.task.measure
    return Curve(
        train=f"train_{measure}",
        valid=f"valid_{measure}",
        label="exact match" if measure == "accuracy" else measure,
        short=measure,
        title=f"{setup.task.name}, {setup.parameters:,} parameters, {config.method}",
    )
