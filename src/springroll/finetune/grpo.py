"""Fine-tuning by GRPO, the gradient baseline: same model, task, judge, generation and loop.

GRPO: answers that score above the others to the same prompt become likelier.

Source: DeepSeekMath, arXiv 2402.03300, equations 3 and 4, with the reward of a whole answer.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.finetune.config import FinetuneConfig
from springroll.finetune.evolution import LOST_LIMIT, curve_of, sampling_seed
from springroll.finetune.setup import Asked, Setup
from springroll.generate.generator import Generated
from springroll.models.protocols import LanguageModel
from springroll.run.clocks import laps
from springroll.run.job import SavedWeights
from springroll.run.task import Metrics, Task
from springroll.train.build import pretrained
from springroll.train.config import TrainConfig
from springroll.train.learners import Learner
from springroll.train.optimizers import learner_for
from springroll.trees import PyTree

EPSILON = 1e-4  # added to the deviation of a group, whose rewards may all be equal


class Rollout(NamedTuple):
    """Answers to learn from; R rows of T tokens, of which the target of position t follows it."""

    tokens: Array  # (R, T) int32: prompt and answer, padded on the right
    targets: Array  # (R, T) int32: the answer's tokens where they are predicted, else -1
    advantage: Array  # (R,) float32
    old: Array  # (R, T) float32: log-probabilities of the targets when they were drawn
    reference: Array  # (R, T) float32: of the first weights; not looked at without `kl`


def advantages(reward: np.ndarray) -> np.ndarray:
    """(N, P) rewards of N answers to each prompt: (reward - mean) / deviation over the answers.

    An answer that could not be scored (NaN) has advantage 0 and does not count.
    """
    there = np.isfinite(reward)
    count = np.maximum(there.sum(axis=0), 1)
    values = np.where(there, reward, 0.0)
    mean = values.sum(axis=0) / count
    deviation = np.sqrt((there * (values - mean) ** 2).sum(axis=0) / count)
    return np.where(there, (values - mean) / (deviation + EPSILON), 0.0).astype(np.float32)


def policy_loss(
    model: LanguageModel, *, temperature: float, clip: float, kl: float
) -> Callable[[PyTree, Rollout], tuple[Array, dict[str, Array]]]:
    """(params, rollout) -> loss () and figures.

    `-mean over answers, mean over tokens, min(r A, clip(r, 1 - clip, 1 + clip) A) - kl D`, with
    r = p / p_old, and D = p_ref / p - log(p_ref / p) - 1, an unbiased estimate of the divergence.
    """

    def loss(params: PyTree, rollout: Rollout) -> tuple[Array, dict[str, Array]]:
        nats, figures = model.token_nats(params, rollout.tokens, rollout.targets, temperature)
        counts = (rollout.targets >= 0).astype(jnp.float32)
        ratio = jnp.exp(-nats - rollout.old)
        advantage = rollout.advantage[:, None]
        near = jnp.clip(ratio, 1 - clip, 1 + clip)
        gain = jnp.minimum(ratio * advantage, near * advantage)
        if kl:
            less = rollout.reference + nats
            gain = gain - kl * (jnp.exp(less) - less - 1)
        mean = lambda x: jnp.mean(
            jnp.sum(counts * x, axis=1) / jnp.maximum(jnp.sum(counts, axis=1), 1.0)
        )
        clipped = jax.lax.stop_gradient((near != ratio).astype(jnp.float32))
        return -mean(gain), figures | {"clipped": mean(clipped), "entropy_nats": mean(nats)}

    return loss


LR = 1e-4  # of adamw on small models, as the other optimizers' rates are multiples of adamw's


def grpo_task(config: FinetuneConfig, setup: Setup) -> Task:
    """The loop's view: one learner as the carry, whose weights write the answers it learns from."""
    learner = learner_of(config, setup)
    nats = jax.jit(setup.model.token_nats, static_argnums=3)
    first = setup.params() if config.kl else None

    def init() -> tuple[None, PyTree]:
        return None, (learner.init(jax.random.key(config.seed)), 0)

    def evaluate(
        state: None, members: None, carry: PyTree, asked: Asked
    ) -> tuple[np.ndarray, PyTree, Metrics]:
        lap = laps()
        learnt, generation = carry
        generated = setup.generator.run(
            learner.params(learnt),
            None,
            asked.prompts,
            seed=sampling_seed(config.seed, generation),
            copies=config.population,
        )
        generate_seconds = lap()
        found = setup.judged(asked, generated)
        setup.seen.look_at_rewards(found, generated, config.method)
        limit = setup.generator.max_tokens
        score_seconds = lap()
        rollout = rollout_of(asked.prompts, generated, advantages(found.reward), limit)
        if first is not None:
            reference = -nats(first, rollout.tokens, rollout.targets, config.sampling_temperature)[
                0
            ]
            rollout = rollout._replace(reference=reference)
        metrics: dict[str, Array] = {}
        for _ in range(config.epochs):
            learnt, metrics = learner.step(learnt, rollout)
        jax.block_until_ready(learnt)
        figures = found.figures("train_") | {
            "tokens": int(generated.written.sum()),
            "occupancy": generated.occupancy,
            "prompts_dropped": asked.dropped,
            "generate_seconds": generate_seconds,
            "score_seconds": score_seconds,
            "update_seconds": lap(),
            "grad_norm": metrics["grad_norm"],
        }
        return found.reward, (learnt, generation + 1), figures

    return Task(
        init=init,
        batch=lambda generation: setup.train(generation, config.num_prompts),
        ask=lambda state: None,
        evaluate=evaluate,
        tell=lambda state, members, scores: (None, {}),
        validate=lambda _, carry: setup.validated(learner.params(carry[0])),
        pop_size=config.population,
        tokens=config.population * config.num_prompts * setup.greedy.max_tokens,
        seed=config.seed,
        lost_limit=LOST_LIMIT,
        unscored=lambda: setup.task.failures.line,
        answers=lambda: setup.seen.answers,
        warnings=lambda: setup.seen.warnings,
        identity=setup.identity,
        curve=curve_of(config, setup),
        keep_best=True,
        validation_tokens=config.eval_problems * setup.greedy.max_tokens,
    )


