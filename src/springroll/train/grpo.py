"""Fine-tuning by GRPO, the gradient baseline: same model, task, judge, generation and loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from springroll.generate.generator import Generated
from springroll.train.backprop_task import pretrained
from springroll.train.evolved_answers import LOST_LIMIT, curve_of, sampling_seed
from springroll.train.finetune_config import FinetuneConfig
from springroll.train.finetune_setup import Asked, Setup
from springroll.train.learners import Learner
from springroll.train.optimizers import learner_for
from springroll.train.policy_loss import Rollout, advantages, policy_loss
from springroll.train.task import Task
from springroll.train.train_config import TrainConfig

LR = 1e-4  # of adamw on small models, as the other optimizers' rates are multiples of adamw's


def grpo_task(config: FinetuneConfig, setup: Setup) -> Task:
    """The loop's view: one learner as the carry, whose weights write the answers it learns from."""
    learner = learner_of(config, setup)
    nats = jax.jit(setup.model.token_nats, static_argnums=3)
    first = setup.params() if config.kl else None

    def init() -> tuple[None, Any]:
        return None, (learner.init(jax.random.key(config.seed)), 0)

    def evaluate(state: None, members: None, carry: Any, asked: Asked) -> Any:
        learnt, generation = carry
        generated = setup.generator.run(
            learner.params(learnt),
            None,
            asked.prompts,
            seed=sampling_seed(config.seed, generation),
            copies=config.population,
        )
        found = setup.judged(asked, generated)
        rollout = rollout_of(asked.prompts, generated, advantages(found.reward), config.max_tokens)
        if first is not None:
            tokens, targets = jnp.asarray(rollout.tokens), jnp.asarray(rollout.targets)
            reference = -nats(first, tokens, targets, config.heat)[0]
            rollout = rollout._replace(reference=reference)
        rollout = jax.tree.map(jnp.asarray, rollout)
        told: dict[str, Any] = {}
        for _ in range(config.epochs):
            learnt, told = learner.step(learnt, rollout)
        figures = found.figures("train_") | {
            "tokens": int(generated.lengths.sum() + generated.finished.sum()),
            "occupancy": generated.occupancy,
            "grad_norm": told["grad_norm"],
        }
        return found.reward, (learnt, generation + 1), figures

    return Task(
        init=init,
        batch=lambda generation: setup.train(generation, config.batch),
        ask=lambda state: None,
        evaluate=evaluate,
        tell=lambda state, members, scores: (None, {}),
        validate=lambda _, carry: setup.validated(learner.params(carry[0])),
        pop_size=config.population,
        tokens=config.population * config.batch * config.max_tokens,
        seed=config.seed,
        lost_limit=LOST_LIMIT,
        identity=setup.identity,
        curve=curve_of(config, setup),
        keep_best=True,
    )


def learner_of(config: FinetuneConfig, setup: Setup) -> Learner:
    """What follows the policy gradient."""
    loss = policy_loss(setup.model, temperature=config.heat, clip=config.group_clip, kl=config.kl)
    weights = lambda _: pretrained(setup.folder, setup.model.config)
    return learner_for(train_config(config), setup.model, weights, loss)


def saved_weights(config: FinetuneConfig, setup: Setup) -> tuple[Any, str, Callable[[Any], Any]]:
    """Where in a checkpoint the weights are: (shapes of a part, its path, part -> weights)."""
    learner = learner_of(config, setup)
    saved = jax.eval_shape(learner.init, jax.eval_shape(lambda: jax.random.key(0)))
    return saved, "carry/0", learner.params


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
    written = generated.lengths + generated.finished  # the end token is learnt too
    assert generated.log_probabilities is not None
    for row, (member, prompt) in enumerate(np.ndindex(members, count)):
        start, made = len(prompts[prompt]), int(written[member, prompt])
        answer = generated.tokens[member, prompt, :made]
        text[row, :start] = prompts[prompt]
        text[row, start : start + made] = answer
        targets[row, start - 1 : start - 1 + made] = answer
        old[row, start - 1 : start - 1 + made] = generated.log_probabilities[member, prompt, :made]
    return Rollout(text[:, :-1], targets, advantage.reshape(-1), old, np.zeros_like(old))
