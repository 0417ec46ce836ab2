"""GRPO: answers that score above the others to the same prompt become likelier.

Source: DeepSeekMath, arXiv 2402.03300, equations 3 and 4, with the reward of a whole answer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

EPSILON = 1e-4  # added to the deviation of a group, whose rewards may all be equal


class Rollout(NamedTuple):
    """Answers to learn from; R rows of T tokens, of which the target of position t follows it."""

    tokens: Any  # (R, T) int32: prompt and answer, padded on the right
    targets: Any  # (R, T) int32: the answer's tokens where they are predicted, else -1
    advantage: Any  # (R,) float32
    old: Any  # (R, T) float32: log-probabilities of the targets when they were drawn
    reference: Any  # (R, T) float32: of the first weights; not looked at without `kl`


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
    model: Any, *, temperature: float, clip: float, kl: float
) -> Callable[[Any, Rollout], tuple[Array, dict[str, Array]]]:
    """(params, rollout) -> loss () and figures.

    `-mean over answers, mean over tokens, min(r A, clip(r, 1 - clip, 1 + clip) A) - kl D`, with
    r = p / p_old, and D = p_ref / p - log(p_ref / p) - 1, an unbiased estimate of the divergence.
    """

    def loss(params: Any, rollout: Rollout) -> tuple[Array, dict[str, Array]]:
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