def learner_of(config: FinetuneConfig, setup: Setup) -> Learner:
    """What follows the policy gradient."""
    loss = policy_loss(
        setup.model, temperature=config.sampling_temperature, clip=config.group_clip, kl=config.kl
    )
    weights = lambda _: pretrained(setup.folder, setup.model.config)
    return learner_for(train_config(config), setup.model, weights, loss)


def saved_weights(config: FinetuneConfig, setup: Setup) -> SavedWeights:
    """Where in a checkpoint the weights are."""
    learner = learner_of(config, setup)
    saved = jax.eval_shape(learner.init, jax.eval_shape(lambda: jax.random.key(0)))
    return SavedWeights(saved, "carry/0", learner.params)


def train_config(config: FinetuneConfig) -> TrainConfig:
    """The optimizer's options as `springroll train` has them."""
    optimizer = config.optimizer or "adamw"
    assert optimizer not in ("sgd", "adam")
    return TrainConfig(
        optimizer=optimizer,
        lr=config.lr or LR,
        rank=config.rank,
        state_bits=config.state_bits,
        accumulate=config.accumulate,
        clip=config.clip,
        schedule="constant",
        warmup=0.0,
        seed=config.seed,
    )


def rollout_of(
    prompts: list[list[int]], generated: Generated, advantage: np.ndarray, max_tokens: int
) -> Rollout:
    """Prompts and answers as rows to learn from, each member's after the other's.

    Rows have one length for all batches whose longest prompts are in the same power of two, so that
    a step is compiled once for each.
    """
    members, count = advantage.shape
    longest = max(map(len, prompts))
    time = (1 << (longest - 1).bit_length()) + max_tokens
    shape = (members * count, time)
    text = np.zeros((shape[0], time + 1), np.int32)
    targets = np.full(shape, -1, np.int32)
    old = np.zeros(shape, np.float32)
    written = generated.written  # the end token is learnt too
    assert generated.log_probabilities is not None
    for row, (member, prompt) in enumerate(np.ndindex(members, count)):
        start, made = len(prompts[prompt]), int(written[member, prompt])
        answer = generated.tokens[member, prompt, :made]
        text[row, :start] = prompts[prompt]
        text[row, start : start + made] = answer
        targets[row, start - 1 : start - 1 + made] = answer
        old[row, start - 1 : start - 1 + made] = generated.log_probabilities[member, prompt, :made]
    arrays = text[:, :-1], targets, advantage.reshape(-1), old, np.zeros_like(old)
    return Rollout(*map(jnp.asarray, arrays))
